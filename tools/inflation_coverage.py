"""Which image networks can be inflated: every classifier of timm and torchvision, one row for each way to see frames.

    python tools/inflation_coverage.py --out /tmp/coverage            # all; a run that was stopped goes on
    python tools/inflation_coverage.py --out /tmp/coverage --first --prove  # the smallest network of each file
    python tools/inflation_coverage.py --out /tmp/coverage --report docs/inflation_coverage.md
    python tools/inflation_coverage.py --out /tmp/coverage --known docs/inflation_coverage.csv  # the others

A network is built with random weights at the smallest input that it takes, and must, for each of conv, shift and (if it
has attention) attention: convert; give, for an image repeated over three frames, the logits of the image, to 1e-5 of
the difference that the image makes; and give other logits for a clip played backwards. For `conv` the kernels start as
averages, so that the ends of the clip count too. Before the last check the weights that mix frames are perturbed, since
they start symmetric or at zero; a shift has none. What differs by more in float32 is computed again in float64.

With `--prove` the model is made by `stvid.inflate`, whose own proof must succeed before these checks are made.

Results are lines of JSON in <output>/results.jsonl. `--report` writes the summary and, beside it with the suffix .csv,
a line for each network; `--known` takes such a file's networks as done. A worker that exceeds the time is killed, and
the model counted as failed; so is one that needs more memory than allowed. Networks of more parameters than `--largest`
are built with a few blocks only where their depth is an option, and the report says so.
"""

from __future__ import annotations

import argparse
import copy
import csv
import fnmatch
import gc
import json
import math
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from collections import Counter, defaultdict
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

MODES = ("conv", "shift", "attention")
FRAMES = 3
TOLERANCE = 1e-5
RESPONSE = 1e-4  # least change of the logits with the order of the frames, relative like the tolerance
SIZES = (64, 56, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512)
SMALL = 250e6  # parameters up to which a network is copied for each mode instead of built again
# Blocks; those of each stage; blocks of a network that lists the heads of the keys of each.
SHALLOW: tuple[dict[str, Any], ...] = (
    {"depth": 4},
    {"depths": (2, 2, 2, 2)},
    {"depth": 4, "num_kv_heads": (8, 8, 8, 8)},
)
NOISE = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
PERIOD = 1_000_003  # parameters begin at different places of the noise
JOBS = 25  # networks after which a process is replaced, since oneDNN keeps the code that it makes for each shape
NO_MEMORY = ("allocate memory", "could not create a primitive", "MemoryError")  # in messages; the second is oneDNN's


# --- one network ------------------------------------------------------------------------------------------------------


def fill(network: nn.Module) -> None:
    """Gives every parameter random values, also those that start at zero, so that nothing is hidden behind a zero."""
    from timm.layers import CondConv2d

    # A convolution that is mixed from several keeps each as one row.
    convs = ((name, module) for name, module in network.named_modules() if isinstance(module, CondConv2d))
    mixed = {f"{name}.weight": conv.weight_shape for name, conv in convs}
    place = 0
    for name, parameter in network.named_parameters():
        noise = NOISE[place:]
        noise = noise.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()].view(parameter.shape)
        place = (place + parameter.numel()) % PERIOD
        fan_in = max(1, math.prod(mixed.get(name, parameter.shape)[1:]))
        with torch.no_grad():
            if parameter.dim() >= 2:
                parameter.copy_(noise * fan_in**-0.5)
            elif name.endswith("bias"):
                parameter.copy_(noise * 0.1)
            else:
                parameter.copy_(1 + noise * 0.1)


def calibrate(network: nn.Module, size: int) -> None:
    """Lets batch norms know the activations of these weights, as they would after a training: if they do not normalise,
    activations grow from block to block, and what the last blocks add is lost beside them."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        network(torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(2)))
    for norm in norms:
        norm.eval()


def build(library: str, name: str, size: int, options: dict[str, Any]) -> nn.Module:
    """Builds a network without its own initialisation, which is slow and replaced by `fill`."""
    from stvid.inflation.placement import has_attention
    from stvid.inflation.sources import ImageOrigin

    with ExitStack() as patches:
        for draw in ("uniform_", "normal_"):  # what all of torch's and timm's initialisations come to
            # a value in bounds: truncated draws are repeated until they are
            constant = lambda tensor, mean=0.0, *args, **kwargs: tensor.fill_(mean)  # noqa: E731
            patches.enter_context(mock.patch.object(Tensor, draw, constant))
        patches.enter_context(mock.patch.object(Tensor, "erfinv_", lambda tensor: tensor))
        network = ImageOrigin(library, name, options=options).build(num_classes=10, img_size=(size, size))
    fill(network.eval())
    if has_attention(
        network, (size, size)
    ):  # the others do without, and deep ones would let rounding grow until it shows
        calibrate(network, size)
    return network


def parameters(library: str, name: str) -> float:
    """Counts on the meta device; 0 if the network cannot be built there."""
    from stvid.inflation.sources import ImageOrigin

    origin = ImageOrigin(library, name)
    size = origin.settings()["crop"]
    try:
        with torch.device("meta"):
            network = origin.build(num_classes=10, img_size=(size, size))
    except Exception:
        return 0
    return sum(parameter.numel() for parameter in network.parameters())


def smallest(library: str, name: str, options: dict[str, Any]) -> tuple[nn.Module, int]:
    """Returns a network with the smallest square input that it takes."""
    from stvid.errors import StvidError
    from stvid.inflation.sources import ImageOrigin

    native = ImageOrigin(library, name).settings()["crop"]
    problem: Exception | None = None
    for size in (*[size for size in SIZES if size < native], native):
        try:
            network = build(library, name, size, options)
            with torch.no_grad():
                logits = network(torch.randn(2, 3, size, size))
            if isinstance(logits, Tensor) and logits.isfinite().all() and (logits[0] - logits[1]).abs().max() > 0:
                return network, size
            problem = ValueError("logits that are no numbers, or do not depend on the image")
        except (
            StvidError,
            RuntimeError,
            AssertionError,
            ValueError,
            TypeError,
            IndexError,
            ZeroDivisionError,
        ) as error:
            problem = error
            if isinstance(error, TypeError) and options:
                raise
    raise problem if problem is not None else ValueError("no size")


def perturb(model: Any) -> None:
    """Breaks the symmetry in time of everything that was added."""
    from stvid.inflation.temporal import TemporalConv

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, TemporalConv):
                part.weight.add_(
                    torch.randn(part.weight.shape, generator=generator) * part.weight.std().clamp(min=1e-3)
                )
        for parameter in model.temporal.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def measure(network: nn.Module, mode: str, size: int, name: str, *, prove: bool = False) -> dict[str, Any]:
    """Inflates a network, in place unless with the library's own proof, and compares."""
    from stvid.inflation.inflate import inflate_with_report
    from stvid.inflation.model import InflatedModel
    from stvid.inflation.options import InflationOptions
    from stvid.inflation.proof import FewFrames, unround_filters

    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator)
    clip = torch.randn(1, 3, FRAMES, size, size, generator=generator)
    dtype = next(network.parameters()).dtype
    images, clip = images.to(dtype), clip.to(dtype)
    options: dict[str, Any] = {"temporal": mode, **({"init": "average"} if mode == "conv" else {})}
    with torch.no_grad(), FewFrames() if dtype == torch.float64 else nullcontext():
        expected = network(images)
        scale = (expected[0] - expected[1]).abs().max()
        if prove:
            with torch.enable_grad():  # it trains a step
                made = inflate_with_report(network, num_frames=FRAMES, img_size=(size, size), **options)
            if not made.report.as_promised:
                raise ValueError(f"the proof fails: {made.report.verdict()}")
            model = made.model
        else:
            model = InflatedModel(
                network, InflationOptions(**options), num_frames=FRAMES, img_size=(size, size), source_name=name
            ).eval()
        if dtype == torch.float64:
            unround_filters(model)
        found = model(images[:, :, None].expand(-1, -1, FRAMES, -1, -1))
        still = ((found - expected).abs().max() / scale).item()
        if mode != "shift":
            perturb(model)
        forwards, backwards = model(torch.cat((clip, clip.flip(2))))
        order = ((forwards - backwards).abs().max() / scale).item()
    return {"still": still, "order": order, "layers": len(model.inflated)}


def check(
    library: str, name: str, modes: list[str], count: float, largest: float, prove: bool = False
) -> list[dict[str, Any]]:
    """Returns a record for each mode."""
    from stvid.errors import StvidError
    from stvid.inflation.placement import has_attention

    base: dict[str, Any] = {"library": library, "name": name}
    base["parameters"] = count
    options: dict[str, Any] = {}
    try:
        for options in (*(SHALLOW if count > largest else ()), {}):
            try:
                network, size = smallest(library, name, options)
                break
            except (TypeError, ValueError, RuntimeError, StvidError):
                if not options:  # a network whose depth cannot be chosen is built whole
                    raise
        if options:
            base["built_with"] = options
    except Exception as error:
        return [{**base, "mode": mode, "problem": f"2D network: {one_line(error)}"} for mode in modes]
    base["size"] = size
    base["parameters"] = count or sum(parameter.numel() for parameter in network.parameters())
    records = []
    attends = has_attention(network, (size, size))
    small = sum(parameter.numel() for parameter in network.parameters()) < SMALL
    if not small:
        del network
    for mode in modes:
        record = {**base, "mode": mode}
        started = time.perf_counter()
        try:
            if mode == "attention" and not attends:
                record["skipped"] = "no attention"
            else:
                for dtype in (torch.float32, torch.float64):
                    used = copy.deepcopy(network) if small else build(library, name, size, options)
                    found = measure(used.to(dtype), mode, size, name, prove=prove and dtype == torch.float32)
                    record.update(found, dtype=str(dtype).removeprefix("torch."))
                    del used  # before the next is built
                    if record["still"] < TOLERANCE:
                        break
        except Exception as error:
            record["problem"] = one_line(error)
        record["seconds"] = round(time.perf_counter() - started, 2)
        records.append(record)
    return records


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# --- workers ----------------------------------------------------------------------------------------------------------


def work(pipe: Any, memory: float, largest: float, timeout: float, prove: bool) -> None:
    """Checks the networks that come through a pipe."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30), int(memory * 2**30)))
    import timm  # noqa: F401

    pipe.send("ready")
    while True:
        job = pipe.recv()
        # Of the processor's time: a worker that was stopped for a while has not failed.
        limit = math.ceil(time.process_time() + timeout)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            pipe.send(check(*job, largest, prove))
        except MemoryError as error:
            pipe.send(
                [{"library": job[0], "name": job[1], "mode": mode, "problem": one_line(error)} for mode in job[2]]
            )
        gc.collect()


def lacks_memory(records: list[dict[str, Any]]) -> bool:
    return any(text in record.get("problem", "") for record in records for text in NO_MEMORY)


class Worker:
    """A process that can be replaced; one that lacks memory after other networks tries again in a new one."""

    def __init__(self, memory: float, largest: float, timeout: float, prove: bool) -> None:
        self.arguments = (memory, largest, timeout, prove)
        self.start()

    def start(self) -> None:
        """Starts the process and waits until it has imported everything."""
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, *self.arguments), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()
        self.job: tuple[str, str, list[str], float] | None = None
        self.given = 0

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.join()

    def give(self, job: tuple[str, str, list[str], float]) -> None:
        """Sends a network."""
        if self.given == JOBS:
            self.stop()
            self.start()
        self.given += 1
        self.job = job
        self.pipe.send(job)

    def result(self) -> list[dict[str, Any]] | None:
        """Returns the records of the current network, if they are there or it has failed."""
        assert self.job is not None
        library, name, modes, _ = self.job
        try:
            if not self.pipe.poll(0.05):
                return None
            records = self.pipe.recv()
            if lacks_memory(records) and self.given > 1:
                job = self.job
                self.stop()
                self.start()
                self.give(job)
                return None
            self.job = None
            return records
        except EOFError:
            self.process.join()
        late = self.process.exitcode == -signal.SIGXCPU
        problem = "not done in the given time" if late else "the process ended, probably for lack of memory"
        self.start()
        return [{"library": library, "name": name, "mode": mode, "problem": problem} for mode in modes]


# --- all networks -----------------------------------------------------------------------------------------------------


def count_parameters(path: Path) -> dict[tuple[str, str], float]:
    """Counts the parameters of all networks, and keeps the counts in a file."""
    from stvid.inflation.sources import LIBRARIES, image_models

    known = json.loads(path.read_text()) if path.exists() else {}
    for library in LIBRARIES:
        for name in image_models(library):
            if f"{library}:{name}" not in known:
                known[f"{library}:{name}"] = parameters(library, name)
    path.write_text(json.dumps(known))
    return {(library, name): known[f"{library}:{name}"] for library in LIBRARIES for name in image_models(library)}


def jobs(counts: dict[tuple[str, str], float], pattern: str, first: bool) -> list[tuple[str, str]]:
    """Returns libraries and names: the smallest network of each file of the libraries, the second of each, and so on,
    so that a run that is stopped has seen all families."""
    import timm
    import torchvision

    entry = {"timm": timm.model_entrypoint, "torchvision": torchvision.models.get_model_builder}
    seen: Counter[str] = Counter()
    rounds: dict[tuple[str, str], int] = {}
    for library, name in sorted(counts, key=lambda key: counts[key]):
        file = entry[library](name).__module__
        rounds[library, name] = seen[file]
        seen[file] += 1
    names = sorted(rounds, key=lambda key: rounds[key])  # which keeps the smallest first within a round
    names = [name for name in names if not (first and rounds[name])]
    return [(library, name) for library, name in names if fnmatch.fnmatch(f"{library}:{name}", pattern)]


def read(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Returns the last record of each network and mode."""
    records = {}
    if path.exists():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            records[record["library"], record["name"], record["mode"]] = record
    return records


def write_table(records: dict[tuple[str, str, str], dict[str, Any]], path: Path) -> None:
    """Writes a line for each network: in a mode's cell what was measured, or why nothing; empty if it was not tried."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("library", "name", "parameters", "size", "blocks", *MODES))
        for library, name in sorted({key[:2] for key in records}):
            found = {mode: records[library, name, mode] for mode in MODES if (library, name, mode) in records}
            any_of = next(iter(found.values()))
            built = any_of.get("built_with", {})
            blocks = " ".join(map(str, built.get("depths", ()))) or built.get("depth", "")
            cells = [cell(found[mode]) if mode in found else "" for mode in MODES]
            rows.writerow((library, name, int(any_of.get("parameters", 0)), any_of.get("size", ""), blocks, *cells))


def cell(record: dict[str, Any]) -> str:
    for key in ("skipped", "problem"):
        if key in record:
            return f"{key}: {record[key]}"
    still = f"{record['still']:.2e}"
    if record["still"] < TOLERANCE <= float(still):  # it would be read back as a failure
        still = f"{record['still']:.9e}"
    return f"{still} {record['order']:.1e} {record['dtype']}"


def read_table(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Returns the records of a file of `write_table`, but for how long they took."""
    records = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for mode in MODES:
                if not row[mode]:
                    continue
                record: dict[str, Any] = {"parameters": int(row["parameters"])}
                if row["size"]:
                    record["size"] = int(row["size"])
                if " " in row["blocks"]:
                    record["built_with"] = {"depths": [int(blocks) for blocks in row["blocks"].split()]}
                elif row["blocks"]:
                    record["built_with"] = {"depth": int(row["blocks"])}
                kind, colon, text = row[mode].partition(": ")
                if colon:
                    record[kind] = text
                else:
                    still, order, record["dtype"] = row[mode].split()
                    record.update(still=float(still), order=float(order))
                records[row["library"], row["name"], mode] = record
    return records


def failed(record: dict[str, Any]) -> str:
    """Returns why a record is no success; empty if it is one."""
    if "problem" in record:
        return record["problem"]
    if not record["still"] < TOLERANCE:
        return f"still video differs by {record['still']:.1e} ({record['dtype']})"
    if not record["order"] > RESPONSE:
        return f"does not respond to the order of frames ({record['order']:.1e})"
    return ""


def report(records: dict[tuple[str, str, str], dict[str, Any]], total: int, earlier: int = 0) -> str:
    """Returns the summary and the failures in Markdown.

    Args:
        records: What `read` and `read_table` returned.
        total: The number of networks that there are.
        earlier: How many of them an earlier run measured, whose table was given as known.
    """
    import timm
    import torchvision

    lines = [
        "# Which image networks can be inflated",
        "",
        f"Written by `python tools/inflation_coverage.py`, with timm {timm.__version__}, torchvision "
        f"{torchvision.__version__} and torch {torch.__version__}:",
        f"{len({key[:2] for key in records})} of {total} networks"
        f"{f', {earlier} of them as an earlier version measured them' if earlier else ''}.",
        "",
        "| library | temporal | networks | converted, still video equal, order seen | share |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for (library, _, mode), record in sorted(records.items()):
        if "skipped" not in record:
            groups[library, mode].append(record)
    for (library, mode), group in sorted(groups.items(), key=lambda item: (item[0][0], MODES.index(item[0][1]))):
        good = sum(not failed(record) for record in group)
        lines.append(f"| {library} | {mode} | {len(group)} | {good} | {100 * good / len(group):.1f}% |")
    rows = [
        f"| {library}:{name} | {mode} | {reason.replace('|', '/')} |"
        for (library, name, mode), record in sorted(records.items())
        if "skipped" not in record and (reason := failed(record))
    ]
    lines += (
        ["", "Failures:", "", "| network | temporal | reason |", "|---|---|---|", *rows]
        if rows
        else ["", "No failure."]
    )
    shallow = sorted({f"{library}:{name}" for (library, name, _), record in records.items() if "built_with" in record})
    lines += ["", f"Built with fewer blocks (4, or 2 a stage), for their size: {', '.join(shallow) or 'none'}.", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl")
    parser.add_argument("--models", default="*", help="pattern of library:name")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--first", action="store_true", help="only the smallest network of each file")
    parser.add_argument("--prove", action="store_true", help="make stvid's own proof, too, which takes longer")
    parser.add_argument("--again", action="store_true", help="repeat what has failed")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds of CPU time for one network")
    parser.add_argument("--memory", type=float, default=12, help="address space of a worker in GiB")
    parser.add_argument("--largest", type=float, default=8e8, help="parameters; larger networks are built shallow")
    parser.add_argument("--known", type=Path, help="table of an earlier --report (.csv): what it has is not repeated")
    parser.add_argument("--report", type=Path, help="write the summary to this file (.md), the table beside it; stop")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.jsonl"
    known = {**({} if options.known is None else read_table(options.known)), **read(path)}
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        total = len(count_parameters(options.out / "parameters.json"))
        earlier = len({key[:2] for key in known} - {key[:2] for key in read(path)})
        options.report.write_text(report(known, total, earlier), encoding="utf-8")
        write_table(known, options.report.with_suffix(".csv"))
        return 0
    waiting = []
    counts = count_parameters(options.out / "parameters.json")
    for library, name in jobs(counts, options.models, options.first):
        modes = [
            mode
            for mode in options.modes.split(",")
            if (library, name, mode) not in known
            or (options.again and "skipped" not in known[library, name, mode] and failed(known[library, name, mode]))
        ]
        if modes:
            waiting.append((library, name, modes, counts[library, name]))
    print(f"{len(waiting)} networks", flush=True)
    workers = [
        Worker(options.memory, options.largest, options.timeout, options.prove)
        for _ in range(min(options.workers, len(waiting)))
    ]
    outcome: Counter[str] = Counter()
    with path.open("a") as file:
        while waiting or any(worker.job for worker in workers):
            for worker in workers:
                if worker.job is None and waiting:
                    worker.give(waiting.pop(0))
                if worker.job is None or (records := worker.result()) is None:
                    continue
                for record in records:
                    file.write(json.dumps(record) + "\n")
                    reason = "" if "skipped" in record else failed(record)
                    outcome["failed" if reason else "good"] += 1
                    if reason:
                        print(f"{record['library']}:{record['name']} {record['mode']}: {reason}", flush=True)
                file.flush()
    for worker in workers:
        worker.stop()
    print(dict(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
