"""Class names of the data sets that published weights were made for, one list a file, in the order of the logits.

The same data set may have several orders: UniFormer's Kinetics-400 (``kinetics400_uniformer``) is not alphabetical, and
Something-Something v1 has the order of its list of labels (``ssv1``) and a sorted one (``ssv1_sorted``). Weights name
the list that fits their own logits.
"""

from __future__ import annotations

import functools
from pathlib import Path

from stvid.errors import UnknownNameError, nearest

__all__ = ["class_list", "class_lists"]


@functools.cache
def class_lists() -> tuple[str, ...]:
    """Returns the sorted names of the packaged lists, such as ``kinetics400``."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.txt")))


@functools.cache
def class_list(name: str) -> tuple[str, ...]:
    """Returns the class names of a packaged list, in the order of the logits.

    Args:
        name: One of `class_lists`.

    Raises:
        UnknownNameError: If there is no such list; the message names the nearest ones.
    """
    if name not in class_lists():
        raise UnknownNameError(f"class list {name!r}: no such list{nearest(name, class_lists())}")
    return tuple((Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8").splitlines())
