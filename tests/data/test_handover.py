"""Batches reach the process that uses them with little shared memory, few descriptors, and any folder for files."""

from __future__ import annotations

import os
import pickle
import queue
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stvid.data import datamodule, handover
from stvid.data.dataset import EvalSample, TrainBatch
from stvid.data.handover import ByValue, shared, sharing_advice, sockets_work, worker_context
from stvid.errors import StvidError

# Reads 6 videos with two workers and prints a digest of what came, then the warnings.
PROGRAM = textwrap.dedent(
    """
    import hashlib, resource, sys, warnings
    def main():
        limit = int(sys.argv[2])
        if limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        from stvid.data.datamodule import LoaderSettings, make_eval_loader
        from stvid.data.dataset import EvalDataset
        from stvid.data.manifest import Manifest, VideoEntry
        from stvid.protocol import Protocol
        protocol = Protocol(frames=8, stride=1, short_side=64, crop=64)
        manifest = Manifest.from_entries([VideoEntry(f"{sys.argv[1]}/{n}.mp4") for n in range(6)], source="list")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loader = make_eval_loader(EvalDataset(manifest, protocol, views="2x1"), LoaderSettings(3, 2))
            digest = hashlib.sha256()
            for batch in loader:
                for sample in batch:
                    digest.update(sample.clips.contiguous().numpy().tobytes())
        print(digest.hexdigest())
        print(*(str(item.message) for item in caught))
    if __name__ == "__main__":
        main()
    """
)


@pytest.fixture
def run(make_video: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """``run(before=[...], limit=0, **environment)`` -> the digest and the warnings of the program."""
    for number in range(6):
        shutil.copy(make_video(f"{number}.mp4", first=number), tmp_path / f"{number}.mp4")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def call(before: tuple[str, ...] = (), limit: int = 0, **environment: str) -> tuple[str, str]:
        command = [*before, sys.executable, str(script), str(tmp_path), str(limit)]
        root = str(Path(__file__).parents[2])
        found = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": root, **environment}, capture_output=True, text=True, timeout=120
        )
        assert found.returncode == 0, found.stderr
        digest, warned = found.stdout.splitlines()[:2]
        return digest, warned

    return call


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")
def test_little_shared_memory_is_said_and_does_not_matter(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    flags = "-m" if os.getuid() == 0 else "-rm"
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    before = ("unshare", flags, "sh", "-c", mount, "sh")
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("no mount is possible here")
    usual, nothing = run()
    assert nothing == ""
    digest, warned = run(before)
    assert digest == usual
    assert warned.startswith("batches go through pipes, which is slower: no shared memory for them (unable to")
    assert "--shm-size" in warned and "data.workers" in warned and warned.count("batches go") == 1
    long = tmp_path / ("a" * 120)
    long.mkdir()
    assert run(TMPDIR=str(long)) == (usual, "")  # by value from the beginning


def test_what_does_not_fit_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(1, 2, 4, 4, 3).permute(0, 4, 1, 2, 3)
    batch = TrainBatch(clips, torch.tensor([3]), torch.tensor([1]).numpy(), (("a.mp4", "damaged"),))
    found = shared(batch)
    assert found is batch and batch.clips.is_shared() and batch.labels.is_shared()
    assert batch.clips.stride() == clips.stride()

    def fail(self: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)\n")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    samples = [EvalSample(0, clips.clone(), torch.tensor(1).numpy()), EvalSample(1, None, torch.tensor(2).numpy(), "x")]
    for value in (batch, samples):
        packed = shared(value)
        assert isinstance(packed, ByValue) and "No space left" in packed.reason
        packed = pickle.loads(pickle.dumps(packed)).unpack()
        first = packed[0] if isinstance(packed, list) else packed
        assert torch.equal(first.clips, clips) and first.clips.stride() == clips.stride()


class _Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("unable to open shared memory object </torch_2>: Too many open files (24)")


class _ByThread:
    """Cannot be pickled by the thread of a queue, as a tensor without room; but can be by value."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol == pickle.HIGHEST_PROTOCOL:
            return str, ("the batch",)
        raise RuntimeError("no space")


def test_a_queue_of_workers_loses_nothing() -> None:
    passed = worker_context().Queue()
    passed.put((7, _ByThread()))
    number, packed = passed.get(timeout=20)
    assert number == 7 and packed.unpack() == "the batch" and "no space" in packed.reason
    passed.put((8, _Unpicklable()))
    number, error = passed.get(timeout=20)
    assert number == 8 and isinstance(error, StvidError)
    assert "Too many open files" in str(error) and "data.workers 0" in str(error)
    passed.put((9, "as usual"))
    assert passed.get(timeout=20) == (9, "as usual")
    with pytest.raises(queue.Empty):
        passed.get(timeout=0.05)
    passed.close()


def test_where_sockets_have_no_room_workers_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sockets_work()
    for answer in (FileNotFoundError("No usable temporary directory"), "/tmp/" + "a" * 110):

        def address(_: str, answer: Any = answer) -> str:
            if isinstance(answer, str):
                return answer
            raise answer

        monkeypatch.setattr(handover.multiprocessing.connection, "arbitrary_address", address)
        assert not sockets_work()
        assert worker_context().get_start_method() == "spawn"


def test_reasons_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "/dev/shm has " in sharing_advice() and "\n" not in sharing_advice()
    monkeypatch.setattr(handover, "SHARED_MEMORY", "/missing")
    assert sharing_advice().startswith("/missing: No such file or directory; ")
    error = RuntimeError("Too many open files. Communication with the workers is no longer possible. Please increase")
    assert "ulimit -n" in datamodule._describe_death(None, error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handover.warn_of(ByValue(b"", ""))  # decided beforehand: nothing to say
    assert not caught


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EOFError("unexpected EOF"), "the process that starts them has ended, perhaps for want of memory; "),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory; "),
    ],
)
def test_workers_that_cannot_be_started(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> Any:
        raise error

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", fail)
    with pytest.raises(StvidError, match=rf"data-loading processes cannot be started \({reason}.*data\.workers 0"):
        iter(datamodule.Loader([1, 2]))
