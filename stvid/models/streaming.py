"""The state of a model that runs over a stream: what its layers keep of the frames that have passed.

A model that sees no later frame (`VideoModel.streams`) can be given a video in chunks of any size. Each of its layers
that looks back keeps a little of what has passed: a causal convolution its last frames, a mean over time its sum. All
of it is one `StreamState`, which `VideoModel.init_state` makes and `VideoModel.step` takes and returns. A step changes
no state that it was given, so a stream can be continued twice from one point. Its size does not grow with the stream.

`StreamMemory` hands the state to the layers during one step: each layer that looks back asks for its part and leaves
the new one, in the order in which the layers run, which is the same in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stvid.errors import StvidError

__all__ = ["StreamMemory", "StreamState"]


class StreamState(NamedTuple):
    """The parts of a model that live on between the chunks of a stream.

    Attributes:
        batch_size: Streams that run side by side.
        frames: Frames that have passed.
        buffers: What the layers keep, in the order in which they run; empty before the first frame.
    """

    batch_size: int
    frames: int = 0
    buffers: tuple[Tensor, ...] = ()

    def detach(self) -> StreamState:
        """Returns the state without its history, so that a backward pass ends here."""
        return self._replace(buffers=tuple(buffer.detach() for buffer in self.buffers))


class StreamMemory:
    """The state during one step: layers take their old part out and put their new one in.

    Args:
        state: The state before the step.

    Attributes:
        frames: Frames that passed before this step.
    """

    def __init__(self, state: StreamState) -> None:
        self.batch_size, self.frames = state.batch_size, state.frames
        self._old = state.buffers
        self._new: list[Tensor] = []

    def recall(self, shape: Sequence[int], number: int = 1) -> list[Tensor] | None:
        """Returns what the layer kept that runs now; None at the start of the stream. `keep` must follow.

        Args:
            shape: The shape of each part.
            number: Parts that the layer keeps.

        Raises:
            StvidError: If there are not so many, or one has another shape.
        """
        if not self._old:
            return None
        place = len(self._new)
        parts = list(self._old[place : place + number])
        if [part.shape for part in parts] != [torch.Size(shape)] * number:
            raise StvidError("the state of the stream is of another model, or of frames of another size")
        return parts

    def keep(self, *parts: Tensor) -> None:
        """Takes what the layer keeps that runs now."""
        self._new += parts

    def after(self, frames: int) -> StreamState:
        """Returns the state after a step of so many frames."""
        if self._old and len(self._new) != len(self._old):
            raise StvidError("the state of the stream is of another model: this one keeps fewer parts")
        return StreamState(self.batch_size, self.frames + frames, tuple(self._new))
