"""Commands whose videos are shared out: among processes of torchrun, of SLURM, and of ``--devices``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def videos(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_dataset(tmp_path_factory.mktemp("shared") / "videos", per_class=2)
    (folder / "turn" / "zz.mp4").write_text("no video")  # the last: a batch that holds it is done again
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def contents(folder: Path) -> dict[str, Any]:
    """The result that a test wrote, but for the command and the time that it took."""
    assert sorted(path.name for path in folder.iterdir()) == ["logits.npz", "report.html", "result.json"]
    found = json.loads((folder / "result.json").read_text())
    for name in ("command", "run"):
        del found[name]
    found["cost"].pop("seconds", None)
    arrays = dict(np.load(folder / "logits.npz"))
    del arrays["run"]
    return {**found, "arrays": {name: (str(value.dtype), value.tolist()) for name, value in arrays.items()}}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def as_slurm_tasks(arguments: Sequence[str], *, tasks: int, script: Path | None = None) -> list[subprocess.Popen[str]]:
    """Starts ``stvid`` as ``srun`` starts it, with SLURM's variables."""
    shared = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "stvid", "SLURM_NTASKS": str(tasks), "SLURM_NODEID": "0"}
    shared |= {"SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "localhost"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    program = [sys.executable, "-m", "stvid"] if script is None else [sys.executable, str(script)]
    return [
        subprocess.Popen(
            [*program, *arguments],
            env={**os.environ, **shared, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in range(tasks)
    ]


def options_of(checkpoint: str, videos: Path, out: Path) -> list[str]:
    options = ["test", "--checkpoint", checkpoint, "--data", str(videos), "--workers", "0", "--device", "cpu"]
    return [*options, "--views", "1x3", "--also", "none", "--out", str(out)]


def test_joined_parts_are_what_one_process_writes(checkpoint: str, videos: Path, tmp_path: Path, call: Call) -> None:
    assert call(*options_of(checkpoint, videos, tmp_path / "one"))[0] == 0
    parts = options_of(checkpoint, videos, tmp_path / "two")
    for number in (1, 2):
        code, out, err = call(*parts, "--shard", f"{number}/2")
        assert code == 0 and f"shard {number}/2: " in out, err
    elsewhere = [*parts, "--device", "cuda:9"]  # joined where the device of the parts is not
    assert call("prep", "merge", *elsewhere)[0] == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")

    files = [str(path) for path in sorted(videos.rglob("*.mp4"))]
    options = ["predict", *files, "--checkpoint", checkpoint, "--to", "json", "--device", "cpu", "--out"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert call(*options, one)[0] == 1  # one of the files is no video
    for number in (1, 2):
        assert call(*options, two, "--shard", f"{number}/2")[0] == 0
    assert call("prep", "merge", *options, two, "--device", "cuda:9")[0] == 1
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.slow
def test_devices_of_this_machine(checkpoint: str, videos: Path, tmp_path: Path, call: Call) -> None:
    assert call(*options_of(checkpoint, videos, tmp_path / "one"))[0] == 0
    code, out, err = call(*options_of(checkpoint, videos, tmp_path / "two"), "--devices", 2)
    assert code == 0 and "written to " in out, err
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    files = [str(path) for path in sorted(videos.rglob("*.mp4"))]
    arguments = ["predict", *files, "--checkpoint", checkpoint, "--device", "cpu", "--json"]
    assert call(*arguments, "--devices", 2)[:2] == call(*arguments)[:2]


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        ("test", ["--devices", "0"], "--devices 0: is neither a number from 1 on nor auto"),
        ("test", ["--devices", "two"], "--devices two: is neither"),
        ("test", ["--devices", "2", "--shard", "1/2"], "a --shard is done by one process"),
        ("test", ["--shard", "3/2"], "--shard 3/2: is not i/n"),
        ("test", ["--shard", "slurm"], "SLURM_ARRAY_TASK_ID"),
        ("test", ["--ray_address", "auto"], "belongs to --engine ray"),
        ("test", ["--engine", "ray", "--optimize"], "leave it out with --engine ray"),
        ("test", ["--engine", "ray", "--devices", "2"], "takes the devices of the cluster"),
        ("features", ["--engine", "ray", "--devices", "2"], "takes the devices of the cluster"),
        ("predict", ["--shard", "1/2"], "--shard: needs --to and --out"),
        ("predict", ["--shard", "1/2", "--window", "1s"], "with --window give each process a list"),
        ("predict", ["--engine", "ray"], "--engine ray: needs --to and --out"),
        ("predict", ["--ray_address", "auto"], "belongs to --engine ray"),
        ("predict", ["--workers", "1", "--window", "1s"], "--workers: decode clips"),
        ("predict", ["--workers", "-1"], "workers"),
    ],
)
def test_options_that_do_not_fit(
    command: str, more: list[str], said: str, checkpoint: str, videos: Path, video: str, tmp_path: Path, call: Call
) -> None:
    own = [video] if command == "predict" else ["--data", videos, "--out", tmp_path]
    code, _, err = call(command, *own, "--checkpoint", checkpoint, "--device", "cpu", *more)
    assert code == 2 and said in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun(checkpoint: str, videos: Path, tmp_path: Path, call: Call) -> None:
    assert call(*options_of(checkpoint, videos, tmp_path / "one"))[0] == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    options = options_of(checkpoint, videos, tmp_path / "two")
    ended = subprocess.run([*launcher, "-m", "stvid", *options], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("written to ") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_of_slurm(checkpoint: str, videos: Path, tmp_path: Path, call: Call) -> None:
    assert call(*options_of(checkpoint, videos, tmp_path / "one"))[0] == 0
    tasks = as_slurm_tasks(options_of(checkpoint, videos, tmp_path / "two"), tasks=2)
    (first, _), (second, errors) = (task.communicate(timeout=200) for task in tasks)
    assert [task.returncode for task in tasks] == [0, 0]
    assert first.count("written to ") == 1 and second == "" and "stvid" not in errors
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_features_of_tasks_of_slurm(checkpoint: str, videos: Path, tmp_path: Path, call: Call) -> None:
    def arguments(out: str) -> list[str]:
        options = ["features", "--checkpoint", checkpoint, "--data", str(videos), "--workers", "0", "--device", "cpu"]
        return [*options, "--out", str(tmp_path / out)]

    assert call(*arguments("one"), "--devices", 1)[0] == 1
    tasks = as_slurm_tasks(arguments("two"), tasks=2)
    ((shown, errors), _) = (task.communicate(timeout=200) for task in tasks)
    assert "6 videos written, 0 were there, 1 failed" in shown and errors.count("zz.mp4") == 1
    one, two = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two


DYING = """
import os, signal, sys, time
from stvid.cli import main
from stvid.evaluation.evaluate import Evaluation

measure, batches = Evaluation.measure, []

def dying(self, samples, place):
    batches.append(samples)
    if len(batches) == 2:
        if os.environ["SLURM_PROCID"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(200)
    return measure(self, samples, place)

Evaluation.measure = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_task_that_dies_ends_all_and_the_same_command_goes_on(
    checkpoint: str, videos: Path, tmp_path: Path, call: Call
) -> None:
    assert call(*options_of(checkpoint, videos, tmp_path / "one"))[0] == 0
    (tmp_path / "dying.py").write_text(DYING)
    out = tmp_path / "two"
    began = time.monotonic()
    tasks = as_slurm_tasks(options_of(checkpoint, videos, out), tasks=2, script=tmp_path / "dying.py")
    (_, errors), _ = (task.communicate(timeout=150) for task in tasks)
    assert time.monotonic() - began < 150 and tasks[0].returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("stvid: error")]
    assert len(lines) == 1 and "process 1 of 2 ended before the work was done" in lines[0]
    assert {path.name for path in out.glob("*.jsonl")} == {"test.1-of-2.jsonl", "test.2-of-2.jsonl"}
    # On another number of devices, what was done is kept.
    code, _, err = call(*options_of(checkpoint, videos, out), "--devices", 3)
    assert code == 0 and "continuing: " in err
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_predictions_of_ray(
    checkpoint: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the workers
    files = [*map(str, sorted(videos.rglob("*.mp4"))), str(tmp_path / "missing.mp4")]
    options = ["predict", *files, "--checkpoint", checkpoint, "--to", "json", "--device", "cpu", "--out"]
    assert call(*options, str(tmp_path / "one.json"), "--workers", "1")[0] == 1  # one video is missing
    code, out, err = call(*options, str(tmp_path / "ray.json"), "--engine", "ray", "--workers", "2")
    assert code == 1 and f"of {len(files)} videos: " in out, err
    assert (tmp_path / "ray.json").read_text() == (tmp_path / "one.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "ray.json"]
