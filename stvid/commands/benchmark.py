"""``stvid benchmark`` measures the speed of a model with random weights."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands.common import add_device_option, add_precision_option, parse, parser_for, pick_device
from stvid.errors import ConfigError
from stvid.machine import busy_cores

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["run"]


def _parser() -> ArgumentParser:
    parser = parser_for(
        "benchmark",
        "Measure a model with random weights on random clips: median time of a pass, clips a second, multiply-adds a "
        "second, and on GPUs the peak of memory. A busy machine is noticed. tools/benchmark_models.py in the "
        "repository sets it beside its peers.",
    )
    parser.add_argument("model", type=str, help="A name of stvid models.")
    parser.add_argument("--num_classes", type=int, default=400, help="Number of logits.")
    parser.add_argument("--frames", type=int | None, help="Frames of a clip; default the model's own.")
    parser.add_argument("--img_size", type=int | None, help="Side of the input in pixels; default the model's own.")
    parser.add_argument("--hyperparameters", type=dict[str, Any], default={}, help="Further arguments of the model.")
    parser.add_argument("--batch_size", type=int, default=1, help="Clips in one forward pass.")
    parser.add_argument("--step", type=Literal["forward", "train"], default="forward", help="The pass to measure.")
    add_precision_option(parser)
    parser.add_argument("--optimize", action="store_true", help="Through stvid.optimize, which picks the precision.")
    add_device_option(parser)
    parser.add_argument("--threads", type=int | None, help="Threads of torch on CPUs; default torch's own choice.")
    parser.add_argument("--seconds", type=float, default=5.0, help="Least time to measure.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of lines.")
    return parser


def _check(options: Any) -> None:
    for name in ("batch_size", "num_classes", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: {value} is not a whole number from 1 up")
    if not 0 < options.seconds < math.inf:
        raise ConfigError(f"--seconds: {options.seconds:g} is not a time")
    if options.optimize and options.step == "train":
        raise ConfigError("--optimize is for inference: leave out --step train")


def run(argv: Sequence[str]) -> int:
    """Measure the speed and memory of a model here."""
    options = parse(_parser(), argv)
    _check(options)
    figures = _measure(options)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        _print(figures)
    for doubt in doubts(figures):
        print(f"warning: {doubt}; measure again on a quiet machine", file=sys.stderr)
    return 0


def doubts(figures: Mapping[str, Any]) -> list[str]:
    """Returns why the figures may be those of a busy machine.

    Args:
        figures: ``busy_cores`` (None if unknown), ``cores``, ``milliseconds`` and ``spread_milliseconds``.
    """
    found = []
    busy = figures["busy_cores"]
    if busy is not None and busy > max(0.5, figures["cores"] / 10):
        found.append(f"other processes keep {busy:.1f} of {figures['cores']} cores busy, so the model seems slower")
    if figures["spread_milliseconds"] > figures["milliseconds"] / 5:
        share = figures["spread_milliseconds"] / figures["milliseconds"]
        found.append(f"the passes differ by {share:.0%}")
    return found


def _measure(options: Any) -> dict[str, Any]:
    import torch

    from stvid.evaluation.cost import measure_cost
    from stvid.evaluation.speed import measure_speed
    from stvid.inference import optimize
    from stvid.zoo import create_model

    device = torch.device(pick_device(options.device))
    model = create_model(
        options.model,
        num_classes=options.num_classes,
        num_frames=options.frames,
        img_size=options.img_size,
        **options.hyperparameters,
    ).to(device)
    protocol = model.default_protocol
    shape = (options.batch_size, getattr(model, "in_chans", 3), protocol.frames, protocol.crop, protocol.crop)
    try:
        gflops = measure_cost(model, protocol)["gflops"]
    except ValueError as error:  # such as clips that are too small
        raise ConfigError(f"{options.model}: {' '.join(str(error).split())}") from error
    model.train(options.step == "train")
    busy = busy_cores()
    taken = measure_speed(
        optimize(model) if options.optimize else model,
        torch.randn(shape, device=device),
        step=options.step,
        precision=options.precision,
        threads=options.threads,
        seconds=options.seconds,
    )
    return {
        "model": options.model,
        "clip": list(shape),
        "step": options.step,
        "precision": "stvid.optimize" if options.optimize else options.precision,
        "device": str(device),
        "threads": taken.threads,
        "milliseconds": 1000 * taken.seconds,
        "spread_milliseconds": 1000 * taken.spread,
        "clips_per_second": options.batch_size / taken.seconds,
        "gflops_per_clip": gflops,
        "peak_gib": taken.peak_gib,
        "busy_cores": busy,
        "cores": os.cpu_count() or 1,
    }


def _print(figures: dict[str, Any]) -> None:
    clips = f"clips {tuple(figures['clip'])}"
    print(
        f"{figures['model']}, {figures['step']}, {clips}, {figures['precision']}, {figures['device']}, "
        f"{figures['threads']} threads"
    )
    spread = figures["spread_milliseconds"]
    print(f"{figures['milliseconds']:.1f} ms a pass (median; half of them within {spread:.1f} ms)")
    rate, gflops = figures["clips_per_second"], figures["gflops_per_clip"]
    per_second = gflops * rate * (3 if figures["step"] == "train" else 1)
    print(f"{rate:.2f} clips a second, {per_second:.0f} GFLOPs a second ({gflops:.1f} a clip)")
    if figures["peak_gib"] is not None:
        print(f"{figures['peak_gib']:.2f} GiB at the peak")
