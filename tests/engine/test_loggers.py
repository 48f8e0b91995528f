"""Services get what a training and a test tell them; those that need a library of their own are skipped without it."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvid.cli import main
from stvid.config import TrainConfig, load_config
from stvid.engine.loggers import check_installed, flat_config
from stvid.engine.train import train
from stvid.errors import ConfigError, StvidError
from stvid.runs import resume_config

SERVICE_VARIABLES = ("WANDB_", "MLFLOW_", "COMET_")


@pytest.fixture
def config(
    tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainConfig]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    videos = make_dataset(tmp_path / "videos", classes=("a", "b"), per_class=2)

    def make(*loggers: str, **options: str) -> TrainConfig:
        values = {
            "model.name": "uniformer_xxs",
            "model.hyperparameters": "{depth: [1, 1, 1, 1], embed_dim: [8, 8, 16, 16], head_dim: 8}",
            "data.train": str(videos),
            "data.val": str(videos),
            "data.batch_size": "4",
            "data.workers": "0",
            "protocol.frames": "4",
            "protocol.stride": "2",
            "protocol.short_side": "40",
            "protocol.crop": "32",
            "trainer.max_epochs": "1",
            "trainer.accelerator": "cpu",
            "trainer.log_every_n_steps": "1",
            "trainer.loggers": json.dumps(loggers),
            "output": str(tmp_path / "run"),
            **options,
        }
        return load_config(None, [f"--{key}={value}" for key, value in values.items()])

    return make


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_is_written_without_being_named(config: Callable[..., TrainConfig]) -> None:
    result = train(config())
    assert rows(result.output / "metrics.csv")
    assert not [path for path in result.output.iterdir() if path.name.startswith("events.out.tfevents")]
    assert not (result.output / "loggers.json").exists()


def test_tensorboard_holds_the_config(config: Callable[..., TrainConfig]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(config("tensorboard"))
    events = EventAccumulator(str(result.output))
    events.Reload()
    (text,) = events.Tensors("config/text_summary")
    assert b"name: uniformer_xxs" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize(
    "name,hint",
    [("wandbb", "nearest: wandb"), ("ml-flow", "nearest: mlflow"), ("q", "there are csv, tensorboard, wandb")],
)
def test_unknown_loggers_are_refused(config: Callable[..., TrainConfig], name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"^trainer\.loggers: '{name}' is unknown; {hint}"):
        config("csv", name)


def test_a_library_that_is_not_there(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = ("wandb", "mlflow", "comet_ml")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    for name in ("wandb", "mlflow", "comet"):
        made = config(name)
        with pytest.raises(
            ConfigError, match=rf"^trainer\.loggers: {name} is not installed; pip install 'stvid\[{name}\]'$"
        ):
            train(made)
    assert not Path(made.output or "").exists()
    check_installed(["csv", "tensorboard"])


def test_flat_config_holds_every_key(config: Callable[..., TrainConfig]) -> None:
    flat = flat_config(config())
    assert flat["model.name"] == "uniformer_xxs" and flat["protocol.crop"] == 32 and flat["seed"] == 0


def test_mlflow(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    first = train(config("mlflow", **{"optim.schedule_epochs": "2"}))
    again = train(resume_config(first.output, ["--trainer.max_epochs", "2"]))
    assert main(["test", "--checkpoint", str(first.output), "--workers=0", "--device=cpu"]) == 0
    place = json.loads((first.output / "loggers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient(place["uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'stvid'")
    (run,) = client.search_runs([experiment.experiment_id])  # one, though it was continued
    assert run.info.run_id == place["id"] and run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["model.name"] == "uniformer_xxs" and run.data.params["protocol.crop"] == "32"
    assert run.data.metrics["val_top1/1x1"] == pytest.approx(again.metrics["val_top1@1x1"])
    assert [point.step for point in client.get_metric_history(place["id"], "train_loss_step")] == [0, 1]
    files = {item.path for item in client.list_artifacts(place["id"])}
    assert {"config.yaml", "metrics.csv", "report.html", "result.json"} <= files
    assert not (Path.cwd() / "mlruns").exists()


def test_an_mlflow_server_that_is_not_there(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"^trainer\.loggers: mlflow: .*127\.0\.0\.1") as caught:
        train(config("mlflow"))
    assert "\n" not in str(caught.value)


def test_wandb_offline(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent: list[Any] = []
    log = wandb.sdk.wandb_run.Run.log_artifact
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run,
        "log_artifact",
        lambda self, artifact, **more: (
            sent.append((self.id, artifact.type, sorted(artifact.manifest.entries), dict(self.config))),
            log(self, artifact, **more),
        )[1],
    )
    result = train(config("wandb"))
    assert main(["test", "--checkpoint", str(result.output), "--workers=0", "--device=cpu"]) == 0
    place = json.loads((result.output / "loggers.json").read_text())["wandb"]
    assert [(run, kind, files) for run, kind, files, _ in sent] == [
        (place["id"], "run", ["config.yaml", "metrics.csv"]),
        (place["id"], "report", ["report.html", "result.json"]),
    ]
    assert sent[0][3]["model.name"] == "uniformer_xxs"
    assert list((result.output / "wandb").glob(f"offline-run-*-{place['id']}/run-*.wandb"))
    assert wandb.run is None  # ended: another training of this process begins its own


def test_comet_offline(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("comet_ml")
    monkeypatch.setenv("COMET_START_ONLINE", "false")
    result = train(config("comet"))
    place = json.loads((result.output / "loggers.json").read_text())["comet"]
    assert list((result.output / "comet").glob(f"*{place['id']}*.zip"))


def test_a_damaged_record_is_named(config: Callable[..., TrainConfig]) -> None:
    result = train(config())
    (result.output / "loggers.json").write_text("{")
    with pytest.raises(StvidError, match=r"loggers\.json: is damaged .*; remove it"):
        train(resume_config(result.output, ["--trainer.max_epochs", "2"]))
