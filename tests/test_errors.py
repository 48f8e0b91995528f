from __future__ import annotations

import pickle

import pytest

from stvid.errors import CheckpointError, Interrupted, MissingFileError, StvidError, VideoError


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("a\nb\x1b[2J: is damaged"),
        VideoError("a\nb\x1b[2J", "is damaged"),
        MissingFileError("a\nb\x1b[2J", "is damaged"),
        Interrupted("a\nb\x1b[2J: is damaged", 2),
    ],
)
def test_a_message_is_one_line_whatever_names_hold(error: StvidError) -> None:
    expected = r"a\nb\x1b[2J: is damaged"
    assert str(error) == expected
    assert str(pickle.loads(pickle.dumps(error))) == expected
