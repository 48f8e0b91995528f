"""The commands as a user types them: what they print, and that every mistake is one line and a non-zero exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import stvid
from stvid.cli import COMMANDS, main
from stvid.commands.common import OLD_NAMES
from stvid.config import config_keys, dump_config, load_config

TRAIN = [
    "--model.name=uniformer_xxs",
    "--model.hyperparameters={depth: [1, 1, 1, 1], embed_dim: [8, 8, 16, 16], head_dim: 8}",
    "--data.batch_size=4",
    "--data.workers=0",
    "--protocol.frames=4",
    "--protocol.stride=2",
    "--protocol.short_side=40",
    "--protocol.crop=32",
    "--protocol.views=2x1",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(autouse=True)
def _one_thread_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # otherwise a training on the CPU takes the cores that its workers leave


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path_factory.mktemp("videos"), per_class=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    config = folder.parent / "tiny.yaml"
    config.write_text("seed: 3\n")
    sources = [f"--data.train={videos}", f"--data.val={videos}", f"--out={folder}"]
    assert main(["train", "--config", str(config), *TRAIN, *sources]) == 0
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_line(error: str) -> str:
    lines = [line for line in error.splitlines() if line.startswith("stvid: error:")]
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [("swin3d_b_ssv2.yaml", []), ("uniformer_xxs_motion.yaml", ["--optim.lr", "0.5"]), (None, ["--data.workers=3"])],
)
def test_the_printed_config_is_complete_and_runs_again(
    name: str | None, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [] if name is None else ["--config", name]
    code, printed, _ = call(capsys, "train", "--print_config", *words, *options)
    assert code == 0
    stated = yaml.safe_load(printed)
    keys = {f"{section}.{key}" for section, values in stated.items() if isinstance(values, dict) for key in values}
    assert keys | {key for key, value in stated.items() if not isinstance(value, dict)} == set(config_keys())
    saved = tmp_path / "complete.yaml"
    saved.write_text(printed, encoding="utf-8")
    assert load_config(saved) == load_config(name, options)
    assert call(capsys, "train", "--config", str(saved), "--print_config")[1] == printed


def test_a_mistake_is_named_instead_of_a_printed_config(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, error = call(capsys, "train", "--config", "swin3d_b_ssv2.yaml", "--optim.lrr=1", "--print_config")
    assert code == 2 and printed == "" and "nearest: optim.lr" in one_line(error)


def test_the_config_of_a_run_is_complete(run: Path) -> None:
    config = load_config(run / "config.yaml")
    assert (run / "config.yaml").read_text(encoding="utf-8") == dump_config(config)
    assert config.seed == 3 and config.output == str(run)


def test_test_writes_results_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "test", "--checkpoint", str(run), "--workers=0", "--views=2x3")
    assert code == 0 and "top1@2x3" in out and "9 videos counted" in out
    assert "protocol.views: 2x3 instead of 2x1" in err
    result = json.loads((run / "result.json").read_text())
    assert set(result) >= {"metrics", "protocol", "videos", "command", "versions"}
    assert 0 <= result["metrics"]["top1@2x3"] <= 1 and result["videos"] == {"counted": 9, "failed": []}
    assert (run / "logits.npz").is_file()
    code, out, _ = call(capsys, "test", "--checkpoint", str(run), "--workers=0", "--frame_order=frozen", "--json")
    assert code == 0 and json.loads(out)["temporal"] == "frozen" and (run / "test-frozen" / "result.json").is_file()


def test_test_on_other_videos(run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = tmp_path / "some.csv"
    paths = sorted(videos.glob("turn/*.mp4"))
    listing.write_text("path,label\n" + "".join(f"{path},turn\n" for path in paths) + "gone.mp4,left\n")
    arguments = ["--checkpoint", str(run / "checkpoints" / "last.ckpt"), "--workers=0", "--out", str(tmp_path / "o")]
    code, out, _ = call(capsys, "test", *arguments, "--data", str(listing))
    assert code == 0 and "3 videos counted" in out and "gone.mp4" in out
    metrics = json.loads((tmp_path / "o" / "result.json").read_text())["metrics"]
    assert metrics["top1@2x1_low"] <= metrics["top1@2x1"] <= metrics["top1@2x1_high"]
    listing.write_text(f"path,label\n{paths[0]},jump\n")
    code, _, err = call(capsys, "test", *arguments, "--data", str(listing))
    assert code == 1 and "jump" in one_line(err)


def test_predict(run: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(next(videos.rglob("*.mp4")))
    code, out, err = call(capsys, "predict", file, file, "--checkpoint", str(run), "--json", "--topk=2")
    predictions = json.loads(out)
    assert code == 0 and err == "" and len(predictions) == 2
    assert predictions[0]["classes"] == predictions[1]["classes"]
    assert set(predictions[0]["classes"]) < {"left", "right", "turn"}
    assert predictions[0]["probabilities"][0] >= predictions[0]["probabilities"][1]
    code, out, _ = call(capsys, "predict", file, "--checkpoint", str(run))
    assert code == 0 and "%" in out and "left" in out
    by_call = stvid.predict(str(run / "checkpoints" / "best.ckpt"), [file], topk=2)[0]
    assert by_call.classes == predictions[0]["classes"]
    assert by_call.probabilities == pytest.approx(predictions[0]["probabilities"], abs=1e-6)


def test_predict_overrides_the_protocol_and_says_so(
    run: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(next(videos.rglob("*.mp4")))
    code, _, err = call(capsys, "predict", file, "--checkpoint", str(run), "--protocol.stride", "1", "--views=1x3")
    assert code == 0 and "protocol.stride: 1 instead of 2" in err and "protocol.views: 1x3 instead of 2x1" in err


def test_predict_goes_on_past_bad_files(
    run: Path,
    videos: Path,
    tmp_path: Path,
    make_audio: Callable[[], Path],
    make_video: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = str(next(videos.rglob("*.mp4")))
    empty, text, cut = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "cut.mp4"
    empty.touch()
    text.write_text("this is no video")
    cut.write_bytes(Path(good).read_bytes()[:200])
    one = make_video("one.mp4", frames=1)
    bad = [empty, text, cut, make_audio(), tmp_path, tmp_path / "missing.mp4"]
    arguments = [str(path) for path in bad] + [good, str(one)]
    code, out, err = call(capsys, "predict", *arguments, "--checkpoint", str(run), "--json")
    predictions = json.loads(out)
    assert code == 1 and "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("stvid: error:")]
    assert len(errors) == len(bad) and all(str(path) in line for path, line in zip(bad, errors, strict=True))
    assert [prediction["error"] is None for prediction in predictions] == [False] * len(bad) + [True, True]


def test_published_weights_need_a_model_and_names(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, names = tmp_path / "authors.pth", tmp_path / "names.txt"
    torch.save({"model_state": stvid.create_model("uniformer_xxs", num_classes=3).state_dict()}, weights)
    file = str(next(videos.rglob("*.mp4")))
    code, _, err = call(capsys, "predict", file, "--checkpoint", str(weights))
    assert code == 1 and "--model" in one_line(err)
    named = ["--checkpoint", str(weights), "--model", "uniformer_xxs"]
    code, out, _ = call(capsys, "predict", file, *named)
    assert code == 0 and "class 0" in out
    names.write_text("left\nright\nturn\n")
    code, out, _ = call(capsys, "predict", file, *named, "--class_names", str(names))
    assert code == 0 and "turn" in out
    code, out, err = call(
        capsys,
        "test",
        *named,
        "--class_names",
        str(names),
        "--data",
        str(videos),
        "--workers=0",
        "--out",
        str(tmp_path / "o"),
    )
    assert code == 0, err
    names.write_text("left\nright\n")
    code, _, err = call(capsys, "predict", file, *named, "--class_names", str(names))
    assert code == 2 and "3 logits, but 2 class names" in one_line(err)


def test_readme_three_commands(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder per class without a split: train, test and predict as the first screen of the README says."""
    monkeypatch.chdir(tmp_path)
    quick = [option for option in TRAIN if not option.startswith("--protocol.views")]
    quick += ["--data.repeats=1", "--data.val_views=1x1"]
    code, _, err = call(capsys, "train", "--config", "uniformer_xxs_folder.yaml", "--data.train", str(videos), *quick)
    assert code == 0, err
    code, out, err = call(capsys, "test", "--checkpoint", "runs/uniformer_xxs_folder", "--workers=0")
    assert code == 0 and "3 videos counted" in out, err  # one of each class was held out
    file = str(next(videos.rglob("*.mp4")))
    code, out, err = call(capsys, "predict", file, "--checkpoint", "runs/uniformer_xxs_folder")
    assert code == 0 and "turn" in out, err


def test_names_of_the_checkpoint_are_not_overruled(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("right\nleft\nturn\n")
    file = str(next(videos.rglob("*.mp4")))
    code, _, err = call(capsys, "predict", file, "--checkpoint", str(run), "--class_names", str(names))
    assert code == 2 and "names its 3 classes itself" in one_line(err)
    names.write_text("left\nright\nturn\n")
    assert call(capsys, "predict", file, "--checkpoint", str(run), "--class_names", str(names))[0] == 0


@pytest.mark.parametrize(
    "option,message",
    [
        ("--optim.lr=3", "--optim.lr: has no meaning here"),
        ("--data.batch_size=3", "--data.batch_size: has no meaning here"),
        ("--protocol.strid=3", "nearest: protocol.stride"),
        ("--model=uniformer_b", "of uniformer_xxs, not of uniformer_b"),
    ],
)
def test_options_without_effect_are_refused(
    run: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "test", "--checkpoint", str(run), option)
    assert code in (1, 2) and message in one_line(err)


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "models", "uniformer_*", "--json")
    assert code == 0
    by_name = {record["name"]: record for record in json.loads(out)}
    assert by_name["uniformer_s"]["params_millions"] == 21.4 and by_name["uniformer_s"]["protocol"]["frames"] == 16
    code, out, _ = call(capsys, "models")
    assert code == 0 and all(name in out for name in stvid.list_models())
    code, _, err = call(capsys, "models", "unifromer_s")
    assert code == 2 and "uniformer_s" in one_line(err)


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "doctor", "--json")
    report = json.loads(out)
    assert code == 0 and report["usable"] and report["packages"]["torch"]["version"]
    assert report["decoders"]["av"] == "" and report["attention"]["sdpa"] == ""
    for name, problem in {**report["decoders"], **report["attention"]}.items():
        assert problem == "" or name in "".join(report["remedies"])
    code, out, _ = call(capsys, "doctor")
    assert code == 0 and "ready" in out and "cpu" in out


def test_doctor_names_the_command_that_mends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stvid.commands import doctor

    monkeypatch.setattr(doctor, "_import_problem", lambda name: "ImportError: broken" if name == "torchvision" else "")
    code, out, _ = call(capsys, "doctor", "--json")
    report = json.loads(out)
    assert code == 1 and not report["usable"]
    assert "pip install" in report["remedies"]["torchvision: ImportError: broken"]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_shows_types_and_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and f"usage: stvid {command}" in out
    if command in ("train", "test", "predict"):
        assert "type: " in out and "default: " in out
    if command in ("inspect", "explain", "features", "probe", "export", "demo", "predict"):
        assert "--checkpoint" in out and "default" in out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0 and all(command in out for command in COMMANDS)
    assert call(capsys)[0] == 2
    text = call(capsys, "train", "--help")[1]
    assert "--out " in text and "--output" not in text
    assert call(capsys, "--version")[1].strip() == f"stvid {stvid.__version__}"


@pytest.mark.parametrize(
    "arguments,code,message",
    [
        (["trian"], 2, "nearest: train"),
        (["train"], 2, "--config is missing"),
        (["train", "mine.yaml"], 2, "--config is missing; for example: stvid train --config mine.yaml"),
        (["benchmark", "uniformer_xxs", "--device", "abacus"], 2, "--device: 'abacus' cannot be used here"),
        (["train", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["train", "--config", "uniformer_s_k400.yaml", "--optim.lrr", "1"], 2, "nearest: optim.lr"),
        (["train", "--config", "uniformer_s_k400.yaml"], 1, "k400/train.csv"),
        (["train", "--config"], 2, "a value is missing"),
        (["train", "--resume", "nowhere"], 1, "nowhere"),
        (["predict", "x.mp4"], 2, "checkpoint"),
        (["predict", "x.mp4", "--chekpoint", "y"], 2, "nearest: --checkpoint"),
        (["predict", "x.mp4", "--checkpoint", "nowhere.ckpt"], 1, "nowhere.ckpt: no such"),
        (["test", "--checkpoint", "nowhere.ckpt", "--frame_order", "frozn"], 2, "frozn"),
        (["test", "--checkpoint", "x", "--probe", "tim"], 2, "--probe: expected 'time' or null, got 'tim'"),
        (["predict", "--checkpoint", "x"], 2, "FILES"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    got, _, err = call(capsys, *arguments)
    assert got == code and message in one_line(err)


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [(command, old, new) for command, names in OLD_NAMES.items() for old, new in names.items()],
)
def test_an_old_name_is_accepted_and_said_to_be_old(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, command, f"{old}=x")
    assert code == 2 and err.splitlines()[0] == f"{old} is now called {new}"
    assert "unknown option" not in one_line(err)  # but that something is missing, or x is no such value
    assert call(capsys, command, f"{new}=x")[2].splitlines() == err.splitlines()[1:]


def test_old_names_do_what_the_new_ones_do(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--checkpoint", str(run), "--workers=0", "--views=1x1", "--also=none"]
    for name, arguments in (
        ("old", ["--temporal", "frozen", "--output"]),
        ("new", ["--frame_order", "frozen", "--out"]),
    ):
        code, _, err = call(capsys, "test", *options, *arguments, str(tmp_path / name))
        assert code == 0 and err.count(" is now called ") == (2 if name == "old" else 0)
    old, new = (stvid.EvaluationResult.load(tmp_path / name) for name in ("old", "new"))
    assert old.temporal == new.temporal == "frozen" and old.metrics == new.metrics


def test_bad_checkpoints(run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(next(videos.rglob("*.mp4")))
    torn, text, folder = tmp_path / "torn.ckpt", tmp_path / "text.ckpt", tmp_path / "empty"
    torn.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    text.write_text("weights")
    folder.mkdir()
    for path in (torn, text, folder):
        code, _, err = call(capsys, "predict", file, "--checkpoint", str(path))
        assert code == 1 and str(path) in one_line(err)
    code, _, err = call(capsys, "predict", file, "--checkpoint", str(run), "--protocol.frmes", "3")
    assert code == 2 and "nearest: protocol.frames" in one_line(err)


def test_a_folder_that_cannot_be_written(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    taken = str(tmp_path / "file" / "run")
    code, _, err = call(capsys, "test", "--checkpoint", str(run), "--workers=0", "--out", taken)
    assert code == 1 and taken in one_line(err)
    config = tmp_path / "tiny.yaml"
    config.write_text("")
    sources = [f"--data.train={videos}", f"--out={taken}"]
    code, _, err = call(capsys, "train", "--config", str(config), *TRAIN, *sources)
    assert code == 2 and "cannot be written" in one_line(err)


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(arguments: Any) -> int:
        raise RuntimeError("something\nodd")

    monkeypatch.setitem(COMMANDS, "models", broken)
    code, _, err = call(capsys, "models")
    assert code == 70 and "internal error: RuntimeError: something odd" in one_line(err)
    monkeypatch.setenv("STVID_DEBUG", "1")
    assert "Traceback" in call(capsys, "models")[2]


def test_test_reports_all_protocols_of_one_pass(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "o")
    arguments = ["--checkpoint", str(run), "--workers=0", "--views=4x3", "--out", output]
    code, out, _ = call(capsys, "test", *arguments, "--probe=time", "--average=logits", "--also=1x1,4x1")
    assert code == 0 and "report.html" in out and "frames shuffled: top1@4x3" in out
    record = json.loads((tmp_path / "o" / "result.json").read_text())
    assert {"top1@4x3", "top1@1x1", "top1@4x1"} <= set(record["metrics"]) and record["average"] == "logits"
    assert set(record["probe"]) == {"reversed", "shuffled", "frozen"} and record["cost"]["gflops"] > 0
    page = (tmp_path / "o" / "report.html").read_text()
    assert "Does it use time?" in page and "data:image/jpeg" in page and "logits over the views" in page
    code, out, _ = call(capsys, "test", "--checkpoint", str(run), "--workers=0", "--views=4x1", "--also=none",
                        "--average=logits", "--out", str(tmp_path / "alone"), "--json")  # fmt: skip
    alone = json.loads(out)["metrics"]
    assert code == 0 and alone == {name: value for name, value in record["metrics"].items() if "@4x1" in name}


def test_test_never_overwrites_the_result_of_something_else(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    checkpoint = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "checkpoints")
    arguments = ["test", "--checkpoint", str(checkpoint), "--workers=0", "--json"]
    assert call(capsys, *arguments)[0] == 0
    before = (tmp_path / "result.json").read_text()
    assert call(capsys, *arguments, "--views=1x1", "--data", str(videos))[0] == 0
    assert (tmp_path / "result.json").read_text() == before
    other = [folder.name for folder in tmp_path.iterdir() if folder.name.startswith("test-1x1-")]
    assert len(other) == 1 and (tmp_path / "result.json").read_text() == before
    named = ["--views=1x1", "--out", str(tmp_path)]
    code, _, err = call(capsys, *arguments, *named)
    assert code == 2 and "holds the result of another evaluation" in one_line(err)
    assert (tmp_path / "result.json").read_text() == before
    assert call(capsys, *arguments, *named, "--overwrite")[0] == 0
    assert "top1@1x1" in (tmp_path / "result.json").read_text()


def test_an_interrupted_test_says_how_to_go_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stvid.evaluation import evaluate as module

    calls: list[int] = []
    original = module.sample_logits

    def stop(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    command = ["test", "--checkpoint", str(run), "--workers=0", "--batch_size=2", "--out", str(tmp_path), "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "sample_logits", stop)
        code, _, err = call(capsys, *command)
    assert code == 130 and "the same command goes on" in err and one_line(err).endswith("interrupted")
    assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"]
    code, out, err = call(capsys, *command)
    assert code == 0 and "continuing: 4 of 9 videos are done" in err and json.loads(out)["videos"]["counted"] == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logits.npz", "report.html", "result.json"]


def test_compare(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, option in (("a", "--frame_order=normal"), ("b", "--frame_order=frozen")):
        call(capsys, "test", "--checkpoint", str(run), "--workers=0", option, "--out", str(tmp_path / name))
    code, out, _ = call(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b" / "result.json"))
    assert code == 0 and "McNemar" in out and "95% interval" in out and "9 videos" in out
    code, out, _ = call(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json")
    record = json.loads(out)
    assert code == 0 and record["videos"] == 9 and {item["support"] for item in record["per_class"]} == {3}
    code, _, err = call(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "c"))
    assert code == 1 and "result.json" in one_line(err)
    code, _, err = call(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--resamples=0")
    assert code == 2 and "--resamples" in one_line(err)


def test_benchmark_measures_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "uniformer_xxs", "--frames", "4", "--img_size", "32", "--seconds", "0.05", "--json"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["clip"] == [1, 3, 4, 32, 32] and figures["milliseconds"] > 0 and figures["gflops_per_clip"] > 0
    assert main([*arguments, "--step", "train"]) == 0
    assert main([*arguments, "--step", "train", "--optimize"]) == 2
    assert "--optimize is for inference" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "explain", "features", "probe", "export", "demo", "predict"])
def test_help_names_the_checkpoint(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and "--checkpoint" in out and "default" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "some.mp4"], "--checkpoint: missing; stvid predict --help"),
        (["explain"], "FILES, --checkpoint: missing"),
        (["export", "--checkpoint", "x"], "--out: missing"),
        (["compare", "a"], "SECOND: missing"),
        (["compare", __file__, "a"], "test_cli.py: neither a result.json nor a folder that holds one"),
        (["benchmark", "uniformer_xxs", "--img_size", "5"], "uniformer_xxs: UniFormer takes clips of at least"),
        (["benchmark", "uniformer_xxs", "--threads", "0"], "--threads: 0 is not"),
        (["benchmark", "uniformer_xxs", "--seconds", "0"], "--seconds: 0 is not"),
        (["inspect", "gone.mp4", "--config", "uniformer_xxs_motion.yaml"], "gone.mp4: no such file"),
    ],
)
def test_mistakes_are_said_once(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, *arguments)
    assert code in (1, 2) and words in err and err.count("error") == 1


@pytest.mark.parametrize("name", ["-x.mp4", "--crop.mp4"])
def test_a_file_that_begins_with_a_dash_is_no_option(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"no video")
    code, _, err = call(capsys, "inspect", name, "--config", "uniformer_xxs_motion.yaml", "--clips", "test")
    assert code == 1 and f"/{name}: " in one_line(err) and "option" not in err
    code, _, err = call(capsys, "inspect", f"-y{name}", "--config", "uniformer_xxs_motion.yaml")
    assert code == 2 and "-y" in err
