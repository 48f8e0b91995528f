"""Several processes that do one piece of work together: those of torchrun or SLURM, or those that stvid starts.

Each process, a rank, does its own part of the work (`stvid.data.parts.Part`). Here is how they find each other, wait
for each other, and end together: each holds a connection to the first one, so that a process that dies is noticed at
once, whatever the others are doing. It is said in one line by the first process.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from stvid.console import printable
from stvid.data.parts import Part
from stvid.errors import ConfigError, StvidError, UnknownNameError

__all__ = ["Rank", "Team", "alone", "started", "together"]

_WAIT = datetime.timedelta(minutes=5)  # for the other processes to come
_FOR_EVER = datetime.timedelta(days=365)
_MESSAGE = 1024  # bytes of a message from process to process
_DONE = 255  # in the place of an exit code: the part is done


@dataclass(frozen=True)
class Rank:
    """The place of this process among those that work together.

    Attributes:
        number: From 0 on.
        count: How many processes there are.
        local: Its number among those of this machine, which is that of its GPU.
        address: Machine of the first process.
        port: Port at which the first process is found.
    """

    number: int
    count: int
    local: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def part(self) -> Part:
        """The part of the work that this process does."""
        return Part(self.number + 1, self.count)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Rank | None:
        """Returns the place that torchrun (``RANK``, ``WORLD_SIZE``) or SLURM (``SLURM_PROCID``) gave this process.

        Args:
            environment: Variables of the process; None takes those of this one.

        Returns:
            The place; None for a process by itself.

        Raises:
            ConfigError: If the variables make no sense, or do not say where the first process is.
        """
        values = os.environ if environment is None else environment
        if "RANK" in values and "WORLD_SIZE" in values:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        elif "SLURM_PROCID" in values:
            count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in values else "SLURM_NTASKS"
            names = ("SLURM_PROCID", count, "SLURM_LOCALID")
        else:
            return None
        texts = [values.get(name, default) for name, default in zip(names, ("", "1", "0"), strict=True)]
        for name, text in zip(names, texts, strict=True):
            if not text.isdecimal():
                raise ConfigError(f"{name}: is {text!r}, not a number; unset it, or start with torchrun or srun")
        number, total, local = map(int, texts)
        if total == 1 and number == 0:
            return None
        if number >= total:
            raise ConfigError(f"{names[0]}: is {number}, but there are {total} processes ({names[1]})")
        address, port = _first_process(values)
        return cls(number, total, local, address, port)


def _first_process(values: Mapping[str, str]) -> tuple[str, int]:
    """Returns the machine and the port of the first process."""
    address, port = values.get("MASTER_ADDR"), values.get("MASTER_PORT")
    job = values.get("SLURM_JOB_ID", "")
    if address is None:
        # The first name of a list such as gpu[03-05,9],login; scontrol is not on every machine.
        listed = re.match(r"([^,\[]+)(?:\[(\d+))?", values.get("SLURM_STEP_NODELIST", values.get("SLURM_NODELIST", "")))
        if listed is None:
            raise ConfigError("MASTER_ADDR: is not set: it names the machine of the first process; torchrun sets it")
        address = listed[1] + (listed[2] or "")
    if port is None:
        if not job.isdecimal():
            raise ConfigError("MASTER_PORT: is not set: the port of the first process; torchrun sets it")
        step = values.get("SLURM_STEP_ID", "0")
        port = str(15000 + (int(job) * 7 + (int(step) if step.isdecimal() else 0)) % 10000)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"MASTER_PORT: is {port!r}, not a port")
    return address, int(port)


def _use_threads_of_one_process() -> None:
    """Gives torch the threads on the CPU that a process by itself has, for numbers that are equal bit for bit.

    torchrun sets OMP_NUM_THREADS to 1 unless its user has set it; that is undone.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("OMP_NUM_THREADS") != "1":
        return
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            given = any(line.startswith(b"OMP_NUM_THREADS=") for line in file.read().split(b"\0"))
    except OSError:  # not Linux: the number may be the user's
        return
    if given:
        return
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    asked = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    found = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    if found.returncode == 0 and found.stdout.strip().isdecimal():
        torch.set_num_threads(int(found.stdout))


class Team:
    """The processes that work together, as one of them sees them; `together` makes it.

    Attributes:
        rank: The place of this process.
    """

    def __init__(self, rank: Rank, group: Any) -> None:
        self.rank = rank
        self._group = group
        self._others = range(1, rank.count) if rank.number == 0 else range(1)
        self._done = {other: threading.Event() for other in self._others}
        self._lock = threading.Lock()
        self._ending = False
        self._listeners = [threading.Thread(target=self._listen, args=(other,), daemon=True) for other in self._others]
        for listener in self._listeners:
            listener.start()

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank.number == 0

    def meet(self) -> None:
        """Waits until all processes have come to this place."""
        dist.barrier(group=self._group)

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes in the first one, and an empty list in the others."""
        found: list[Any] | None = [None] * self.rank.count if self.first else None
        dist.gather_object(value, found, dst=0, group=self._group)
        return found or []

    def finish(self) -> None:
        """Waits for the end of the others: the first process until their parts are done, they until it is done."""
        if self.first:
            for event in self._done.values():
                event.wait()
            return
        self._send(0, _DONE, "")
        self._done[0].wait()

    def leave(self, code: int, message: str) -> None:
        """Tells the others that this process ends: code 0 if the work is done, else with what went wrong."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        for other in self._others:
            self._send(other, code, message)
        if self.first:  # the others leave, and so the listeners end
            for listener in self._listeners:
                listener.join(timeout=10)

    def _send(self, other: int, code: int, message: str) -> None:
        text = message.encode()[: _MESSAGE - 1]
        content = torch.zeros(_MESSAGE, dtype=torch.uint8)
        content[: len(text) + 1] = torch.tensor([code, *text], dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):  # it has gone, which its listener sees
            dist.send(content, dst=other, group=self._group, tag=1)

    def _listen(self, other: int) -> None:
        """In a thread of its own: hears what another process says, and ends this one when that is lost."""
        while True:
            content = torch.zeros(_MESSAGE, dtype=torch.uint8)
            try:
                dist.recv(content, src=other, group=self._group, tag=1)
            except (RuntimeError, ValueError):  # the connection broke, or this process leaves the group
                self._end(1, self._lost(other))
                return
            code, *text = content.tolist()
            if code == _DONE:
                self._done[other].set()
                continue
            if code == 0:
                self._done[other].set()
                return
            self._end(code, bytes(text).rstrip(b"\0").decode(errors="replace"))
            return

    def _lost(self, other: int) -> str:
        if other == 0 and self.rank.number > 1:
            return ""  # the second process says it for all
        return (
            f"process {other} of {self.rank.count} ended before the work was done, so all end; the same command begins "
            "with what is missing"
        )

    def _end(self, code: int, message: str) -> None:
        """Ends this process, whatever its main thread does; the first one says why, and tells the others."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        if code == 128 + signal.SIGINT:
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)
        elif message:
            print(printable(f"stvid: error: {message}"), file=sys.__stderr__, flush=True)
        if self.first:
            for other in self._others:
                self._send(other, code, "")
        os._exit(code)


@contextlib.contextmanager
def together(rank: Rank) -> Iterator[Team]:
    """Connects this process with the others until the end of the ``with``.

    All but the first are silent. What goes wrong in one of them is said by the first, and ends all.

    Raises:
        StvidError: If the others do not come.
    """
    names = {"MASTER_ADDR": rank.address, "MASTER_PORT": str(rank.port)}
    with _variables({**names, "RANK": str(rank.number), "WORLD_SIZE": str(rank.count), "LOCAL_RANK": str(rank.local)}):
        try:
            dist.init_process_group("gloo", rank=rank.number, world_size=rank.count, timeout=_WAIT)
            group = dist.new_group(backend="gloo", timeout=_FOR_EVER)
        except (RuntimeError, ValueError) as error:  # those of torch.distributed are of these kinds
            reason = " ".join(str(error).split())[:160]
            raise StvidError(
                f"process {rank.number} of {rank.count} does not find the others at {rank.address}:{rank.port} "
                f"({reason}); start all of them, with torchrun or srun"
            ) from error
        _use_threads_of_one_process()
        team = Team(rank, group)
        quiet = contextlib.nullcontext() if team.first else _silence()
        try:
            with quiet:
                yield team
        except BaseException as error:
            code, message = _ending(error)
            team.leave(code, "" if team.first else message)
            if team.first or not message:
                raise
            raise SystemExit(code) from error
        else:
            if team.first:
                team.leave(0, "")
        finally:
            dist.destroy_process_group()


def _ending(error: BaseException) -> tuple[int, str]:
    """Returns the exit code and the line of an error."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, ""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1, ""
    text = str(error) if isinstance(error, StvidError | OSError) else f"{type(error).__name__}: {error}"
    return 2 if isinstance(error, ConfigError | UnknownNameError) else 1, " ".join(text.split())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hides the other processes from libraries that look for them until the end of the ``with``, such as Lightning."""
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "TORCHELASTIC_RUN_ID"}
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name in names or name.startswith("SLURM_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def started(count: int, arguments: Sequence[str]) -> Iterator[Rank]:
    """Starts further processes of this command on this machine, and gives the place of this one, the first.

    Args:
        count: How many processes there are to be, this one included.
        arguments: The arguments of ``stvid``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # for numbers that are equal bit for bit
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "stvid", *arguments],
            env={**os.environ, **shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for number in range(1, count)
    ]
    try:
        yield Rank(0, count, 0, "127.0.0.1", port)
    finally:
        for process in processes:  # they end when this one does
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
