"""Classes that change their meaning when a video is mirrored left to right, recognised by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["mirrored_classes"]

_OTHER = {
    "left": "right",
    "right": "left",
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
    "anticlockwise": "clockwise",
    "leftward": "rightward",
    "rightward": "leftward",
    "leftwards": "rightwards",
    "rightwards": "leftwards",
}
_SPELLINGS = [
    spelling for word in sorted(_OTHER, key=len, reverse=True) for spelling in (word, word.title(), word.upper())
]
# A word begins after anything but a letter, or with a capital behind a small letter, as in TurnLeft.
_WORD = re.compile(r"(?:(?<![^\W\d_])|(?<=[a-z])(?=[A-Z]))(" + "|".join(_SPELLINGS) + r")(?![a-z])")


def _key(name: str) -> str:
    """Returns what two spellings of a class name share: case, separators and kinds of counterclockwise do not count."""
    return re.sub(r"[\W_]+", "", name).casefold().replace("anticlockwise", "counterclockwise")


def mirrored_classes(class_names: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Finds the classes whose names speak of left and right, or of a sense of rotation.

    Args:
        class_names: All classes.

    Returns:
        Pairs of classes that turn into each other, as `augment.hflip_pairs` takes them; and the classes whose
        counterpart is not among the classes, as `augment.hflip_keep` takes them.
    """
    by_key = {_key(name): name for name in class_names}
    joined = {
        name: re.sub(r"(counter|anti)[\s_-]+(?=clockwise)", r"\1", name, flags=re.IGNORECASE) for name in class_names
    }
    pairs: list[list[str]] = []
    alone: list[str] = []
    for name in class_names:
        swapped = _WORD.sub(lambda word: _OTHER[word[1].lower()], joined[name])
        if swapped == joined[name] or _key(swapped) == _key(name):
            continue
        other = by_key.get(_key(swapped))
        if other is None:
            alone.append(name)
        elif [other, name] not in pairs:
            pairs.append([name, other])
    return pairs, alone
