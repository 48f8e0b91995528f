"""The cost of attention: growth with the frames, the backends on each family's calls, and the savings of token merging.

    python tools/benchmark_attention.py --growth --plot docs/attention_growth.png
    python tools/benchmark_attention.py --backends
    python tools/benchmark_attention.py --rates
    python tools/benchmark_attention.py --merge
    python tools/benchmark_attention.py --merge --checkpoint runs/NAME --val val.csv    # accuracy instead of agreement

--growth runs small models (a few blocks, few channels, so that attention and not the rest is what grows) on 8 to 96
frames: joint and divided attention (TimeSformer), the factorised encoder (ViViT model 2), X-ViT and Video Swin. Printed
are the multiply-adds of the attention alone and of the whole, the time and the most memory above the start of each, the
exponents fitted to them, and beside them what the papers say. Each model runs in a process of its own, on its frames in
increasing order, since a process can only tell its largest use of memory so far.

--backends times `attend` on the calls that the published models make, alternating between backends. --rates prints the
rate of the published models as a share of the rate of matrix products at that moment. --merge prints time,
multiply-adds and agreement with the unmerged model for some r; with random weights that says how much merging changes,
not how good it is: for accuracy give a trained checkpoint and its videos.

On a CPU times are processor time over all threads, which other processes on the machine disturb least; the medians of
alternating rounds are printed. On a GPU they are those of its own clock, from start to synchronisation.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import benchmarking
import torch
from benchmarking import alternate, low_precision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import stvid
from stvid.models.attention import attend, attention_backends

FRAMES = (8, 16, 32, 48, 64, 96)
SIDE = 112
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 64, "num_heads": 2, "num_classes": 10}
# (title, model, options, what the papers say of the attention in S places and T times)
GROWTH: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("joint", "timesformer_base", {**SMALL, "attention_type": "joint_space_time"}, "(ST)^2"),
    ("divided", "timesformer_base", SMALL, "S^2 T + S T^2"),
    ("factorised", "vivit_b16x2_fe", {**SMALL, "tubelet_size": (1, 16, 16), "temporal_depth": 1}, "S^2 T (+ T^2)"),
    ("X-ViT", "xvit_base", SMALL, "S^2 T (+ T^2)"),
    (
        "Swin",
        "swin3d_t",
        {**SMALL, "depth": (1, 1, 2, 1), "embed_dim": 32, "num_heads": (1, 2, 4, 8), "patch_size": (1, 4, 4)},
        "S T",
    ),
)
# (title, sequences, queries, keys, heads, channels of a head, whether there is a bias) of batch 1, published size
CALLS: tuple[tuple[str, int, int, int, int, int, bool], ...] = (
    ("ViViT joint", 1, 3137, 3137, 12, 64, False),
    ("TimeSformer space", 8, 197, 197, 12, 64, False),
    ("TimeSformer time", 196, 8, 8, 12, 64, False),
    ("Swin-T stage 1", 16, 392, 392, 3, 32, True),
    ("Swin-T stage 3", 8, 392, 392, 12, 32, True),
    ("UniFormer-S stage 3", 1, 1568, 1568, 5, 64, False),
    ("MViT-B stage 3", 1, 1569, 393, 4, 96, False),
)
RATES = ("swin3d_t", "timesformer_base", "vivit_b16x2", "xvit_base")
MERGED = (0, 4, 8, 16, 32)


# --- measuring --------------------------------------------------------------------------------------------------------


def medians(works: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    """Returns the median seconds of each work: of the processors on a CPU, of the clock on a GPU."""
    return benchmarking.medians(
        alternate(works, rounds=rounds, device=device), "wall" if device.type == "cuda" else "cpu"
    )


def multiply_adds(model: nn.Module, shape: Sequence[int]) -> tuple[float, float]:
    """Returns those of the attention's two products, and of everything, without computing anything."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta").eval()(torch.empty(shape, device="meta"))
    products = counter.get_flop_counts()["Global"]
    attention = sum(count for name, count in products.items() if "bmm" in str(name) or "attention" in str(name))
    return attention / 2, counter.get_total_flops() / 2


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns b of y = a x^b, by least squares over logarithms."""
    u, v = [math.log(value) for value in x], [math.log(max(value, 1e-9)) for value in y]
    mean_u, mean_v = statistics.mean(u), statistics.mean(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)


def matrix_rate(device: torch.device, dtype: torch.dtype, rounds: int) -> float:
    """Returns multiply-adds per second of one large matrix product."""
    a, b = torch.randn(4096, 1024, device=device, dtype=dtype), torch.randn(1024, 4096, device=device, dtype=dtype)
    with torch.inference_mode():
        taken = medians({"product": lambda: a @ b}, device, rounds)["product"]
    return 4096 * 1024 * 4096 / taken


# --- growth with the frames -------------------------------------------------------------------------------------------


def grow_one(title: str, device: torch.device, rounds: int) -> None:
    """Measures one model on all frames and prints a line of JSON for each; runs in a process of its own."""
    _, name, options, _ = next(row for row in GROWTH if row[0] == title)
    model = stvid.create_model(name, num_frames=FRAMES[-1], img_size=SIDE, **options).eval().to(device)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for frames in FRAMES:
        clip = torch.randn(1, 3, frames, SIDE, SIDE, device=device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            start = torch.cuda.memory_allocated(device) // 1024
        with torch.inference_mode():
            taken = medians({title: lambda clip=clip: model(clip)}, device, rounds)[title]  # type: ignore[misc]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) // 1024
        print(json.dumps({"frames": frames, "seconds": taken, "megabytes": (peak - start) / 1024}), flush=True)


def growth(device: torch.device, rounds: int, plot: Path | None) -> None:
    """Prints the table of growth, and draws it."""
    results: dict[str, list[dict[str, float]]] = {}
    print(f"{'':12}{'frames':>7}{'attention G':>13}{'all G':>9}{'s':>9}{'MB':>9}")
    for title, name, options, paper in GROWTH:
        command = [sys.executable, __file__, "--grow-one", title, "--device", str(device), "--rounds", str(rounds)]
        command += ["--threads", str(torch.get_num_threads())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{title}: its process ended with {done.returncode}; the reason is above")
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for row in rows:
            model = stvid.create_model(name, num_frames=FRAMES[-1], img_size=SIDE, **options)
            row["attention"], row["all"] = multiply_adds(model, (1, 3, int(row["frames"]), SIDE, SIDE))
            print(
                f"{title:12}{row['frames']:7.0f}{row['attention'] / 1e9:13.3f}{row['all'] / 1e9:9.3f}"
                f"{row['seconds']:9.3f}{row['megabytes']:9.0f}"
            )
        late = [row for row in rows if row["frames"] >= 32]
        x = [row["frames"] for row in late]
        fitted = {key: exponent(x, [row[key] for row in late]) for key in ("attention", "all", "seconds", "megabytes")}
        print(
            f"{title:12} grows from 32 frames on as T^{fitted['attention']:.2f} (attention; paper: {paper}), "
            f"T^{fitted['all']:.2f} (all), T^{fitted['seconds']:.2f} (time), T^{fitted['megabytes']:.2f} (memory)\n"
        )
        results[title] = rows
    if plot is not None:
        draw(results, plot)
        print(f"plot: {plot}")


def draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draws multiply-adds of the attention, time and memory against frames, all axes logarithmic."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator
    except ImportError:
        sys.exit("the plot needs matplotlib: pip install 'stvid[dev]'")
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = (
        ("attention", "multiply-adds of the attention", 1e-9, "G"),
        ("seconds", "time of a forward pass", 1.0, "s"),
        ("megabytes", "memory above the start", 1.0, "MB"),
    )
    for axes, (key, title, factor, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        for (name, rows), style in zip(results.items(), ("o-", "s-", "D-", "^:", "v-"), strict=True):
            axes.plot([row["frames"] for row in rows], [row[key] * factor for row in rows], style, label=name)
        axes.set(xscale="log", yscale="log", xlabel="frames", title=f"{title} ({unit})")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(FRAMES, labels=[str(frames) for frames in FRAMES])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


# --- backends, rates, merging -----------------------------------------------------------------------------------------


def compare_backends(device: torch.device, rounds: int) -> None:
    """Prints the time of each family's attention with each backend, and with torch's own function in torch's layout."""
    usable = [name for name, problem in attention_backends().items() if not problem]
    for name, problem in attention_backends().items():
        if problem:
            print(f"{name}: left out, {problem}")
    print(f"{'ms':24}{'type':>10}{'torch':>9}" + "".join(f"{name:>10}" for name in usable))
    for title, sequences, queries, keys, heads, channels, with_bias in CALLS:
        for dtype in (torch.float32, torch.bfloat16):
            kind: dict[str, Any] = {"device": device, "dtype": dtype}
            parts = torch.randn(sequences, keys, 3, heads, channels, **kind).unbind(2)
            q = parts[0] if queries == keys else torch.randn(sequences, queries, heads, channels, **kind)
            qkv = (q, *parts[1:])
            bias = torch.randn(1, heads, queries, keys, **kind) if with_bias else None
            works: dict[str, Callable[[], Any]] = {"torch": lambda qkv=qkv, bias=bias: _torch(qkv, bias)}  # type: ignore[misc]
            for name in usable:
                works[name] = lambda qkv=qkv, bias=bias, name=name: attend(  # type: ignore[misc]
                    *qkv, bias=bias, layout="BMHK", backend=name
                )
            with torch.inference_mode():
                times = medians(works, device, rounds)
            print(
                f"{title:24}{str(dtype).removeprefix('torch.'):>10}"
                + "".join(f"{1e3 * taken:{9 if name == 'torch' else 10}.2f}" for name, taken in times.items())
            )


def _torch(qkv: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in qkv)
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def rates(device: torch.device, rounds: int) -> None:
    """Prints what share of the machine's rate of matrix products each published model reaches, batch 1."""
    print(f"{'':20}{'type':>10}{'s':>8}{'G/s':>8}{'of the matrix rate':>20}")
    for name in RATES:
        model = stvid.create_model(name).eval()
        frames, side = model.default_protocol.frames, model.default_protocol.crop
        _, total = multiply_adds(stvid.create_model(name), (1, 3, frames, side, side))
        clip = torch.randn(1, 3, frames, side, side, device=device)
        model.to(device)
        for dtype in (torch.float32, torch.bfloat16):
            with torch.inference_mode(), low_precision(device, enabled=dtype != torch.float32):
                taken = medians({name: lambda model=model, clip=clip: model(clip)}, device, rounds)[name]  # type: ignore[misc]
            rate = total / taken
            share = rate / matrix_rate(device, dtype, rounds)
            kind = str(dtype).removeprefix("torch.")
            print(f"{name:20}{kind:>10}{taken:8.3f}{rate / 1e9:8.0f}{share:20.0%}", flush=True)


def merging(device: torch.device, rounds: int, name: str, checkpoint: str | None, val: str | None) -> None:
    """Prints cost and agreement, or accuracy, for several r."""
    model = stvid.load_model(checkpoint) if checkpoint else stvid.create_model(name, img_size=112, num_frames=16).eval()
    if not checkpoint:
        torch.manual_seed(0)
        # ViViT's starts at zero, and all classes would be equal
        nn.init.normal_(model.get_classifier().weight, std=0.02)
    name = model.recipe["name"]
    (height, width), frames = model.recipe["img_size"], model.recipe["num_frames"]
    clip = torch.randn(8, 3, frames, height, width, device=device)
    model.to(device)
    scores: dict[int, Tensor] = {}
    print(
        f"{name}, {frames} x {height} x {width}, batch {len(clip)}"
        + ("" if checkpoint else ", random weights and clips")
    )
    print(f"{'r':>4}{'G a clip':>10}{'clips/s':>9}{'faster':>8}{'same top-1':>12}{'correlation':>13}{'accuracy':>10}")
    first = 0.0
    for r in MERGED:
        stvid.merge_tokens(model, r)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(clip[:1])
        cost = counter.get_total_flops() / 2e9
        with torch.inference_mode():
            scores[r] = model(clip).float()
            rate = len(clip) / medians({"merged": lambda: model(clip)}, device, rounds)["merged"]
        first = first or rate
        plain, merged = (scores[number] - scores[number].mean(1, keepdim=True) for number in (0, r))
        same = (plain.argmax(1) == merged.argmax(1)).float().mean()
        correlation = nn.functional.cosine_similarity(plain, merged, dim=1).mean()
        accuracy = ""
        if val is not None:
            metrics = stvid.evaluate(model, val, views="1x1").metrics
            accuracy = f"{metrics['top1@1x1']:.1%}"
        print(
            f"{r:4}{cost:10.2f}{rate:9.2f}{rate / first:8.2f}{same:12.0%}{correlation:13.3f}{accuracy:>10}", flush=True
        )


def main() -> None:
    """Reads the options and runs what they name."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--growth", action="store_true", help="time and memory against frames")
    parser.add_argument("--backends", action="store_true", help="the backends on each family's calls")
    parser.add_argument("--rates", action="store_true", help="share of the machine's matrix-product rate")
    parser.add_argument("--merge", action="store_true", help="token merging: cost against agreement")
    parser.add_argument("--plot", type=Path, help="where to draw the growth (.png or .svg)")
    parser.add_argument("--model", default="vivit_b16x2", help="the model of --merge (default: vivit_b16x2)")
    parser.add_argument("--checkpoint", help="trained weights for --merge, as stvid.load_model takes them")
    parser.add_argument("--val", help="the videos on which --merge measures accuracy; needs --checkpoint")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each work (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--grow-one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.val and not options.checkpoint:
        parser.error("--val needs --checkpoint: random weights have no accuracy")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    if options.grow_one:
        return grow_one(options.grow_one, device, options.rounds)
    if not (options.growth or options.backends or options.rates or options.merge):
        parser.error("name at least one of --growth, --backends, --rates, --merge")
    if options.growth:
        growth(device, options.rounds, options.plot)
    if options.backends:
        compare_backends(device, options.rounds)
    if options.rates:
        rates(device, options.rounds)
    if options.merge:
        merging(device, options.rounds, options.model, options.checkpoint, options.val)
    return None


if __name__ == "__main__":
    main()
