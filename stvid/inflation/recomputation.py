"""Recomputation of a guest's blocks: `Recomputed` stands in for a block while gradient checkpointing is on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stvid.inflation.temporal import ClipTime
from stvid.models.blocks import _batch_norms, _recompute_contexts

__all__ = ["Recomputed"]


class Recomputed(nn.Module):
    """Computes the activations of a block again in the backward pass, with whatever is attached to the block.

    A guest network runs its blocks itself, so what recomputes a block has to stand in the block's place. Its
    parameters, buffers, submodules and mode are the block's own, under the same names: state dicts, optimisers and
    `get_submodule` see no difference.

    Args:
        block: The block, which stays as it is.
        time: Frames of the clips, for the layers that are attached to the block.
    """

    def __init__(self, block: nn.Module, time: ClipTime) -> None:
        self.__dict__["block"] = block  # not by `setattr`, which would make it a submodule with a name of its own
        mode = block.training
        super().__init__()
        self.training = mode
        self.time = time
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = getattr(block, table)

    @property
    def training(self) -> bool:
        """Whether the block is in training mode."""
        return self.__dict__["block"].training

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["block"].training = mode

    def __getattr__(self, name: str) -> Any:
        """Gives the other attributes of the block, which the network may ask for."""
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Does what the block does."""
        if not torch.is_grad_enabled() or self.time.memory is not None:  # what a stream keeps is not kept twice
            return self.block(*args, **kwargs)
        time, norms = self.time, _batch_norms(self.block)
        clips, frames = time.clips, time.frames

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            first, again = _recompute_contexts(norms)
            return first, _with_clips(time, clips, frames, again)  # another clip may have come through since

        return checkpoint(self.block, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _with_clips(time: ClipTime, clips: int, frames: int, inner: AbstractContextManager[Any]) -> Iterator[None]:
    before = time.clips, time.frames
    time.clips, time.frames = clips, frames
    try:
        with inner:
            yield
    finally:
        time.clips, time.frames = before
