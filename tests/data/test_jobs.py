"""Work in processes that fail, die and are interrupted."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stvid.data.jobs import Job, Outcome, _keep, merge_parts, run_jobs
from stvid.data.parts import Part
from stvid.data.stage_base import Stage
from stvid.errors import ConfigError, StvidError, VideoError
from stvid.journal import Journal


class Measure(Stage):
    """What the tests have done in processes: the name of a file says what happens to it."""

    fields: ClassVar[Mapping[str, type]] = {"bytes": int, "factor": int}

    def work(self, path: str) -> Mapping[str, Any]:
        name = os.path.basename(path)
        if name.startswith("dies"):
            os._exit(7)
        if name.startswith("bad"):
            raise VideoError(path, "is bad")
        if name.startswith("defect"):
            raise KeyError("oops")
        size = os.path.getsize(path)
        with open(os.path.join(os.path.dirname(path), "calls"), "a") as calls:
            calls.write(f"{name}\n")
        return {"bytes": size, "factor": self.options["factor"]}


def measuring(keys: list[str], journal: Path, factor: int = 2) -> Job:
    return Job(Measure({"factor": factor}), keys, "measure", journal)


def make(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).write_text(name)
    return [str(folder / name) for name in names]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this module importable by the processes that are started; pytest imports it without a package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(Measure, "__module__", "test_jobs")
    monkeypatch.setitem(sys.modules, "test_jobs", sys.modules[__name__])


def test_a_worker_that_dies_is_listed_and_all_else_is_done(tmp_path: Path, importable: None) -> None:
    keys = make(tmp_path, "a", "dies", "bad", "b", "defect", "c")
    keys.append(str(tmp_path / "missing"))
    journal = tmp_path / "journal.jsonl"
    outcomes = run_jobs(measuring(keys, journal), workers=2)
    assert [outcome.key for outcome in outcomes] == keys
    errors = {Path(outcome.key).name: outcome.error for outcome in outcomes}
    assert [name for name, error in errors.items() if not error] == ["a", "b", "c"]
    assert errors["dies"].endswith("takes the process that reads it down")
    assert errors["bad"] == f"{keys[2]}: is bad"
    assert "internal error: KeyError: 'oops'" in errors["defect"]
    assert errors["missing"] == f"{keys[6]}: No such file or directory"
    assert outcomes[0].result == {"bytes": 1, "factor": 2}

    # A second run does what failed, what has changed, and what is new; a line that was cut off does not matter.
    calls = tmp_path / "calls"
    assert {*calls.read_text().split()} == {"a", "b", "c"}  # one in work when a process dies is done twice
    calls.unlink()
    with open(journal, "a") as file:
        file.write('{"key": "' + keys[3])
    (tmp_path / "b").write_text("longer")
    (tmp_path / "missing").write_text("now")
    again = [keys[0], keys[3], keys[6], *make(tmp_path, "new")]
    outcomes = run_jobs(measuring(again, journal), workers=2)
    assert [outcome.result["bytes"] for outcome in outcomes] == [1, 6, 3, 3]
    assert sorted(calls.read_text().split()) == ["b", "missing", "new"]

    calls.unlink()
    assert run_jobs(measuring(again, journal), workers=2) == outcomes
    assert not calls.exists()


class _BreakingPool(concurrent.futures.ThreadPoolExecutor):
    """Has done all its work, but for files that take a process down, before anybody looks."""

    def __init__(self, workers: int, **process_options: Any) -> None:
        super().__init__(workers)

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        if os.path.basename(args[1]).startswith("dies"):
            future.set_exception(BrokenProcessPool("a process died"))
        else:
            future.set_result(work(*args, **kwargs))
        return future


def test_what_ended_before_a_process_died_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", _BreakingPool)
    keys = make(tmp_path, "dies", *(f"file{i}" for i in range(7)))
    outcomes = run_jobs(measuring(keys, tmp_path / "journal"), workers=4)
    assert [bool(outcome.error) for outcome in outcomes] == [True] + [False] * 7
    assert sorted((tmp_path / "calls").read_text().split()) == [f"file{i}" for i in range(7)]


def test_a_journal_of_another_job_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text(json.dumps({"job": {"title": "measure", "factor": 2}}) + "\n")
    with pytest.raises(ConfigError, match=r"belongs to a run with other options .* delete it to start again"):
        run_jobs(measuring([], journal, factor=3), workers=1)
    assert run_jobs(measuring([], journal), workers=1) == []
    journal.write_text('{"job":\n{}\n')  # whose job is not known
    with pytest.raises(StvidError, match="is not the journal of a job; delete it or move it away"):
        run_jobs(measuring([], journal), workers=1)
    with pytest.raises(ConfigError, match="--workers 0: at least 1"):
        run_jobs(measuring([], journal), workers=0)


def test_what_a_journal_holds_counts_only_if_it_is_still_there(tmp_path: Path) -> None:
    (key,) = make(tmp_path, "a")
    status = os.stat(key)
    record = {"key": key, "stamp": [status.st_size, status.st_mtime_ns], "result": {"out": 1}, "error": ""}

    def kept(*records: dict[str, Any], intact: Callable[[Mapping[str, Any]], bool] = lambda result: True) -> list[str]:
        journal = tmp_path / "journal"
        journal.unlink(missing_ok=True)
        done: dict[str, Outcome] = {}
        with Journal(journal, {"job": {}}, what="the journal of a job", each=lambda found: None) as file:
            for entry in records:
                file.add(entry)
        with Journal(journal, {"job": {}}, what="the journal of a job", each=lambda found: _keep(done, found, intact)):
            return list(done)

    assert kept(record) == [key]
    assert not kept(record, intact=lambda result: result["out"] != 1)
    assert not kept({**record, "stamp": [0, 0]})
    assert not kept(record, {**record, "error": "later"})


def test_a_result_that_is_not_understood_is_not_done(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"1")
    stamp = [1, video.stat().st_mtime_ns]
    done: dict[str, Outcome] = {}
    for result, count in (({"out": "x"}, 1), ({}, 0), ({"out": ["x"]}, 0), ({"out": None}, 0)):
        record = {"key": str(video), "stamp": stamp, "result": result, "error": ""}
        _keep(done, record, lambda found: len(found["out"] + "") > 0)
        assert len(done) == count


@pytest.mark.usefixtures("in_process")
def test_parts_are_merged_to_what_one_process_writes(tmp_path: Path) -> None:
    keys = make(tmp_path, "a", "b", "bad", "c", "d", "e", "f")
    journal = tmp_path / "journal.jsonl"
    expected = run_jobs(measuring(keys, journal))
    text = journal.read_bytes()
    journal.unlink()

    job = measuring(keys, journal)
    for number in (2, 3, 2):
        done = run_jobs(job, part=Part(number, 3))
        assert [outcome.key for outcome in done] == keys[number - 1 :: 3]
    with pytest.raises(StvidError, match=r"journal\.1-of-3\.jsonl: no such file; shard 1 of 3 is missing"):
        merge_parts(job)
    run_jobs(job, part=Part(1, 3))
    outcomes, journals = merge_parts(job)
    assert outcomes == expected and journal.read_bytes() == text
    assert journals == [tmp_path / f"journal.{number}-of-3.jsonl" for number in (1, 2, 3)]
    assert merge_parts(job) == (outcomes, journals) and journal.read_bytes() == text

    # A list that has grown: what was merged is known to the parts, and to the next merge.
    for path in journals:
        path.unlink()
    (tmp_path / "calls").unlink()
    longer = measuring([*make(tmp_path, "new"), *keys], journal)
    for number in (1, 2):
        run_jobs(longer, part=Part(number, 2))
    assert (tmp_path / "calls").read_text().split() == ["new"]
    assert [outcome.key for outcome in merge_parts(longer)[0]] == longer.keys


@pytest.mark.usefixtures("in_process")
def test_parts_that_do_not_belong_together_are_not_merged(tmp_path: Path) -> None:
    keys = make(tmp_path, "a", "b", "c", "d")
    journal = tmp_path / "journal.jsonl"
    job = measuring(keys, journal)
    first, second = (Part(number, 2).beside(journal) for number in (1, 2))
    for number in (1, 2):
        run_jobs(job, part=Part(number, 2))
    for other in (measuring(keys, journal, factor=3), measuring(keys[1:], journal)):
        with pytest.raises(ConfigError, match=r"journal\.1-of-2\.jsonl: belongs to a run with other options"):
            merge_parts(other)
    with Journal(first, Part(1, 2).header(job.header, keys), what="", each=lambda record: None):
        run = "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]; import test_jobs as t; "
        run += "t.merge_parts(t.measuring(sys.argv[4:], Path(sys.argv[3])))"
        paths = [os.getcwd(), os.path.dirname(__file__), str(journal), *keys]
        done = subprocess.run([sys.executable, "-c", run, *paths], capture_output=True, text=True)
        assert "another process does this work now" in done.stderr

    text = second.read_text()
    second.write_text(first.read_text())
    with pytest.raises(ConfigError, match=r"belongs to a run with other options .*1/2"):
        merge_parts(job)
    header, *_ = text.splitlines(keepends=True)
    second.write_text(header + first.read_text().partition("\n")[2])
    with pytest.raises(ConfigError, match=r"2-of-2\.jsonl: holds .*/a, which is another shard's"):
        merge_parts(job)
    second.write_text(text[:-3])  # its process was killed
    with pytest.raises(StvidError, match=r"1 of 2 videos of shard 2/2 are not done, .*; run --shard 2/2 again"):
        merge_parts(job)
    run_jobs(job, part=Part(2, 2))
    (tmp_path / "a").write_text("changed")
    with pytest.raises(StvidError, match="1 of 2 videos of shard 1/2 are not done, or have changed since"):
        merge_parts(job)
    assert not journal.exists()


SLEEPY = """
import sys, time
from pathlib import Path

from stvid.data.stage_base import Stage

class Sleep(Stage):
    def work(self, path):
        Path(path + ".started").touch()
        time.sleep(0 if path.endswith("fast") else 600)
        return {}

if __name__ == "__main__":
    from stvid.cli import dispatch
    from stvid.data.jobs import Job, run_jobs

    def sleep(argv):
        run_jobs(Job(Sleep({}), argv, "sleep", Path(argv[0] + ".jsonl")), workers=1)
        return 0

    sys.exit(dispatch("x", "", {"sleep": sleep}, ["sleep", *sys.argv[1:]]))
"""


def processes_of(marker: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "environ").read_text(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            pass
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_keeps_what_it_did_and_leaves_no_process(tmp_path: Path, signum: signal.Signals) -> None:
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    keys = make(tmp_path, "fast", "slow")
    marker = f"STVID_TEST_RUN={tmp_path}"
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "sleepy.py"), *keys],
        env={**os.environ, "STVID_TEST_RUN": str(tmp_path), "PYTHONPATH": os.getcwd()},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in its background with Ctrl-C ignored, and the tests may run there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    journal = tmp_path / "fast.jsonl"
    while not ((tmp_path / "slow.started").exists() and keys[0] in journal.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as a terminal does: to all processes
    else:
        process.kill()
    _, error = process.communicate(timeout=60)
    if signum == signal.SIGINT:
        assert process.returncode == 130
        assert error == "x: error: interrupted, 1 of 2 videos done; the same command goes on from there\n"
    while processes_of(marker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["key"] for line in lines[1:]] == [keys[0]]
