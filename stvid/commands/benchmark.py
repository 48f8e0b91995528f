"""``stvid benchmark``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from stvid.commands.common import parse, parser_for, pick_device
from stvid.errors import ConfigError

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Measure the speed and memory of a model here."""
    parser = parser_for(
        "benchmark",
        "Measure a model with random weights on random clips: median time of a pass, clips a second, multiply-adds a "
        "second, and on GPUs the peak of memory. tools/benchmark_models.py in the repository sets it beside its peers.",
    )
    parser.add_argument("model", type=str, help="A name of stvid models.")
    parser.add_argument("--num_classes", type=int, default=400, help="Number of logits.")
    parser.add_argument("--frames", type=int | None, help="Frames of a clip; default the model's own.")
    parser.add_argument("--img_size", type=int | None, help="Side of the input in pixels; default the model's own.")
    parser.add_argument("--hyperparameters", type=dict[str, Any], default={}, help="Further arguments of the model.")
    parser.add_argument("--batch_size", type=int, default=1, help="Clips in one pass.")
    parser.add_argument("--step", type=Literal["forward", "train"], default="forward", help="Which pass.")
    parser.add_argument(
        "--precision", type=Literal["32-true", "bf16-mixed", "16-mixed"], default="32-true", help="Arithmetic."
    )
    parser.add_argument("--optimize", action="store_true", help="Through stvid.optimize, which picks the precision.")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, ...; default a GPU if there is one.")
    parser.add_argument("--threads", type=int | None, help="Threads of torch on CPUs; default torch's own choice.")
    parser.add_argument("--seconds", type=float, default=5.0, help="Least time to measure.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of lines.")
    options = parse(parser, argv)
    for name in ("batch_size", "num_classes", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: {value} is not a whole number from 1 up")
    if not 0 < options.seconds < math.inf:
        raise ConfigError(f"--seconds: {options.seconds:g} is not a time")
    if options.optimize and options.step == "train":
        raise ConfigError("--optimize is for inference: leave out --step train")

    import torch
    from torch.utils.benchmark import Timer
    from torch.utils.flop_counter import FlopCounterMode

    import stvid

    device = torch.device(pick_device(options.device))
    model = stvid.create_model(
        options.model,
        num_classes=options.num_classes,
        num_frames=options.frames,
        img_size=options.img_size,
        **options.hyperparameters,
    )
    protocol = model.default_protocol
    shape = (options.batch_size, getattr(model, "in_chans", 3), protocol.frames, protocol.crop, protocol.crop)
    clip = torch.randn(shape, device=device)
    model = model.to(device).train(options.step == "train")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(clip[:1])
    except ValueError as error:  # such as clips that are too small
        raise ConfigError(f"{options.model}: {' '.join(str(error).split())}") from error
    gflops = counter.get_total_flops() / 2e9
    model.train(options.step == "train")
    network: Any = stvid.optimize(model) if options.optimize else model
    dtype = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[options.precision]

    def step() -> None:
        training = options.step == "train"
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None), torch.set_grad_enabled(training):
            logits = network(clip)
        if training:
            network.zero_grad()
            logits.float().logsumexp(1).mean().backward()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    threads = options.threads or torch.get_num_threads()
    timer = Timer("step()", globals={"step": step}, num_threads=threads)
    step()
    measured = timer.blocked_autorange(min_run_time=options.seconds)
    figures = {
        "model": options.model,
        "clip": list(shape),
        "step": options.step,
        "precision": "stvid.optimize" if options.optimize else options.precision,
        "device": str(device),
        "threads": threads,
        "milliseconds": 1000 * measured.median,
        "spread_milliseconds": 1000 * measured.iqr,
        "clips_per_second": options.batch_size / measured.median,
        "gflops_per_clip": gflops,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return 0
    print(f"{options.model}, {options.step}, clips {tuple(shape)}, {figures['precision']}, {device}, {threads} threads")
    print(
        f"{figures['milliseconds']:.1f} ms a pass (median; half of them within {figures['spread_milliseconds']:.1f} ms)"
    )
    rate = gflops * options.batch_size / measured.median * (3 if options.step == "train" else 1)
    print(f"{figures['clips_per_second']:.2f} clips a second, {rate:.0f} GFLOPs a second ({gflops:.1f} a clip)")
    if figures["peak_gib"] is not None:
        print(f"{figures['peak_gib']:.2f} GiB at the peak")
    return 0
