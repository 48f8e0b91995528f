from __future__ import annotations

import pytest

from stvid.data.mirroring import mirrored_classes


@pytest.mark.parametrize(
    "names,pairs,alone",
    [
        (["jump", "bright light", "copyright", "upright", "leftovers"], [], []),
        (["left", "right", "turn"], [["left", "right"]], []),
        (["Swiping Left", "Swiping Right", "Stop Sign"], [["Swiping Left", "Swiping Right"]], []),
        (["TurnLeft", "turn_right"], [["TurnLeft", "turn_right"]], []),
        (
            ["pull from right to left", "pull from left to right"],
            [["pull from right to left", "pull from left to right"]],
            [],
        ),
        (["rotate clockwise", "rotate counter clockwise"], [["rotate clockwise", "rotate counter clockwise"]], []),
        (["spin anticlockwise", "spin clockwise"], [["spin anticlockwise", "spin clockwise"]], []),
        (["Hand Clockwise", "Hand Counterclockwise"], [["Hand Clockwise", "Hand Counterclockwise"]], []),
        (["left hook", "jab", "uppercut RIGHT"], [], ["left hook", "uppercut RIGHT"]),
    ],
)
def test_names_tell_which_classes_a_mirror_changes(names: list[str], pairs: list[list[str]], alone: list[str]) -> None:
    assert mirrored_classes(names) == (pairs, alone)
