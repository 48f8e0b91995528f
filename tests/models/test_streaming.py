"""The state of a stream, and how layers take their parts out of it."""

from __future__ import annotations

import pytest
import torch

import stvid
from stvid.errors import StvidError
from stvid.models.streaming import StreamMemory, StreamState


def one_step(state: StreamState, *parts: torch.Tensor) -> tuple[list[list[torch.Tensor] | None], StreamState]:
    memory = StreamMemory(state)
    found = []
    for part in parts:
        found.append(memory.recall(part.shape))
        memory.keep(part)
    return found, memory.after(2)


def test_layers_get_what_they_left() -> None:
    a, b = torch.ones(1, 2), torch.zeros(1, 3)
    found, state = one_step(StreamState(1), a, b)
    assert found == [None, None]
    assert state.frames == 2 and state.batch_size == 1
    found, later = one_step(state, a + 1, b + 1)
    assert found[0] is not None and found[1] is not None
    assert found[0][0] is a and found[1][0] is b
    assert later.frames == 4 and later.buffers[0].tolist() == [[2.0, 2.0]]
    assert state.buffers == (a, b)


def test_a_layer_may_keep_several_parts() -> None:
    memory = StreamMemory(StreamState(1))
    memory.keep(torch.zeros(2), torch.ones(2))
    memory.keep(torch.ones(3))
    again = StreamMemory(memory.after(1))
    pair = again.recall((2,), 2)
    assert pair is not None and [part.tolist() for part in pair] == [[0.0, 0.0], [1.0, 1.0]]
    again.keep(*pair)
    with pytest.raises(StvidError, match="of another size"):
        again.recall((3,), 2)


def test_a_state_of_another_model_is_refused() -> None:
    a, b = torch.ones(1, 2), torch.zeros(1, 3)
    _, state = one_step(StreamState(1), a, b)
    for parts, message in [((a, b, a), "of another size"), ((b,), "of another size"), ((a,), "fewer parts")]:
        with pytest.raises(StvidError, match=message):
            one_step(state, *parts)


def test_a_detached_state_has_no_history() -> None:
    weight = torch.ones(1, requires_grad=True)
    _, state = one_step(StreamState(1), weight * 2)
    assert state.buffers[0].requires_grad and not state.detach().buffers[0].requires_grad
    assert state.detach().frames == 2


def test_models_without_a_stream_say_so() -> None:
    model = stvid.create_model("x3d_xxs", num_classes=3)
    assert not model.streams
    with pytest.raises(StvidError, match="X3D does not run over a stream"):
        model.init_state()
    with pytest.raises(StvidError, match="X3D does not run over a stream"):
        model.step(torch.zeros(1, 3, 1, 32, 32), StreamState(1))
    with pytest.raises(ValueError, match="batch_size 0"):
        stvid.create_model("movinet_xxs", num_classes=3).init_state(0)
