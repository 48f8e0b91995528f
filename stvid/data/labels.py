"""Labels of a list of videos: their order, and the logit that each stands for.

Labels that are whole numbers are places of the logits: they are ordered as numbers, and where the classes have names,
label 3 is the fourth of them. Other labels are names, in the order of their letters. Names are compared in their
composed Unicode form (NFC): folders made on a Mac hold accents as letters of their own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from stvid.errors import ManifestError, nearest

__all__ = ["are_numbers", "composed", "label_notes", "label_places", "numbers_note", "order_labels", "unknown_label"]

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")


def composed(label: str) -> str:
    """Returns a label with composed letters (NFC)."""
    return label if label.isascii() else unicodedata.normalize("NFC", label)


def are_numbers(labels: Iterable[str]) -> bool:
    """Whether there are labels, and all of them are whole numbers, those below 0 included."""
    found = list(labels)
    return bool(found) and all(_NUMBER.fullmatch(label) for label in found)


def order_labels(labels: Iterable[str], source: str) -> tuple[str, ...]:
    """Returns the classes of a list whose labels occur, in the order of the logits.

    Numbers are ordered as numbers, also those with a point, which are names otherwise. A whole number that does not
    occur between the others is a class without videos, so that each number is the place of its logit; numbers that
    begin at 1 leave out 0. If more than a quarter of the places would be empty, the numbers that occur are the classes.
    `numbers_note` says so in words.

    Args:
        labels: The labels, in any order.
        source: Name of the list, for messages.

    Raises:
        ManifestError: If numbers are below 0, or one is written in two ways (``1`` and ``01``).
    """
    found = sorted({composed(label) for label in labels})
    if not are_numbers(found):
        if found and all(map(_DECIMAL.fullmatch, found)):
            found.sort(key=float)
        return tuple(found)
    by_number = {int(label): label for label in found}
    if min(by_number) < 0:
        raise ManifestError(
            f"{source}: label {by_number[min(by_number)]!r} is no number of a class, they run from 0 up; for videos "
            "without labels leave out the column"
        )
    if len(by_number) < len(found):
        twice = next(label for label in found if label not in by_number.values())
        raise ManifestError(
            f"{source}: labels {twice!r} and {by_number[int(twice)]!r} are the same number; write it in one way"
        )
    first = 1 if min(by_number) == 1 else 0
    places = range(first, max(by_number) + 1)
    if 3 * len(places) > 4 * len(by_number):
        return tuple(by_number[number] for number in sorted(by_number))
    width = min(len(label) for label in found)
    return tuple(by_number.get(number, f"{number:0{width}d}") for number in places)


def label_notes(labels: Sequence[str], source: str) -> list[str]:
    """Says which labels of a list may have been meant as one, and which look like numbers and are none.

    Args:
        labels: The labels that occur.
        source: Name of the list, for messages.
    """
    notes = []
    alike: dict[str, list[str]] = {}
    for label in labels:
        visible = "".join(sign for sign in unicodedata.normalize("NFKC", label) if unicodedata.category(sign) != "Cf")
        alike.setdefault(re.sub(r"[\s_-]+", " ", visible).strip().casefold(), []).append(label)
    for same in alike.values():
        if len(same) > 1:
            shown = ", ".join(map(repr, same))
            notes.append(f"{source}: {shown} are {len(same)} classes, though they differ in case or spaces at most")
    pointed = next((label for label in labels if "." in label), None)
    if pointed is not None and all(map(_DECIMAL.fullmatch, labels)):
        notes.append(
            f"{source}: labels such as {pointed!r} are numbers with a point: they are taken as names, in the order of "
            "the numbers; write places of the logits as whole numbers"
        )
    return notes


def numbers_note(names: Sequence[str], used: Collection[str]) -> str | None:
    """Says which classes `order_labels` made of numbers that have gaps; None if there is nothing to say.

    Args:
        names: The classes in order.
        used: Those that have videos.
    """
    if not are_numbers(names):
        return None
    unused = [name for name in names if name not in used]
    if unused:
        shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        return f"the labels are numbers with gaps: {shown} without videos, kept so that each number is its place"
    first = next((place for place, name in enumerate(names) if int(name) != place), None)
    if first is None:
        return None
    return (
        f"the labels are numbers that leave places empty: the {len(names)} that occur are the classes, in this order "
        f"(label {names[first]} is logit {first})"
    )


def label_places(labels: Sequence[str], names: Sequence[str]) -> tuple[list[int], bool]:
    """Finds the logit that each label stands for.

    Args:
        labels: All labels of a list.
        names: The name of each logit, in order.

    Returns:
        The places of the labels among the names, -1 where there is none; and whether numbers were taken for places of
        names that are words.
    """
    places = {composed(name): place for place, name in enumerate(names)}
    found = [places.get(composed(label), -1) for label in labels]
    if not are_numbers(labels) or min(found) >= 0:
        return found, False
    if are_numbers(names):
        by_number = {int(name): place for place, name in enumerate(names)}
        if len(by_number) == len(names):
            found = [by_number.get(int(label), -1) for label in labels]
        return found, False
    if max(found) >= 0:
        return found, False
    return [int(label) if 0 <= int(label) < len(names) else -1 for label in labels], True


def unknown_label(label: str, names: Sequence[str], *, numbers: bool, more: int = 0) -> str:
    """Returns what is wrong with a label that stands for no logit, for messages.

    Args:
        label: The label.
        names: The names of the logits.
        numbers: Whether all labels of the list are numbers.
        more: How many other labels have the same fault.
    """
    shown = f"{label!r} (and {more} more)" if more else repr(label)
    if numbers:
        first, last = (names[0], names[-1]) if are_numbers(names) else ("0", str(len(names) - 1))
        return (
            f"label {shown} is not the number of one of the {len(names)} classes, which are {first} to {last}; labels "
            "that are numbers are the places of the logits"
        )
    return f"label {shown} is not among the {len(names)} class names{nearest(label, names)}"
