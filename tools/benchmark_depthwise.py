"""Training steps on a CPU with depthwise convolutions in time, with stvid's gradients and with torch's, alternately.

    python tools/benchmark_depthwise.py
    python tools/benchmark_depthwise.py --models x3d_m timm/convnext_tiny --frames 8 --rounds 5

Prints the medians of the wall time of a step in float32, and their ratio.
"""

from __future__ import annotations

import argparse
import functools
from contextlib import nullcontext
from unittest import mock

import torch
from benchmarking import alternate, medians

import stvid
from stvid.models import convolution

MODELS = ("x3d_s", "x3d_m", "uniformer_s", "timm/convnext_tiny")


def compare(name: str, *, frames: int, batch: int, rounds: int) -> None:
    """Prints how long a step of one model takes."""
    model = stvid.create_model(name, num_classes=10, num_frames=frames).train()
    crop = model.default_protocol.crop
    clip = torch.randn(batch, 3, frames, crop, crop)

    def train(own: bool) -> None:
        patched = mock.patch.object(convolution, "_has_quick_gradients", lambda *_: False)
        with nullcontext() if own else patched:
            model(clip).square().sum().backward()

    middle = medians(
        alternate({"torch": functools.partial(train, False), "stvid": functools.partial(train, True)}, rounds=rounds),
        "wall",
    )
    ratio = middle["torch"] / middle["stvid"]
    print(f"{name}: torch {middle['torch']:.2f} s, stvid {middle['stvid']:.2f} s, ratio {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models:
        compare(name, frames=options.frames, batch=options.batch, rounds=options.rounds)


if __name__ == "__main__":
    main()
