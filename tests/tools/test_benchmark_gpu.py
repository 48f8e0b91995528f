"""The GPU benchmark keeps to its time, and what goes wrong in a row is a line of its table."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import stvid

ROOT = Path(__file__).parent.parent.parent
TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], Any]) -> Any:
    return load_tool("benchmark_gpu")


@pytest.fixture
def run(tool: Any, tmp_path: Path) -> Any:
    """A run on the CPU with an hour left."""
    report = tool.Report(tmp_path / "docs" / "gpu.md", {"machine": "a test"})
    lane = tool.Lane("cpu", 1)
    return tool.Run(tool.SMOKE, report, torch.device("cpu"), time.monotonic() + 3600, 1, lane)


def test_what_is_measured_exists_and_is_named_once(tool: Any) -> None:
    names = [case.model for case in tool.MODELS]
    assert len(set(names)) == len(names) >= 12 and set(names) <= set(stvid.list_models())
    clips = {peer.model: peer.clip for peer in tool.PEERS}
    assert all(case.clip == clips.get(case.model, case.clip) for case in tool.MODELS)


def test_without_a_gpu_one_line_says_so(tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        tool.main([])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("no CUDA device") and error.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        tool.main(["--device", "cpu"])
    assert ended.value.code == 2 and "needs --smoke" in capsys.readouterr().err


def test_the_turns_are_fair_and_end(tool: Any) -> None:
    calls: list[str] = []
    works = {name: (lambda name=name: (calls.append(name), time.sleep(0.03))) for name in ("a", "b")}
    seconds = tool.time_by_turns(works, torch.device("cpu"), rounds=7, limit=0.1)
    assert all(0.03 <= taken < 1 for taken in seconds.values())
    assert calls.count("a") == calls.count("b") and 4 <= calls.count("a") <= 7  # one to estimate, then three turns


def test_a_work_that_fails_is_left_out_with_its_reason(tool: Any) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")

    def broken() -> None:
        raise RuntimeError("no kernel | here\nand a trace")

    problems: dict[str, str] = {}
    usable = tool.try_out({"full": full, "broken": broken, "fine": lambda: None}, problems)
    assert list(usable) == ["fine"]
    assert problems == {"full": "out of memory", "broken": "RuntimeError: no kernel / here"}


def test_the_cells_of_a_row(tool: Any) -> None:
    row = {
        "case": tool.Case("r3d_18", (4, 32, 32), 8),
        "batch": 8,
        "step": "train",
        "seconds": {"stvid": 0.5},
        "problems": {"peer": "out of memory"},
        "bytes": {"stvid": 3_000_000_000},
        "difference": 2e-6,
        "peer": "torchvision 1",
        "note": "",
    }
    cells = dict(zip(tool.MODEL_COLUMNS, tool.model_cells(row), strict=True))
    assert cells["clip"] == "4x32x32" and cells["stvid clips/s"] == "16.0" and cells["stvid GB"] == "3.00"
    assert cells["peer clips/s"] == "out of memory" and cells["stvid / peer"] == "-" and cells["notes"] == ""
    row["seconds"]["peer"], row["problems"] = 0.75, {}
    assert dict(zip(tool.MODEL_COLUMNS, tool.model_cells(row), strict=True))["stvid / peer"] == "1.50"
    for columns, cells_of, kind, subject in (
        (tool.CONVOLUTION_COLUMNS, tool.convolution_cells, "convolution", tool.SMOKE.convolutions[0]),
        (tool.ATTENTION_COLUMNS, tool.attention_cells, "attention", tool.SMOKE.calls[1]),
    ):
        _, *rows = tool.KINDS[kind](subject, 1, torch.device("cpu"))
        assert rows and all(len(cells_of(row)) == len(columns) for row in rows)
        assert all(row["seconds"] for row in rows)


def test_an_absent_library_is_named(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (peer,) = (peer for peer in tool.PEERS if peer.model == "timesformer_base")
    absent = type(peer)(peer.model, "no_such_library", peer.build, peer.clip)
    monkeypatch.setattr(tool, "PEERS", (absent,))
    case = tool.Case("timesformer_base", (2, 32, 32), 1, TINY)
    model, network, library, _ = tool.build_networks(case, torch.device("cpu"))
    assert isinstance(model, stvid.models.base.VideoModel) and network is None
    assert library == "no_such_library is not installed"


def test_what_has_no_time_is_listed(tool: Any, run: Any) -> None:
    run.end = time.monotonic() + 2
    run.convolutions()
    run.compiled()
    assert run.lane.process is None  # nothing was started
    text = run.report.path.read_text()
    assert run.report.left_out == ["Depthwise 3D convolutions: tiny", "Models, compiled: xvit_base"]
    run.report.write()
    assert "- Depthwise 3D convolutions: tiny" in run.report.path.read_text()
    assert "| machine | a test |" in text and str(ROOT) not in text


def test_a_job_that_fails_is_a_row(tool: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(subject: Any, batch: int, device: torch.device) -> Iterator[Any]:
        yield tool.READY
        yield {"case": subject, "fine": True}
        raise ValueError("too small")

    monkeypatch.setitem(tool.KINDS, "model", fails)
    ours, theirs = multiprocessing.Pipe()
    worker = threading.Thread(target=tool.serve, args=(theirs, "cpu", 1), daemon=True)
    worker.start()
    lane = tool.Lane("cpu", 1)
    lane.process, lane.pipe = worker, ours  # what `begin` would start
    for _ in range(2):  # the second job finds the process as it was
        rows = list(lane.run(tool.Job("model", tool.MODELS[0]), time.monotonic() + 60))
        assert [row.get("problem") for row in rows] == [None, "ValueError: too small"]
    ours.close()
    worker.join(10)
    assert not worker.is_alive()
    section = tool.Section("Models", "", tool.MODEL_COLUMNS)
    tool.add_row(section, rows[1], tool.model_cells)
    assert section.lines == [("uniformer_s", *["-"] * (len(tool.MODEL_COLUMNS) - 2), "ValueError: too small")]


@pytest.mark.slow
def test_a_job_that_takes_too_long_is_stopped(tool: Any) -> None:
    lane = tool.Lane("cpu", 1)
    job = tool.Job("convolution", tool.SMOKE.convolutions[0])
    (stopped,) = lane.run(job, time.monotonic() + 0.2)
    assert stopped["problem"] == "stopped after 0 s" and lane.process is None
    (row,) = lane.run(job, time.monotonic() + 120)  # in another process
    assert row["seconds"]
    lane.stop()


@pytest.mark.slow
def test_a_whole_run_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [sys.executable, str(ROOT / "tools" / "benchmark_gpu.py"), "--device", "cpu", "--smoke"]
    done = subprocess.run([*command, "--out", str(out), "--budget", "280"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    assert "exit code 0" in text and " passed" in text
    for title in ("Models", "Models, compiled", "Depthwise 3D convolutions", "Attention", "Tests"):
        assert f"\n## {title}\n" in text
    for row in ("| r3d_18 | 2x16x16 | 2 | train |", "| uniformer_xxs |", "| xvit_base |", "| tiny |"):
        assert row in text and row in done.stdout
    assert "Left out" not in text and str(ROOT) not in text
