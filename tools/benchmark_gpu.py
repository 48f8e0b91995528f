"""Models, convolutions and attention on a GPU, and the tests that need one, in under 8 minutes: docs/gpu.md.

    python tools/benchmark_gpu.py                 # on a machine with an NVIDIA GPU; writes docs/gpu.md
    PYTHONPATH=. python tools/benchmark_gpu.py    # the same where stvid is not installed
    python tools/benchmark_gpu.py --budget 300 --out gpu.md
    python tools/benchmark_gpu.py --device cpu --smoke --out smoke.md    # tries the script out: tiny sizes, a few rows

Printed and written are, in bfloat16 (models under autocast):

- the rate and the memory of a forward pass and of a training step of stvid's models beside the same networks of
  torchvision, PyTorchVideo and transformers, as they are and compiled by torch.compile;
- depthwise 3D convolutions in both memory formats;
- the backends of attention on the calls that the models make;
- the outcome of ``pytest -m gpu``.

All sides of a row take turns, CUDA events time them, and medians are compared. The script keeps to its time: rows come
in the order of their importance, and those that do not fit are listed. Each row runs in a process of its own that can
be ended, so a row that fails, runs out of memory or hangs is a line in its table. The file is written after each table.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmark_attention import CALLS
from benchmark_models import NUM_CLASSES, PEERS, build_peer, call_plain, forward_step, train_step
from benchmarking import synchronize
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import stvid
from stvid.files import write_atomically
from stvid.models.attention import attend, attention_backends

ROOT = Path(__file__).resolve().parent.parent
Work = Callable[[], Any]
Row = dict[str, Any]
CAST = "bf16"  # how benchmark_models calls autocast to bfloat16


# --- what is measured, the most important first -----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        model: Name in stvid. Its peer is that of `benchmark_models.PEERS`, if it has one.
        clip: Frames, height and width.
        batch: Clips of a step; a quarter of them where the model is compiled, since several compile side by side.
        options: Hyperparameters of stvid's, if the variant's own are others.
        steps: What is timed.
    """

    model: str
    clip: tuple[int, int, int]
    batch: int
    options: dict[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ("forward", "train")


@dataclass(frozen=True)
class Convolution:
    """One depthwise 3D convolution: C channels on (T, H, W), with padding that keeps the size."""

    title: str
    batch: int
    channels: int
    size: tuple[int, int, int]
    kernel: tuple[int, int, int] = (3, 3, 3)


@dataclass(frozen=True)
class Plan:
    """All that a run measures.

    Attributes:
        models: The models, the most important first.
        compiled: The models that are measured compiled as well, the most important first.
        convolutions: The depthwise convolutions.
        calls: Calls of attention, as `benchmark_attention.CALLS` has them.
        batch: By what the sequences of a call are multiplied.
        tests: Arguments of pytest besides ``-m gpu``.
    """

    models: tuple[Case, ...]
    compiled: tuple[Case, ...]
    convolutions: tuple[Convolution, ...]
    calls: tuple[tuple[str, int, int, int, int, bool], ...]
    batch: int
    tests: tuple[str, ...] = ()


MODELS = (
    Case("uniformer_s", (16, 224, 224), 32),
    Case("vivit_b16x2", (32, 224, 224), 8),
    Case("swin3d_t", (32, 224, 224), 16),
    Case("timesformer_base", (8, 224, 224), 16),
    Case("slow_r50", (8, 224, 224), 32),
    Case("ir_csn_101", (32, 224, 224), 16),
    Case("r2plus1d_18", (16, 112, 112), 64),
    Case("r3d_18", (16, 112, 112), 64),
    Case("s3d", (16, 224, 224), 32),
    Case("i3d_r50", (8, 224, 224), 32),
    Case("vivit_b16x2_fe", (32, 224, 224), 16),
    Case("uniformer_b", (16, 224, 224), 16),
    Case("xvit_base", (8, 224, 224), 32),
)
CONVOLUTIONS = (
    Convolution("X3D-M stage 2", 16, 54, (16, 56, 56)),
    Convolution("X3D-M stage 3", 16, 108, (16, 28, 28)),
    Convolution("X3D-M stage 4", 16, 216, (16, 14, 14)),
    Convolution("X3D-M stage 5", 16, 432, (16, 7, 7)),
    Convolution("X3D-M stem", 16, 24, (16, 112, 112), (5, 1, 1)),
    Convolution("ir-CSN stage 2", 8, 64, (32, 56, 56)),
    Convolution("ir-CSN stage 3", 8, 128, (16, 28, 28)),
    Convolution("ir-CSN stage 4", 8, 256, (8, 14, 14)),
    Convolution("ir-CSN stage 5", 8, 512, (4, 7, 7)),
    Convolution("UniFormer-S stage 1", 16, 64, (8, 56, 56), (5, 5, 5)),
    Convolution("UniFormer-S stage 2", 16, 128, (8, 28, 28), (5, 5, 5)),
)
MORE_CALLS = (("UniFormer-S stage 4", 1, 392, 8, 64, False), ("ViViT FE space", 16, 197, 12, 64, False))
FULL = Plan(MODELS, MODELS, CONVOLUTIONS, (*CALLS, *MORE_CALLS), 8)
SMOKE = Plan(
    models=(
        Case("r3d_18", (2, 16, 16), 2),
        Case("uniformer_xxs", (4, 64, 64), 2, {"depth": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "head_dim": 8}),
    ),
    compiled=(Case("xvit_base", (2, 32, 32), 4, {"depth": 1, "embed_dim": 32, "num_heads": 2}, ("forward",)),),
    convolutions=(Convolution("tiny", 1, 4, (2, 8, 8)),),
    calls=(("tiny", 2, 16, 2, 8, False), ("tiny with bias", 2, 16, 2, 8, True)),
    batch=1,
    tests=("-k", "(xxs or attend) and not compiled"),
)


# --- time and memory --------------------------------------------------------------------------------------------------


def elapsed(work: Work, repeats: int, device: torch.device) -> float:
    """Returns the seconds of one call: by events on a GPU, by the clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - start) / repeats
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(repeats):
        work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3 / repeats


def time_by_turns(
    works: Mapping[str, Work], device: torch.device, *, rounds: int = 7, limit: float = 4.0
) -> dict[str, float]:
    """Returns the median seconds of one call of each work.

    A turn is as many calls as take about 50 ms, so that starting the kernels is hidden as it is in a loop.

    Args:
        works: What each side does; each has run before.
        device: Where.
        rounds: Turns of each side, at most.
        limit: Seconds that all turns may take; three rounds are made in any case.
    """
    first = {name: elapsed(work, 1, device) for name, work in works.items()}
    repeats = {name: max(1, min(50, round(0.05 / max(taken, 1e-6)))) for name, taken in first.items()}
    a_round = sum(first[name] * repeats[name] for name in works)
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(max(3, min(rounds, int(limit / max(a_round, 1e-6))))):
        for name, work in works.items():
            taken[name].append(elapsed(work, repeats[name], device))
    return {name: statistics.median(times) for name, times in taken.items()}


def describe(error: BaseException) -> str:
    """Returns an error in one short line."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".replace("|", "/")[:140]


def try_out(works: Mapping[str, Work], problems: dict[str, str]) -> dict[str, Work]:
    """Runs each work once; returns those that can be timed, and notes why the others cannot."""
    usable = {}
    for name, work in works.items():
        try:
            work()
            usable[name] = work
        except Exception as error:  # whatever a library, its compiler or the driver raises is a line in the table
            problems[name] = describe(error)
    return usable


def held_bytes(network: nn.Module) -> int:
    """Returns the bytes of weights, buffers and gradients."""
    weights = list(network.parameters())
    tensors = [*weights, *network.buffers(), *(weight.grad for weight in weights if weight.grad is not None)]
    return sum(tensor.nbytes for tensor in tensors)


def peak_bytes(network: nn.Module, step: Work, clip: Tensor) -> int | None:
    """Returns the most memory of a step, other networks on the device not counted; None where torch does not count."""
    if clip.device.type != "cuda":
        return None
    held = held_bytes(network) + clip.nbytes
    torch.cuda.reset_peak_memory_stats(clip.device)
    before = torch.cuda.memory_allocated(clip.device)
    step()
    return torch.cuda.max_memory_allocated(clip.device) - before + held


# --- the rows: generators that a process of its own runs --------------------------------------------------------------
# Each yields READY once before it times anything, and then its rows.

READY, DONE, BROKEN = "ready", "done", "broken"


@dataclass(frozen=True)
class Job:
    """The work of one process at a time: a key of `KINDS`, and what that function takes."""

    kind: str
    subject: Any = None
    batch: int = 1


@dataclass
class Side:
    """A network of a row, and how it is called."""

    network: nn.Module
    call: Callable[[nn.Module, Tensor], Tensor] = call_plain
    steps: tuple[str, ...] = ("forward", "train")


def build_networks(case: Case, device: torch.device) -> tuple[nn.Module, nn.Module | None, str, str]:
    """Builds stvid's model and its peer with the same weights.

    Returns:
        The model, the peer or None, the peer's library with its version or why there is none, and a note on weights
        that could not be shared.
    """
    peer = next((peer for peer in PEERS if peer.model == case.model), None)
    torch.manual_seed(0)
    frames, height, width = case.clip
    with torch.device(device):  # a GPU draws random weights in no time
        model = stvid.create_model(
            case.model, num_classes=NUM_CLASSES, num_frames=frames, img_size=(height, width), **case.options
        ).eval()
        if peer is None:
            return model, None, "none", ""
        if importlib.util.find_spec(peer.library) is None:
            return model, None, f"{peer.library} is not installed", ""
        try:
            network = build_peer(peer).to(device)
        except Exception as error:  # another version of the library may be unable to build it
            return model, None, f"{peer.library}: {describe(error)}", ""
    note = ""
    try:
        stvid.load_checkpoint(model, {key: value.cpu() for key, value in network.state_dict().items()})
    except Exception as error:  # such a version may name its weights otherwise; both can be timed all the same
        note = f"the sides have different weights ({describe(error)})"
    return model, network, f"{peer.library} {importlib.metadata.version(peer.library)}", note


def peer_call(case: Case) -> Callable[[nn.Module, Tensor], Tensor]:
    return next((peer.call for peer in PEERS if peer.model == case.model), call_plain)


def largest_difference(sides: Mapping[str, Side], clip: Tensor) -> float | None:
    """Returns the largest difference of the logits in float32, as a share of their spread; None without a peer."""
    if "peer" not in sides:
        return None
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        own, other = (
            forward_step(sides[name].network, sides[name].call, clip[:1], "float32")() for name in ("stvid", "peer")
        )
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return float((own - other).abs().max() / other.std())


def model_rows(case: Case, batch: int, device: torch.device, *, compiled: bool = False) -> Iterator[str | Row]:
    """Yields a row for the forward pass and one for the training step."""
    model, network, library, note = build_networks(case, device)
    sides = {"stvid": Side(model)}
    if network is not None:
        sides["peer"] = Side(network, peer_call(case))
    clip = torch.randn(batch, 3, *case.clip, device=device)
    difference = largest_difference(sides, clip)
    if compiled:
        faster = {f"{name} compiled": Side(torch.compile(side.network), side.call) for name, side in sides.items()}
        sides = {"stvid": sides["stvid"], **faster}
    else:
        sides["optimized"] = Side(stvid.optimize(model, device=device), steps=("forward",))
    prepared = []
    for step in case.steps:
        make = train_step if step == "train" else forward_step
        row: Row = {"case": case, "batch": batch, "step": step, "peer": library, "note": note}
        row.update(difference=difference, problems={}, bytes={})
        works = {}
        for name, side in sides.items():
            if step not in side.steps:
                continue
            side.network.train(step == "train")
            work = make(side.network, side.call, clip, "" if name == "optimized" else CAST)

            def attempt(name: str = name, side: Side = side, work: Work = work, row: Row = row) -> None:
                work()  # compiles, and lets the libraries choose their kernels
                row["bytes"][name] = peak_bytes(side.network, work, clip)

            if try_out({name: attempt}, row["problems"]):
                works[name] = work
            else:
                clear(device, side.network)
        prepared.append((row, works))
    clear(device)
    yield READY
    for row, works in prepared:
        for side in sides.values():
            side.network.train(row["step"] in side.steps and row["step"] == "train")
        yield {**row, "seconds": time_by_turns(works, device)}


def compiled_rows(case: Case, batch: int, device: torch.device) -> Iterator[str | Row]:
    yield from model_rows(case, max(1, batch // 4), device, compiled=True)


def clear(device: torch.device, network: nn.Module | None = None) -> None:
    """Gives back what is not needed, after an error too."""
    if network is not None:
        network.zero_grad(set_to_none=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def convolution_rows(subject: Convolution, batch: int, device: torch.device) -> Iterator[str | Row]:
    """Yields one row: both memory formats, forward alone and with the gradients of input and weight."""
    yield READY
    shape = (subject.batch, subject.channels, *subject.size)
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
    works: dict[str, Work] = {}
    for name, memory_format in formats.items():
        layer = nn.Conv3d(
            subject.channels,
            subject.channels,
            subject.kernel,
            padding=tuple(length // 2 for length in subject.kernel),
            groups=subject.channels,
            bias=False,
        ).to(device, torch.bfloat16)
        layer.to(memory_format=memory_format)
        x = torch.randn(shape, device=device, dtype=torch.bfloat16).contiguous(memory_format=memory_format)
        gradient = torch.randn_like(x)  # in the same memory format
        x.requires_grad_()

        def forward(layer: nn.Module = layer, x: Tensor = x) -> Any:
            with torch.no_grad():
                return layer(x)

        def both(layer: nn.Conv3d = layer, x: Tensor = x, gradient: Tensor = gradient) -> Any:
            return torch.autograd.grad(layer(x), (x, layer.weight), gradient)

        works |= {f"forward {name}": forward, f"both {name}": both}
    problems: dict[str, str] = {}
    seconds = time_by_turns(try_out(works, problems), device)
    yield {"case": subject, "seconds": seconds, "problems": problems, "bytes": 2 * x.nbytes}


def attention_works(call: Sequence[Any], batch: int, step: str, device: torch.device) -> dict[str, Work]:
    """Returns the call with each backend, from the tensors that the linear layer before it leaves."""
    _, sequences, tokens, heads, channels, with_bias = call
    like: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    training = step == "train"
    qkv = torch.randn(sequences * batch, tokens, 3, heads, channels, **like).requires_grad_(training)
    bias = torch.randn(1, heads, tokens, tokens, **like).requires_grad_(training) if with_bias else None
    gradient = torch.randn(sequences * batch, tokens, heads, channels, **like)

    def make(backend: Any, kernel: SDPBackend | None) -> Work:
        def work() -> Any:
            with contextlib.nullcontext() if kernel is None else sdpa_kernel(kernel):
                out = attend(*qkv.unbind(2), bias=bias, layout="BMHK", backend=backend)
                inputs = [tensor for tensor in (qkv, bias) if tensor is not None]
                return torch.autograd.grad(out, inputs, gradient) if training else out

        return work

    works = {"chosen": make("sdpa", None)}
    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    if device.type == "cuda":
        kernels["cuDNN"] = SDPBackend.CUDNN_ATTENTION
    works |= {name: make("sdpa", kernel) for name, kernel in kernels.items()}
    works["math"] = make("math", None)
    if not attention_backends()["xformers"]:
        works["xformers"] = make("xformers", None)
    return works


def attention_rows(call: Sequence[Any], batch: int, device: torch.device) -> Iterator[str | Row]:
    """Yields a row for the forward pass and one with gradients."""
    yield READY
    for step in ("forward", "train"):
        problems = {"xformers": attention_backends()["xformers"]} if attention_backends()["xformers"] else {}
        usable = try_out(attention_works(call, batch, step, device), problems)
        yield {"case": call, "step": step, "seconds": time_by_turns(usable, device), "problems": problems}
        clear(device)


def ceiling_rows(subject: None, batch: int, device: torch.device) -> Iterator[str | Row]:
    """Yields one row: the rate of a large matrix product and of a copy, which nothing here can exceed by much."""
    yield READY
    size, numbers = (8192, 1 << 30) if device.type == "cuda" else (512, 1 << 20)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(numbers, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    seconds = time_by_turns({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, device)
    yield {"tflops": 2 * size**3 / seconds["product"] / 1e12, "gb_per_s": 2 * source.nbytes / seconds["copy"] / 1e9}


KINDS: dict[str, Callable[[Any, int, torch.device], Iterator[str | Row]]] = {
    "model": model_rows,
    "compiled": compiled_rows,
    "convolution": convolution_rows,
    "attention": attention_rows,
    "ceilings": ceiling_rows,
}


# --- processes that do them -------------------------------------------------------------------------------------------


def serve(pipe: Connection, device: str, threads: int) -> None:
    """Does jobs until the other side hangs up, or the device no longer answers; runs in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)  # events belong to the current one
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            for message in KINDS[job.kind](job.subject, job.batch, place):
                pipe.send(message)
                if message == READY:
                    pipe.recv()
        except Exception as error:  # one row must not end the run; the line says what it was
            pipe.send({"case": job.subject, "problem": describe(error)})
        try:
            clear(place)
            synchronize(place)
        except RuntimeError:  # after some errors a process can use the device no more
            pipe.send(BROKEN)
            return
        pipe.send(DONE)


class Lane:
    """A process that does one job after the other, and can be ended at any time.

    Args:
        device: Where the jobs run.
        threads: Threads of torch in that process.
    """

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.process: Any = None
        self.job, self.ready, self.started = Job(""), False, 0.0

    def begin(self, job: Job) -> None:
        """Hands a job over; what comes back is read with `rows`."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other, self.device, self.threads), daemon=True)
            self.process.start()
            other.close()
        self.job, self.ready, self.started = job, False, time.monotonic()
        self.pipe.send(job)

    def rows(self, deadline: float) -> Iterator[Row]:
        """Yields what the job brings until it is ready to time (then the next call goes on), or done.

        A process that is not through at the deadline (of `time.monotonic`) is ended; that is a row too.
        """
        if self.ready:
            self.pipe.send("go")
            self.ready = False
        while True:
            if not self.pipe.poll(max(0.0, deadline - time.monotonic())):
                problem = f"stopped after {time.monotonic() - self.started:.0f} s"
                self.stop(patience=0)
                yield {"case": self.job.subject, "problem": problem}
                return
            try:
                message = self.pipe.recv()
            except EOFError:
                self.process.join()
                yield {"case": self.job.subject, "problem": f"its process ended with {self.process.exitcode}"}
                self.stop()
                return
            if message in (READY, DONE, BROKEN):
                self.ready = message == READY
                if message == BROKEN:
                    self.stop()
                return
            yield message

    def run(self, job: Job, deadline: float) -> Iterator[Row]:
        """Does a whole job."""
        self.begin(job)
        yield from self.rows(deadline)
        if self.ready:
            yield from self.rows(deadline)

    def stop(self, *, patience: float = 3.0) -> None:
        """Ends the process: by hanging up, which ends one that waits, and by force after some seconds."""
        if self.process is not None:
            self.pipe.close()
            self.process.join(patience)
            self.process.kill()
            self.process.join()
            self.process, self.ready = None, False


# --- the file ---------------------------------------------------------------------------------------------------------


@dataclass
class Section:
    """A table of the file, printed while it grows.

    Attributes:
        title: Heading.
        note: What stands above the table.
        columns: Titles; the first column is text, the others are mostly numbers.
        lines: Its rows, each a string for each column.
        text: What stands below the table.
    """

    title: str
    note: str
    columns: tuple[str, ...] = ()
    lines: list[tuple[str, ...]] = field(default_factory=list)
    text: str = ""

    def start(self) -> None:
        """Prints all but the rows."""
        print(f"\n## {self.title}\n\n{self.note}\n", flush=True)
        if self.columns:
            print(f"{line(self.columns)}\n{line(['---'] + ['---:'] * (len(self.columns) - 1))}", flush=True)

    def add(self, cells: Sequence[str]) -> None:
        """Prints a row and keeps it."""
        self.lines.append(tuple(cells))
        print(line(cells), flush=True)

    def markdown(self) -> str:
        """Returns the whole section."""
        parts = [f"## {self.title}", self.note]
        if self.columns:
            rule = ["---"] + ["---:"] * (len(self.columns) - 1)
            parts.append("\n".join(line(cells) for cells in (self.columns, rule, *self.lines)))
        return "\n\n".join(part for part in (*parts, self.text) if part)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass
class Report:
    """The file: what it was measured on, the tables so far, and what was left out.

    Attributes:
        path: Where it is written, again and again.
        facts: Name and value of each line at the top.
        sections: The tables, in the order of the file.
        left_out: What there was no time for.
    """

    path: Path
    facts: dict[str, str]
    sections: list[Section] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Writes the file as far as there is one."""
        rows = "\n".join(line((name, value)) for name, value in self.facts.items())
        parts = [
            "# stvid on a GPU",
            "`tools/benchmark_gpu.py` writes this file; a rerun replaces it. Its first lines say how it measures.",
            f"| | |\n| --- | --- |\n{rows}",
            *(section.markdown() for section in self.sections),
        ]
        if self.left_out:
            parts.append("## Left out for want of time\n\n" + "\n".join(f"- {name}" for name in self.left_out))
        text = "\n\n".join(parts) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda target: target.write_text(text, encoding="utf-8"))


def ask(command: Sequence[str]) -> str:
    """Returns the first line that a command prints; "unknown" if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def gather_facts(device: torch.device, argv: Sequence[str]) -> dict[str, str]:
    """Returns the machine, the versions, the date and the command."""
    name = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} units"
    facts = {"machine": f"{name}; {os.cpu_count()} cores"}
    if device.type == "cuda":
        driver = ask(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
        facts["driver"] = f"{driver}; CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    packages = ("torchvision", "pytorchvideo", "transformers", "xformers", "triton")
    facts["versions"] = (
        f"Python {platform.python_version()}, stvid {stvid.__version__} "
        f"({ask(['git', 'rev-parse', '--short', 'HEAD'])}), torch {torch.__version__}, "
        + ", ".join(f"{package} {version(package)}" for package in packages)
    )
    facts["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    facts["command"] = f"`{shlex.join(['python', 'tools/benchmark_gpu.py', *argv])}`"
    return facts


# --- cells ------------------------------------------------------------------------------------------------------------


def ratio(seconds: Mapping[str, float], slow: str, fast: str) -> str:
    """Returns how many times as fast one side is as another."""
    return f"{seconds[slow] / seconds[fast]:.2f}" if slow in seconds and fast in seconds else "-"


def rate(row: Row, side: str) -> str:
    """Returns the clips per second of a side, or why there are none."""
    if side in row["seconds"]:
        return f"{row['batch'] / row['seconds'][side]:.1f}"
    return "out of memory" if row["problems"].get(side) == "out of memory" else "-"


def gigabytes(row: Row, side: str) -> str:
    count = row["bytes"].get(side)
    return "-" if count is None else f"{count / 1e9:.2f}"


def notes(row: Row) -> str:
    problems = [f"{side}: {problem}" for side, problem in row["problems"].items() if problem != "out of memory"]
    return "; ".join(filter(None, [row.get("note", ""), *problems]))


def first_cells(row: Row) -> list[str]:
    return [row["case"].model, "x".join(map(str, row["case"].clip)), str(row["batch"]), row["step"]]


MODEL_COLUMNS = (
    "model", "clip", "batch", "step", "stvid clips/s", "peer clips/s", "stvid / peer", "optimized clips/s",
    "stvid GB", "peer GB", "difference", "peer", "notes",
)  # fmt: skip


def model_cells(row: Row) -> list[str]:
    cells = [*first_cells(row), rate(row, "stvid"), rate(row, "peer"), ratio(row["seconds"], "peer", "stvid")]
    cells += [rate(row, "optimized"), gigabytes(row, "stvid"), gigabytes(row, "peer")]
    return [*cells, "-" if row["difference"] is None else f"{row['difference']:.0e}", row["peer"], notes(row)]


COMPILED_COLUMNS = (
    "model", "clip", "batch", "step", "stvid clips/s", "compiled clips/s", "gain", "peer compiled clips/s",
    "stvid / peer", "compiled GB", "peer GB", "notes",
)  # fmt: skip


def compiled_cells(row: Row) -> list[str]:
    own, peer = "stvid compiled", "peer compiled"
    cells = [*first_cells(row), rate(row, "stvid"), rate(row, own), ratio(row["seconds"], "stvid", own)]
    cells += [rate(row, peer), ratio(row["seconds"], peer, own), gigabytes(row, own), gigabytes(row, peer)]
    return [*cells, notes(row)]


def milliseconds(row: Row, side: str) -> str:
    if side in row["seconds"]:
        return f"{1e3 * row['seconds'][side]:.3f}"
    return "out of memory" if row["problems"].get(side) == "out of memory" else "-"


CONVOLUTION_COLUMNS = (
    "convolution", "input", "kernel", "forward, contiguous ms", "forward, channels last ms", "ratio",
    "with gradients, contiguous ms", "with gradients, channels last ms", "ratio", "best GB/s", "notes",
)  # fmt: skip


def convolution_cells(row: Row) -> list[str]:
    case, seconds = row["case"], row["seconds"]
    shape = "x".join(map(str, (case.batch, case.channels, *case.size)))
    cells = [case.title, shape, "x".join(map(str, case.kernel))]
    for step in ("forward", "both"):
        cells += [milliseconds(row, f"{step} contiguous"), milliseconds(row, f"{step} channels last")]
        cells += [ratio(seconds, f"{step} contiguous", f"{step} channels last")]
    forward = [taken for name, taken in seconds.items() if name.startswith("forward")]
    return [*cells, f"{row['bytes'] / min(forward) / 1e9:.0f}" if forward else "-", notes(row)]


BACKENDS = ("chosen", "flash", "efficient", "cuDNN", "math", "xformers")
ATTENTION_COLUMNS = (
    "call", "sequences", "tokens", "heads", "step", *(f"{name} ms" for name in BACKENDS), "math / chosen", "notes",
)  # fmt: skip


def attention_cells(row: Row) -> list[str]:
    title, sequences, tokens, heads, _, with_bias = row["case"]
    cells = [f"{title}{' (bias)' if with_bias else ''}", str(sequences), str(tokens), str(heads), row["step"]]
    cells += [milliseconds(row, name) for name in BACKENDS]
    missing = "; ".join(f"{name}: {why[:60]}" for name, why in row["problems"].items() if name != "xformers")
    return [*cells, ratio(row["seconds"], "math", "chosen"), missing]


def subject_name(subject: Any) -> str:
    return getattr(subject, "model", None) or getattr(subject, "title", None) or str(subject[0])


def add_row(section: Section, row: Row, cells: Callable[[Row], list[str]]) -> None:
    """Adds a row; one without numbers has its problem in the last column."""
    if "problem" in row:
        blank = ["-"] * (len(section.columns) - 2)
        section.add([subject_name(row["case"]), *blank, row["problem"]])
    else:
        section.add(cells(row))


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run: what it measures, until when, and where it writes.

    Attributes:
        plan: What is measured.
        report: The file.
        device: Where.
        end: When all must be over, of `time.monotonic`.
        lanes: Models that are compiled at the same time.
        lane: The process of everything else.
    """

    plan: Plan
    report: Report
    device: torch.device
    end: float
    lanes: int
    lane: Lane

    def left(self, reserve: float = 0.0) -> float:
        """Returns the seconds that are left if some are kept for what comes later."""
        return self.end - reserve - time.monotonic()

    def open(self, section: Section) -> Section:
        """Begins a section of the file."""
        self.report.sections.append(section)
        section.start()
        return section

    def measure(
        self, section: Section, jobs: Sequence[Job], cells: Callable[[Row], list[str]], *, reserve: float, limit: float
    ) -> None:
        """Does jobs one after the other.

        Args:
            section: Where their rows go.
            jobs: The most important first.
            cells: Makes the cells of a row.
            reserve: Seconds that later tables need.
            limit: Seconds of one job; it is ended then.
        """
        for job in jobs:
            if self.left(reserve) < 5:
                self.report.left_out.append(f"{section.title}: {subject_name(job.subject)}")
                continue
            for row in self.lane.run(job, time.monotonic() + min(limit, self.left(reserve))):
                add_row(section, row, cells)
        self.report.write()

    def ceilings(self) -> None:
        """Measures what nothing can exceed, and prints what is known of the machine."""
        for row in self.lane.run(Job("ceilings"), time.monotonic() + min(60, self.left())):
            self.report.facts["ceilings"] = row.get("problem") or (
                f"a bf16 matrix product: {row['tflops']:.3g} TFLOP/s; a copy, read and written: "
                f"{row['gb_per_s']:.3g} GB/s"
            )
        for name, value in self.report.facts.items():
            print(f"{name}: {value}", flush=True)
        self.report.write()

    def models(self) -> None:
        """Measures the models as they are."""
        note = (
            "bf16 by autocast, as `create_model` and the peer's library build the network; both have the same weights. "
            "A training step is forward, cross-entropy, backward and SGD. *optimized* is `stvid.optimize(model)`, "
            "forward only. GB is `torch.cuda.max_memory_allocated` of a step, the other network not counted. "
            "*difference* is the largest of the logits in float32, as a share of their spread."
        )
        section = self.open(Section("Models", note, MODEL_COLUMNS))
        jobs = [Job("model", case, case.batch) for case in self.plan.models]
        self.measure(section, jobs, model_cells, reserve=0.5 * self.left(), limit=45)

    def convolutions(self) -> None:
        """Measures depthwise convolutions."""
        note = (
            "Depthwise, bf16, stride 1. The ratio is how many times as fast channels_last_3d is. GB/s counts the input "
            "read once and the output written once, forward; the copy above is its ceiling."
        )
        section = self.open(Section("Depthwise 3D convolutions", note, CONVOLUTION_COLUMNS))
        jobs = [Job("convolution", case) for case in self.plan.convolutions]
        self.measure(section, jobs, convolution_cells, reserve=0.8 * self.left(), limit=30)

    def attention(self) -> None:
        """Measures the backends of attention."""
        note = (
            f"`attend` in bf16 on the calls of the models, batch {self.plan.batch}. *chosen* is the backend `sdpa`: "
            "torch picks the kernel. *math* is written out. *train* is forward and backward, the bias included. "
            f"xformers: {attention_backends()['xformers'] or 'measured'}."
        )
        section = self.open(Section("Attention", note, ATTENTION_COLUMNS))
        jobs = [Job("attention", call, self.plan.batch) for call in self.plan.calls]
        self.measure(section, jobs, attention_cells, reserve=0.8 * self.left(), limit=30)

    def tests(self) -> None:
        """Runs the tests that need a GPU."""
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-p", "no:cacheprovider"]
        command += self.plan.tests
        if (os.cpu_count() or 1) >= 8 and importlib.util.find_spec("xdist"):
            command += ["-n", "4"]
        section = self.open(Section("Tests", f"`python {shlex.join(command[1:])}`"))
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "STVID_TEST_DEVICE": self.device.type, "PYTHONPATH": paths}
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            output, _ = process.communicate(timeout=max(1.0, min(150, self.left(10))))
            outcome = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            outcome = "stopped for want of time"
        section.text = f"{outcome}, {time.monotonic() - started:.0f} s\n\n```\n{shorten(output)}\n```"
        print(section.text, flush=True)
        self.report.write()

    def compiled(self) -> None:
        """Measures compiled models: compiles several at a time, then times one after the other."""
        note = (
            "As above, by torch.compile with its defaults, in a quarter of the batch: several models are compiled at "
            "the same time, and timed one after the other. *gain* is how many times as fast compiling makes stvid's."
        )
        section = self.open(Section("Models, compiled", note, COMPILED_COLUMNS))
        self.report.sections.insert(1, self.report.sections.pop())  # beside the other table of models
        cases = list(self.plan.compiled)
        while cases and self.left(5) > 20:
            wave, cases = cases[: self.lanes], cases[self.lanes :]
            lanes = [Lane(str(self.device), torch.get_num_threads()) for _ in wave]
            for lane, case in zip(lanes, wave, strict=True):
                lane.begin(Job("compiled", case, case.batch))
            compiling_ends = time.monotonic() + 0.75 * self.left(5)
            for lane in lanes:
                for row in lane.rows(compiling_ends):
                    add_row(section, row, compiled_cells)
            for lane in lanes:  # nothing compiles any more
                if lane.ready:
                    for row in lane.rows(time.monotonic() + max(0.0, min(30, self.left(5)))):
                        add_row(section, row, compiled_cells)
                lane.stop()
            self.report.write()
        self.report.left_out += [f"{section.title}: {case.model}" for case in cases]


def shorten(output: str, lines: int = 40) -> str:
    """Returns the end of what pytest printed, without paths of this machine."""
    kept = output.replace(f"{ROOT}{os.sep}", "").replace(sys.prefix, "...").strip().splitlines()
    return "\n".join(text[:200] for text in kept[-lines:])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu.md", help="default: docs/gpu.md")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds in all (default: 460)")
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu with --smoke")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and a few rows, to try the script out")
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(
            2,
            f"no CUDA device: torch {torch.__version__} sees none; to try the script out, add --device cpu --smoke\n",
        )
    if not options.device.startswith("cuda") and not options.smoke:
        parser.error(f"--device {options.device} needs --smoke: the full sizes are meant for a GPU")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the options and measures."""
    started = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    device, cores = torch.device(options.device), os.cpu_count() or 1
    lanes = max(1, min(7, cores // 2))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, cores // lanes)))  # of each process
    plan, lane = SMOKE if options.smoke else FULL, Lane(str(device), torch.get_num_threads())
    run = Run(plan, Report(options.out, gather_facts(device, argv)), device, started + options.budget, lanes, lane)
    run.ceilings()
    run.models()
    run.convolutions()
    run.attention()
    lane.stop()
    run.tests()
    run.compiled()
    run.report.facts["took"] = f"{time.monotonic() - started:.0f} s of {options.budget:.0f}"
    run.report.write()
    for name in run.report.left_out:
        print(f"left out: {name}", flush=True)
    print(f"\nwritten: {options.out}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
