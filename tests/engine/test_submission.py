"""Trainings as jobs: the script that SLURM gets, and a real job on this machine that is stopped and started again."""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stvid.cli import main
from stvid.engine.submission import JobRequest, TrainingJob, minutes, preemption_signal
from stvid.errors import ConfigError, StvidError

COMMON = {
    "config": "uniformer_xxs_folder",
    "model.hyperparameters": "{depth: [1, 1, 1, 1], embed_dim: [8, 8, 16, 16], head_dim: 8}",
    "data.batch_size": "2",
    "data.workers": "0",
    "protocol.frames": "4",
    "protocol.short_side": "40",
    "protocol.crop": "32",
    "trainer.accelerator": "cpu",
    "trainer.devices": "1",
    "trainer.log_every_n_steps": "1",
}


@pytest.fixture
def options(tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the job
    monkeypatch.chdir(tmp_path)
    videos = make_dataset(tmp_path / "videos", classes=("a", "b"), per_class=4)
    values = {**COMMON, "data.train": str(videos), "data.val": "null"}
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.mark.parametrize(
    "text,expected",
    [("90", 90), ("0:30", 1), ("5:30", 6), ("8:00:00", 480), ("2-12", 3600), ("1-0:30", 1470), ("1-0:0:1", 1441)],
)
def test_time_limits_as_slurm_writes_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "2h", "1:2:3:4", "-5"])
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--time: "):
        minutes(text)


@pytest.mark.parametrize(
    "words,message",
    [
        (["--submit", "slrm"], "--submit: 'slrm' is not one of slurm, local"),
        (["--nodes", "4"], "--nodes: belongs to a job of a cluster; add --submit slurm"),
        (["--submit=slurm", "--nodes=0"], "--nodes: 0 is not a whole number from 1 up"),
        (["--submit=slurm", "--gpus_per_node=all"], "--gpus_per_node: 'all' is not a whole number from 1 up"),
        (["--submit=local", "--nodes=2"], "--nodes: 2 is more than the one machine of --submit local"),
        (["--submit=slurm", "--time=soon"], "--time: 'soon' is no time limit"),
        (["--submit=local", "--find_lr"], "--find_lr: prints what it finds; leave out --submit"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *options, *words]) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_a_library_that_is_not_there(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "submitit" else find(name))
    assert main(["train", *options, "--submit", "slurm"]) == 2
    assert "--submit: submitit is not installed; pip install 'stvid[slurm]'" in capsys.readouterr().err


def test_devices_that_cannot_be_known() -> None:
    with pytest.raises(ConfigError, match=r"^--gpus_per_node: not set"):
        JobRequest("slurm", nodes=2).parameters("auto", "x")
    assert JobRequest("slurm", nodes=2).parameters(3, "x")["tasks_per_node"] == 3


def test_the_signal_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    assert preemption_signal() is None
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.delenv("SUBMITIT_PREEMPT_SIGNAL", raising=False)
    assert preemption_signal() == signal.SIGUSR2


def test_a_job_that_is_started_again_continues(tmp_path: Path) -> None:
    ran: list[list[str]] = []

    def command(options: Sequence[str]) -> int:
        ran.append(list(options))
        return len(ran) - 1

    job = TrainingJob(["--config", "x"], ["--resume", "y"], tmp_path, command)
    assert job() == 0
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(StvidError, match="ended with code 1"):
        job()
    assert ran == [["--config", "x"], ["--resume", "y"]]


def fake_slurm(folder: Path) -> Path:
    """Makes a ``sbatch`` that keeps the script that it gets, and an ``srun`` that is there; returns their folder."""
    folder.mkdir()
    sbatch = folder / "sbatch"
    sbatch.write_text(f'#!/bin/sh\ncp "$1" {folder}/script\necho Submitted batch job 4711\n')
    (folder / "srun").write_text("#!/bin/sh\n")
    for path in (sbatch, folder / "srun"):
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def test_the_script_for_slurm(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", f"{fake_slurm(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    job = ["--submit", "slurm", "--nodes", "4", "--gpus_per_node", "8", "--time", "1-0", "--partition", "video"]
    for run in ("uniformer_xxs_folder", "uniformer_xxs_folder-2"):  # the first one waits: its folder is taken
        assert main(["train", *options, *job]) == 0
        printed = capsys.readouterr().out
        folder = tmp_path / "runs" / run
        assert f"submitted job 4711\nlogs      {folder}/jobs\noutput    {folder}\n" == printed
    script = (tmp_path / "bin" / "script").read_text().splitlines()
    for line in ("nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "time=1440", "partition=video", "open-mode=append"):
        assert f"#SBATCH --{line}" in script
    assert any(line.startswith("#SBATCH --signal=USR2@") for line in script)
    command = (folder / "jobs" / "4711_command.txt").read_text()
    assert "--trainer.num_nodes=4 --trainer.devices=8" in command and f"--out={folder}" in command
    assert "--submit" not in command and "--nodes" not in command


def test_a_cluster_that_is_not_there(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", *options, "--submit", "slurm"]) == 2
    assert "--submit slurm: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_is_preempted_ends_with_the_same_weights(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The signal comes in the middle of an epoch; the job is put back, and goes on exactly there."""
    submitit = pytest.importorskip("submitit")
    jobs: list[Any] = []
    original = submitit.AutoExecutor.submit

    def keep(self: Any, *args: Any, **more: Any) -> Any:
        jobs.append(original(self, *args, **more))
        return jobs[-1]

    monkeypatch.setattr(submitit.AutoExecutor, "submit", keep)
    options = [*options, "--trainer.max_epochs=60", "--trainer.keep=1"]
    assert main(["train", *options, "--out=job", "--submit=local"]) == 0
    (job,) = jobs
    assert f"submitted job {job.job_id}" in capsys.readouterr().out
    log = tmp_path / "job" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 20):
        assert time.monotonic() < deadline, job.stderr()
        time.sleep(0.05)
    children = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGUSR2)
    assert job.result() == 0
    job._process.wait()
    printed = job.stdout() or ""
    assert "Requeued job" in (job.stderr() or "") + printed and "resume    " in printed
    assert main(["train", *options, "--out=whole"]) == 0
    ends = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("job", "whole")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])
