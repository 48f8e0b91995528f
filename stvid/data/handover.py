"""How a batch goes from the worker process that made it to the one that uses it.

Torch hands tensors over through shared memory (``/dev/shm``), of which a container may have 64 MB. What does not fit is
noticed by torch's own thread in the worker, which drops the batch, so that the other process waits for ever. Here the
worker itself puts each batch into shared memory; if it cannot, it sends the bytes through the pipe instead, which is
slower and always works, and the other process says so once.
"""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.queues
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from stvid.errors import StvidError

__all__ = ["ByValue", "HandOver", "sharing_advice", "sockets_work", "warn_of", "worker_context"]

SHARED_MEMORY = "/dev/shm"

# The name of a socket must not be longer (Linux: 107 bytes; macOS: 103).
_SOCKET_NAME = 100


def sharing_advice() -> str:
    """Returns how much shared memory there is and how to get more, for the end of a message."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
        room = f"{SHARED_MEMORY} has {usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MB free"
    except OSError as error:
        room = f"{SHARED_MEMORY}: {error.strerror or error}"
    return (
        f"{room}; give a container more (docker run --shm-size=8g or --ipc=host), or use fewer data.workers or a "
        "smaller data.batch_size"
    )


@dataclass(frozen=True)
class ByValue:
    """A batch as bytes, for want of shared memory.

    Attributes:
        content: The pickled batch.
        reason: Why it is not in shared memory; empty if that was decided beforehand.
    """

    content: bytes
    reason: str = ""

    def unpack(self) -> Any:
        """Returns the batch."""
        return pickle.loads(self.content)  # from this program's own worker, as multiprocessing's queues do it


class _Finder(pickle.Pickler):
    """Lists the tensors of an object, and writes nothing of them."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), protocol=pickle.HIGHEST_PROTOCOL)
        self.found: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> str | None:
        """Called for each part of the object."""
        if isinstance(value, torch.Tensor):
            self.found.append(value)
            return "tensor"
        return None


@dataclass(frozen=True)
class HandOver:
    """A function that joins samples to a batch, which in a worker process is then made ready to be handed over.

    Attributes:
        collate: The function.
        by_value: Whether shared memory is not to be tried.
    """

    collate: Callable[[Any], Any]
    by_value: bool = False

    def __call__(self, samples: Any) -> Any:
        """Returns the batch, its tensors in shared memory; or a `ByValue`."""
        batch = self.collate(samples)
        if get_worker_info() is None:
            return batch
        return by_value(batch, "") if self.by_value else shared(batch)


def by_value(batch: Any, reason: str) -> ByValue:
    """Returns a batch as bytes."""
    return ByValue(pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL), reason)


def shared(batch: Any) -> Any:
    """Moves the tensors of a batch into shared memory; returns the batch, or a `ByValue` if there is no room."""
    finder = _Finder()
    finder.dump(batch)
    try:
        for tensor in finder.found:
            tensor.share_memory_()
    except (RuntimeError, OSError) as error:  # torch's words: "unable to allocate shared memory", "unable to open"
        return by_value(batch, str(error).strip().splitlines()[0])
    return batch


def warn_of(batch: ByValue) -> None:
    """Says why a batch did not come through shared memory."""
    if batch.reason:
        warnings.warn(
            f"batches go through pipes, which is slower: no shared memory for them ({batch.reason}); "
            f"{sharing_advice()}",
            stacklevel=3,
        )


# --- worker processes -------------------------------------------------------------------------------------------------


class _Queue(multiprocessing.queues.Queue):
    """A queue that loses nothing: what its thread cannot pickle comes as bytes, or as an error for the user.

    Args:
        maxsize: As for the queues of multiprocessing.
        ctx: The same.
    """

    def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:
        # torch's workers put pairs of a number and a batch. Python calls this instead of losing the object.
        if not (isinstance(obj, tuple) and len(obj) == 2):
            super()._on_queue_feeder_error(e, obj)  # type: ignore[misc]
            return
        number, batch = obj
        reason = f"{type(e).__name__}: {e}".strip().splitlines()[0]
        try:
            self.put((number, by_value(batch, reason)))
        except (RuntimeError, OSError, TypeError, AttributeError, pickle.PicklingError):
            self.put((number, StvidError(f"a batch cannot be handed over ({reason}); use data.workers 0")))


def _queue(context: Any, maxsize: int = 0) -> _Queue:
    return _Queue(maxsize, ctx=context.get_context())


def sockets_work() -> bool:
    """Tells whether processes can be given file descriptors: by a socket in the folder for temporary files."""
    try:
        name = multiprocessing.connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    except (OSError, ValueError):  # there is no such folder, or it cannot be written to
        return False
    return len(os.fsencode(name)) < _SOCKET_NAME


def worker_context() -> multiprocessing.context.BaseContext:
    """How worker processes are started: never by fork, since torch and lightning run threads in this process."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() and sockets_work() else "spawn"
    base = multiprocessing.get_context(method)
    context: multiprocessing.context.BaseContext = type("WorkerContext", (type(base),), {"Queue": _queue})()
    if method == "forkserver":
        # The server imports torch once; each worker then starts in milliseconds instead of seconds. No effect if the
        # server runs already, and a module that it cannot import is imported by the workers as usual.
        context.set_forkserver_preload(["__main__", "stvid.data.dataset"])
    return context
