"""Models beside their peers: one process, alternating rounds, medians, ratios.

    python tools/benchmark_models.py                                # all pairs, float32, batch 1, forward
    python tools/benchmark_models.py --models 's3d' 'i3d*' --batch 1 4 --dtype float32 bf16 optimized
    python tools/benchmark_models.py --step train --dtype float32
    python tools/benchmark_models.py --models r3d_18 --peak-memory  # the largest memory of each side

Each row is one model of stvid and the same network of another library, with the same weights: the peer's state goes
through `stvid.load_checkpoint`, and the largest difference of the logits is printed. What the two sides run:

- ``float32``: both as their libraries build them;
- ``bf16``: both under autocast;
- ``fused``: `stvid.fuse(model)` against the peer, both in float32 (forward only);
- ``optimized``: `stvid.optimize(model)` against the peer in float32 (forward only).

A training step is forward, cross-entropy, backward and SGD. The share is that of the rate of a large matrix product
in the same type, measured in the same run. Another peer is one entry of `PEERS`. A library that is not installed is
named and left out.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from benchmarking import alternate, low_precision, medians
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import stvid
from stvid.inference import fuse, optimize
from stvid.models.base import VideoModel

NUM_CLASSES = 400
DTYPES = ("float32", "bf16", "fused", "optimized")
Call = Callable[[nn.Module, Tensor], Tensor]


def call_plain(network: nn.Module, clip: Tensor) -> Tensor:
    return network(clip)


def call_slowfast(network: nn.Module, clip: Tensor) -> Tensor:
    """PyTorchVideo takes the clips of both pathways; the slow one has a quarter of the frames."""
    frames = torch.linspace(0, clip.shape[2] - 1, clip.shape[2] // 4, device=clip.device).long()
    return network([clip[:, :, frames], clip])


def call_transformers(network: nn.Module, clip: Tensor) -> Tensor:
    """transformers takes (B, T, C, H, W) and returns an object."""
    return network(pixel_values=clip.transpose(1, 2)).logits


def call_vjepa2(network: nn.Module, clip: Tensor) -> Tensor:
    """V-JEPA 2 of transformers has another name for the clip."""
    return network(pixel_values_videos=clip.transpose(1, 2)).logits


def call_xclip(network: nn.Module, clip: Tensor) -> Tensor:
    """Returns the vector of the video, since transformers encodes all texts again for each video that it classifies."""
    model: Any = network
    return model.get_video_features(pixel_values=clip.transpose(1, 2)).pooler_output


def call_stream() -> Call:
    """Returns a function that goes on with one stream; the peers keep their state themselves."""
    state: Any = None

    def call(network: nn.Module, frames: Tensor) -> Tensor:
        nonlocal state
        model: Any = network
        logits, state = model.step(frames, model.init_state(len(frames)) if state is None else state)
        return logits

    return call


# --- peers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """The same network in another library.

    Attributes:
        model: Name of stvid's.
        library: Package that has to be installed.
        build: Returns the network with `NUM_CLASSES` logits.
        clip: Frames, height and width.
        options: Hyperparameters of stvid's, if the variant's own are others.
        call: How the network is called.
        own_call: Makes how stvid's is called in a forward pass.
    """

    model: str
    library: str
    build: Callable[[], nn.Module]
    clip: tuple[int, int, int]
    options: dict[str, Any] = field(default_factory=dict)
    call: Call = call_plain
    own_call: Callable[[], Call] = lambda: call_plain


def torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("torchvision.models.video"), name)(num_classes=NUM_CLASSES)


def pytorchvideo(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = getattr(importlib.import_module("pytorchvideo.models.hub"), name)(model_num_class=NUM_CLASSES)
        network.blocks[-1].activation = None  # some end with a softmax, of which no difference could be seen
        return network

    return build


def pytorchvideo_mvit(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        hub = importlib.import_module("pytorchvideo.models.hub")
        network: nn.Module = getattr(hub, name)(head_num_classes=NUM_CLASSES)
        return network

    return build


def transformers(family: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        settings = getattr(library, f"{family}Config")(num_labels=NUM_CLASSES, **config)
        return getattr(library, f"{family}ForVideoClassification")(settings)

    return build


def transformers_xclip(**vision: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        network: nn.Module = library.XCLIPModel(library.XCLIPConfig(vision_config=vision))
        return network

    return build


def movinets(name: str, *, causal: bool) -> Callable[[], nn.Module]:
    """Atze00/MoViNet-pytorch, built as its published files are."""

    def build() -> nn.Module:
        settings = getattr(importlib.import_module("movinets.config")._C.MODEL, f"MoViNet{name}")
        kind = "2plus1d" if causal else "3d"
        network = importlib.import_module("movinets").MoViNet(
            settings, causal=causal, conv_type=kind, tf_like=True, num_classes=NUM_CLASSES
        )
        for block in network.blocks:  # a branch starts with a factor of zero, so that no difference could be seen
            nn.init.constant_(block.alpha, 0.5)
        return network

    return build


PEERS = (
    Peer("r3d_18", "torchvision", torchvision("r3d_18"), (16, 112, 112)),
    Peer("mc3_18", "torchvision", torchvision("mc3_18"), (16, 112, 112)),
    Peer("r2plus1d_18", "torchvision", torchvision("r2plus1d_18"), (16, 112, 112)),
    Peer("s3d", "torchvision", torchvision("s3d"), (16, 224, 224)),
    Peer("c2d_r50", "pytorchvideo", pytorchvideo("c2d_r50"), (8, 224, 224)),
    Peer("slow_r50", "pytorchvideo", pytorchvideo("slow_r50"), (8, 224, 224)),
    Peer("i3d_r50", "pytorchvideo", pytorchvideo("i3d_r50"), (8, 224, 224)),
    Peer("r2plus1d_50", "pytorchvideo", pytorchvideo("r2plus1d_r50"), (16, 224, 224)),
    Peer("ir_csn_101", "pytorchvideo", pytorchvideo("csn_r101"), (32, 224, 224)),
    Peer("slowfast_r50_8x8", "pytorchvideo", pytorchvideo("slowfast_r50"), (32, 256, 256), call=call_slowfast),
    Peer("x3d_m", "pytorchvideo", pytorchvideo("x3d_m"), (16, 256, 256)),
    Peer("movinet_a2", "movinets", movinets("A2", causal=False), (50, 224, 224)),
    Peer(  # frame by frame
        "movinet_a0",
        "movinets",
        movinets("A0", causal=True),
        (1, 172, 172),
        options={"causal": True},
        own_call=call_stream,
    ),
    Peer("mvit_b_16x4", "torchvision", torchvision("mvit_v1_b"), (16, 224, 224)),
    Peer("mvit_b_16x4", "pytorchvideo", pytorchvideo_mvit("mvit_base_16x4"), (16, 224, 224)),
    Peer("mvitv2_s_16x4", "torchvision", torchvision("mvit_v2_s"), (16, 224, 224)),
    Peer("swin3d_t", "torchvision", torchvision("swin3d_t"), (32, 224, 224)),
    Peer("swin3d_s", "torchvision", torchvision("swin3d_s"), (32, 224, 224)),
    Peer("swin3d_b", "torchvision", torchvision("swin3d_b"), (32, 224, 224)),
    Peer(
        "timesformer_base",
        "transformers",
        transformers("Timesformer", num_frames=8),
        (8, 224, 224),
        call=call_transformers,
    ),
    Peer("vivit_b16x2", "transformers", transformers("Vivit", num_frames=32), (32, 224, 224), call=call_transformers),
    Peer("videomae_vit_b", "transformers", transformers("VideoMAE"), (16, 224, 224), call=call_transformers),
    Peer(
        "vjepa2_vit_l",
        "transformers",
        transformers("VJEPA2", num_hidden_layers=6, frames_per_clip=16, pred_num_hidden_layers=1),
        (16, 256, 256),
        {"depth": 6},
        call=call_vjepa2,
    ),
    Peer(
        "xclip_b16",
        "transformers",
        transformers_xclip(patch_size=16),
        (8, 224, 224),
        {"num_classes": 0},
        call=call_xclip,
    ),
)


def find_peers(patterns: Sequence[str]) -> list[Peer]:
    """Returns the pairs whose model's name matches a shell pattern; exits with a line if a pattern matches none."""
    for pattern in patterns:
        if not any(fnmatch.fnmatch(peer.model, pattern) for peer in PEERS):
            raise SystemExit(f"--models: {pattern} matches none of {', '.join(peer.model for peer in PEERS)}")
    return [peer for peer in PEERS if any(fnmatch.fnmatch(peer.model, pattern) for pattern in patterns)]


def build_peer(peer: Peer) -> nn.Module:
    """Builds the peer with the same random weights each time; norms get statistics, so that they matter."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = peer.build().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def create_own(peer: Peer) -> VideoModel:
    frames, height, width = peer.clip
    options = {"num_classes": NUM_CLASSES, "num_frames": frames, "img_size": (height, width), **peer.options}
    return stvid.create_model(peer.model, **options).eval()


def build_own(peer: Peer, network: nn.Module) -> VideoModel:
    """Builds stvid's with the weights of the peer."""
    model = create_own(peer)
    stvid.load_checkpoint(model, network.state_dict())
    return model


def version_of(library: str) -> str:
    """Returns the version of a library; empty if it is a folder on the path that was not installed."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def prepare(model: VideoModel, dtype: str) -> VideoModel:
    """Returns what stvid runs in a row of this kind."""
    return {"fused": fuse, "optimized": optimize}.get(dtype, lambda same: same)(model)


# --- what is timed ----------------------------------------------------------------------------------------------------


def forward_step(network: nn.Module, call: Call, clip: Tensor, dtype: str) -> Callable[[], Tensor]:
    def step() -> Tensor:
        with torch.inference_mode(), low_precision(clip.device, enabled=dtype == "bf16"):
            return call(network, clip).float()

    return step


def train_step(network: nn.Module, call: Call, clip: Tensor, dtype: str) -> Callable[[], Tensor]:
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    labels = torch.arange(len(clip), device=clip.device)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with low_precision(clip.device, enabled=dtype == "bf16"):
            logits = call(network, clip)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        return logits.detach()

    return step


def matmul_step(dtype: torch.dtype, device: torch.device, size: int = 2048) -> Callable[[], Any]:
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return lambda: a @ b


def count_multiply_adds(peer: Peer) -> float:
    """Returns the multiply-adds of a forward pass with one clip."""
    frames, height, width = peer.clip
    with torch.device("meta"):
        model = stvid.create_model(peer.model, num_frames=frames, img_size=(height, width), **peer.options).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, *peer.clip))
    return counter.get_total_flops() / 2


def measure(peer: Peer, *, batch: int, dtype: str, step: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Times one row of the table."""
    network = build_peer(peer)
    model = build_own(peer, network).to(device)
    network = network.to(device)
    torch.manual_seed(1)
    clip = torch.randn(batch, 3, *peer.clip).to(device)
    expected = forward_step(network, peer.call, clip, "float32")()
    model = prepare(model, dtype)
    own_call = call_plain if step == "train" else peer.own_call()
    found = forward_step(model, own_call, clip, dtype)()
    make = train_step if step == "train" else forward_step
    low = torch.bfloat16 if dtype == "bf16" or getattr(model, "precision", "") == "bf16" else torch.float32
    size = 2048
    steps = {
        "stvid": make(model, own_call, clip, dtype),
        "peer": make(network, peer.call, clip, dtype),
        "matmul": matmul_step(low, device, size),
    }
    seconds = alternate(steps, rounds=rounds, device=device)
    wall, cpu = medians(seconds, "wall"), medians(seconds, "cpu")
    passes = 3 if step == "train" else 1  # the backward pass takes two products for each of the forward pass
    rate = 2 * count_multiply_adds(peer) * batch * passes / wall["stvid"]
    return {
        "model": peer.model,
        "peer": f"{peer.library} {version_of(peer.library)}".strip(),
        "batch": batch,
        "clip": peer.clip,
        "dtype": dtype,
        "step": step,
        "stvid_s": wall["stvid"],
        "peer_s": wall["peer"],
        "ratio": wall["peer"] / wall["stvid"],
        "cpu_ratio": cpu["peer"] / max(cpu["stvid"], 1e-9),
        "gflops_per_s": rate / 1e9,
        "matmul_share": rate / (2 * size**3 / wall["matmul"]),
        "largest_difference": float((found - expected).abs().max() / expected.std()),
        "same_top1": bool((found.argmax(1) == expected.argmax(1)).all()),
        "notes": list(getattr(model, "notes", ())),
    }


def peak_memory(peer: Peer, side: str, *, batch: int, dtype: str, step: str, device: torch.device) -> float:
    """Returns the largest memory in MB of building one side and running it twice, in this process."""
    network: nn.Module
    if side == "stvid":
        network, call = prepare(create_own(peer), dtype), call_plain
    else:
        network, call = build_peer(peer), peer.call
    network = network.to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = (train_step if step == "train" else forward_step)(
        network, call, torch.randn(batch, 3, *peer.clip, device=device), dtype
    )
    run(), run()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes on macOS, kilobytes elsewhere


# --- the table --------------------------------------------------------------------------------------------------------


def machine(threads: int, device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {threads} threads, {capability}, torch {torch.__version__}"


def make_table(rows: Sequence[dict[str, Any]], *, memory: bool) -> Table:
    """Returns the printed table: the ratio is how many times as fast (or small) stvid is."""
    table = Table()
    titles = ["model", "peer", "batch", "dtype", "step"]
    if memory:
        titles += ["stvid MB", "peer MB", "ratio"]
    else:
        titles += ["stvid s", "peer s", "ratio", "cpu ratio", "GFLOP/s", "of matmul", "diff / std", "top-1"]
    for title in titles:
        justify: Any = "left" if title in ("model", "peer", "dtype", "step") else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    for row in rows:
        cells = [row["model"], row["peer"], str(row["batch"]), row["dtype"], row["step"]]
        if memory:
            cells += [f"{row['stvid_mb']:.0f}", f"{row['peer_mb']:.0f}", f"{row['ratio']:.2f}"]
        else:
            cells += [f"{row['stvid_s']:.3f}", f"{row['peer_s']:.3f}", f"{row['ratio']:.2f}", f"{row['cpu_ratio']:.2f}"]
            cells += [f"{row['gflops_per_s']:.0f}", f"{row['matmul_share']:.0%}", f"{row['largest_difference']:.1e}"]
            cells += ["same" if row["same_top1"] else "DIFFERENT"]
        table.add_row(*cells)
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", default=["*"], metavar="PATTERN", help="names of stvid's models")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--step", nargs="+", choices=("forward", "train"), default=["forward"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak-memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row instead of the table")
    parser.add_argument("--side", choices=("stvid", "peer"), help=argparse.SUPPRESS)  # what --peak-memory calls
    parser.add_argument("--library", help=argparse.SUPPRESS)  # of the peer, where a model has several
    return parser.parse_args(argv)


def measure_memory(peer: Peer, options: argparse.Namespace, *, batch: int, dtype: str, step: str) -> dict[str, Any]:
    """Measures the memory of both sides, each in a process of its own."""
    row: dict[str, Any] = {"model": peer.model, "peer": peer.library, "batch": batch, "dtype": dtype, "step": step}
    for side in ("stvid", "peer"):
        command = [sys.executable, __file__, "--models", peer.model, "--library", peer.library]
        command += ["--batch", str(batch), "--dtype", dtype]
        command += ["--step", step, "--threads", str(options.threads), "--device", options.device, "--side", side]
        row[f"{side}_mb"] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {**row, "ratio": row["peer_mb"] / row["stvid_mb"]}


def rows_of(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Measures row by row; a peer that is not installed is named on standard error."""
    absent: set[str] = set()
    for peer in find_peers(options.models):
        if importlib.util.find_spec(peer.library) is None:
            absent.add(peer.library)
            continue
        for step in options.step:
            for dtype in options.dtype:
                if step == "train" and dtype in ("fused", "optimized"):
                    continue
                for batch in options.batch:
                    print(f"{peer.model}, batch {batch}, {dtype}, {step} ...", file=sys.stderr, flush=True)
                    if options.peak_memory:
                        yield measure_memory(peer, options, batch=batch, dtype=dtype, step=step)
                    else:
                        yield measure(peer, batch=batch, dtype=dtype, step=step, rounds=options.rounds, device=device)
    for library in sorted(absent):
        print(f"left out: {library} is not installed", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.side:
        (peer,) = (peer for peer in find_peers(options.models) if peer.library == options.library)
        (batch,), (dtype,), (step,) = options.batch, options.dtype, options.step
        print(peak_memory(peer, options.side, batch=batch, dtype=dtype, step=step, device=device))
        return 0
    rows = []
    for row in rows_of(options, device):
        rows.append(row)
        if options.json:
            print(json.dumps({**row, "machine": machine(options.threads, device)}), flush=True)
    if not options.json:
        console = Console(width=max(160, Console().width))
        console.print(machine(options.threads, device), highlight=False)
        console.print(make_table(rows, memory=options.peak_memory))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
