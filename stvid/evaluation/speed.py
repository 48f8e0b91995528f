"""The time and the memory that a pass of a model takes on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["PassTime", "measure_speed"]

DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class PassTime:
    """The time of a pass, and the memory that it took.

    Attributes:
        seconds: Median of the measured passes.
        spread: Seconds from the first to the third quartile.
        threads: Threads that torch used on the CPU.
        peak_gib: Largest memory of the GPU in GiB; None on other devices.
    """

    seconds: float
    spread: float
    threads: int
    peak_gib: float | None


def measure_speed(
    model: nn.Module,
    clips: Tensor,
    *,
    step: Literal["forward", "train"] = "forward",
    precision: str = "32-true",
    threads: int | None = None,
    seconds: float = 5.0,
) -> PassTime:
    """Runs a model again and again on the same clips, after a pass that is not counted.

    Args:
        model: Maps clips to logits; in training mode for ``train``, and on the device of the clips.
        clips: Float (B, C, T, H, W).
        step: ``forward``, or ``train``: the backward pass too, from a loss over all logits.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        threads: Threads of torch on CPUs; None takes torch's own choice.
        seconds: Time to measure, at least.
    """
    from torch.utils.benchmark import Timer

    run = _make_step(model, clips, training=step == "train", dtype=DTYPES[precision])
    on_gpu = clips.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(clips.device)
    used = threads or torch.get_num_threads()
    timer = Timer("run()", globals={"run": run}, num_threads=used)
    run()
    measured = timer.blocked_autorange(min_run_time=seconds)
    peak = torch.cuda.max_memory_allocated(clips.device) / 2**30 if on_gpu else None
    return PassTime(measured.median, measured.iqr, used, peak)


def _make_step(model: nn.Module, clips: Tensor, *, training: bool, dtype: Any) -> Callable[[], None]:
    def run() -> None:
        with (
            torch.autocast(clips.device.type, dtype=dtype, enabled=dtype is not None),
            torch.set_grad_enabled(training),
        ):
            logits = model(clips)
        if training:
            model.zero_grad()
            logits.float().logsumexp(1).mean().backward()

    return run
