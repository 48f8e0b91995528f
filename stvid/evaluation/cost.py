"""Measures the cost of a model: its parameters, and the multiply-adds of one view."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stvid.evaluation.evaluate import inference
from stvid.protocol import Protocol

__all__ = ["measure_cost"]


def measure_cost(model: nn.Module, protocol: Protocol, *, device: torch.device | str | None = None) -> dict[str, float]:
    """Counts parameters, and multiply-adds by running the model on one clip of zeros.

    Args:
        model: Maps clips (1, C, T, H, W) to logits, where C is its `in_chans`, else 3. Its training mode and device are
            the same afterwards.
        protocol: Gives the number of frames and the size of the crop.
        device: None leaves the model where it is.

    Returns:
        ``params``, and ``gflops``: multiply-adds of one view in 1e9, which papers call GFLOPs. Only matrix products,
        convolutions and attention are counted.
    """
    with inference(model, device=device, precision="32-true") as place:
        shape = (1, getattr(model, "in_chans", 3), protocol.frames, protocol.crop, protocol.crop)
        clip = torch.zeros(shape, device=place.device, dtype=place.dtype)
        with FlopCounterMode(display=False) as counter:
            model(clip)
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"params": float(params), "gflops": counter.get_total_flops() / 2 / 1e9}
