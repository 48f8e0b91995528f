"""Stages on a real Ray of two CPUs: the same results as here, whatever dies meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stvid.commands.prep import main
from stvid.data import ray_engine
from stvid.data.jobs import Job, run_jobs
from stvid.data.stage_base import Stage
from stvid.data.stages import Scan
from stvid.errors import StvidError


class Touch(Stage):
    """Leaves the number of its process beside a file for each time that it begins, and waits if it is told to."""

    fields: ClassVar[Mapping[str, type]] = {"bytes": int, "folder": str}
    rows_at_once = 2

    def work(self, path: str) -> Mapping[str, Any]:
        with open(f"{path}.begun", "a") as file:
            file.write(f"{os.getpid()}\n")
        if os.path.basename(path).startswith("dies"):
            os._exit(7)
        if os.path.basename(path).startswith("waits") and Path(f"{path}.begun").read_text().count("\n") == 1:
            time.sleep(300)
        return {"bytes": os.path.getsize(path), "folder": os.getcwd()}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.usefixtures("no_ray")
def test_ray_is_named_where_it_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v" / "a").mkdir(parents=True)
    (tmp_path / "v" / "a" / "x.mp4").touch()
    assert main(["scan", str(tmp_path / "v"), "--engine", "ray"]) == 1
    error = capsys.readouterr().err
    assert (
        "--engine ray: " in error and error.endswith("Ray needs: pip install 'stvid[ray]'\n") and error.count("\n") == 1
    )


def test_relative_paths_start_where_the_driver_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("abc")
    monkeypatch.chdir(os.sep)
    rows = ray_engine._InFolder(Touch({}), str(tmp_path))({"path": ["a"]})
    assert rows["bytes"].tolist() == [3] and rows["folder"] == [str(tmp_path)]
    rows = ray_engine._InFolder(Touch({}), str(tmp_path / "none"))({"path": ["a"]})
    assert rows["error"][0].startswith(f"{tmp_path}/none: No such file or directory, on the machine ")


def test_an_address_at_which_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pytest.importorskip("ray.data")
    with (
        pytest.raises(StvidError, match=rf"--engine ray: 127\.0\.0\.1:{port} cannot be reached \(.*refused\)"),
        ray_engine.started_ray(f"127.0.0.1:{port}", None),
    ):
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    folders = [
        str(Path(__file__).parents[2]),
        str(Path(__file__).parent),
    ]  # of stvid and of this module
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr(Touch, "__module__", "test_ray_engine")
        patch.setitem(sys.modules, "test_ray_engine", sys.modules[__name__])
        environment = {"PYTHONPATH": os.pathsep.join(folders)}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
        yield ray
        ray.shutdown()


def contents(folder: Path, journal: str) -> dict[str, Any]:
    """Returns all files of a folder; the lines of the journal sorted, since tasks end in any order."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            found[path.name] = sorted(content.splitlines()) if path.name == journal else content
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("cluster", "in_process")
@pytest.mark.parametrize("command", ["scan", "index", "transcode", "shard"])
def test_the_results_are_those_of_one_process(
    make_dataset: Callable[..., Path], tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    videos = make_dataset(tmp_path / "kept", classes=("a", "b"), per_class=4)
    (videos / "a" / "bad.mp4").write_text("no video")
    os.rename(videos / "b" / "b_0.mp4", os.fsencode(videos / "b") + b"/\xff.mp4")  # a name that is not UTF-8
    arguments = [command, "kept", "--out", "work/out"]
    if command == "index":
        arguments = [command, "work/list.csv"]
    arguments += {"transcode": ["--short_side", "32", "--preset", "ultrafast"], "shard": ["--size", "0.004"]}.get(
        command, []
    )
    found = []
    for engine in ("local", "ray"):
        shutil.rmtree("work", ignore_errors=True)
        Path("work").mkdir()
        lines = [f"../kept/{name}.mp4,x" for name in ("a/a_0", "a/a_1", "a/bad", "b/b_1", "b/b_2")]
        Path("work/list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
        code = main([*arguments, "--engine", engine])
        journal = {"scan": "out.jsonl", "transcode": "transcode.jsonl", "shard": "none", "index": "none"}[command]
        files = contents(Path("work"), journal)
        files.pop("shard.jsonl", None)  # has the times at which the tars were written
        found.append((code, capsys.readouterr(), files))
    assert found[0] == found[1] and found[0][2] and found[0][0] in (0, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("cluster")
def test_what_is_lost_with_a_worker_is_done_again(tmp_path: Path) -> None:
    names = ["a", "b", "waits", "c", "d", "dies", "e", "f", "g", "h"]
    keys = [str(tmp_path / name) for name in names]
    for key in keys:
        Path(key).write_text(os.path.basename(key))

    def kill() -> None:
        begun = tmp_path / "waits.begun"
        while not (begun.exists() and begun.read_text().endswith("\n")):
            time.sleep(0.05)
        os.kill(int(begun.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    job = Job(Touch({}), keys, "touch", tmp_path / "journal.jsonl")
    outcomes = run_jobs(job, engine="ray")
    killer.join()
    errors = {os.path.basename(outcome.key): outcome.error for outcome in outcomes}
    assert [name for name in names if errors[name]] == ["dies"]
    assert errors["dies"].endswith("takes the process that reads it down")
    assert [outcome.result["bytes"] for outcome in outcomes if not outcome.error] == [1, 1, 5, 1, 1, 1, 1, 1, 1]
    assert (tmp_path / "waits.begun").read_text().count("\n") >= 2

    # The journal has it all: a second run does only what failed.
    assert run_jobs(job, engine="ray") == outcomes
    assert (tmp_path / "a.begun").read_text().count("\n") <= 3


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_stages_in_a_pipeline_of_ones_own(make_dataset: Callable[..., Path], tmp_path: Path, cluster: Any) -> None:
    folder = make_dataset(tmp_path / "v", classes=("a",), per_class=3)
    paths = [str(path) for path in sorted(folder.rglob("*.mp4"))]
    rows = cluster.data.from_items([{"path": path, "label": "a"} for path in paths]).map_batches(Scan()).take_all()
    assert sorted(row["path"] for row in rows) == paths and {row["label"] for row in rows} == {"a"}
    assert sorted(row["frames"] for row in rows) == [16, 17, 18] and {row["error"] for row in rows} == {""}
