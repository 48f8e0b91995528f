"""The declaration of a family of models: `Family`, one `Variant` for each model, and how to read them without torch.

Every file of `stvid/models/families` ends with ``FAMILY = Family(...)``. The registry, the tests, ``stvid models`` and
the table in README read it; nothing else has to be edited for a new model. Listing models must not cost the import of
torch, so a family is read from the source of its file (`read_family`): the statement may use literals, `Family`,
`Variant`, `Protocol`, and constants of the same file that are made of the same.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stvid.errors import StvidError
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, KINETICS_MEAN, KINETICS_STD, Protocol

__all__ = ["Family", "Variant", "read_family"]

Clip = tuple[int, int, int]


@dataclass(frozen=True)
class Variant:
    """A model of a family: its name, how it is built, and what was published of it.

    Attributes:
        name: As `stvid.create_model` takes it.
        about: One line that says which model it is.
        protocol: The published protocol.
        options: Arguments of the family's class that differ from its defaults.
        params: Published parameters in millions; None if none were published.
        gflops: Published multiply-adds of one view in 1e9; None if none were published.
        paper: Authors, year and arXiv number, where they differ from the family's.
        formats: Published layouts that `stvid.load_checkpoint` reads, as its report names them, where they differ from
            the family's.
        note: Where the published numbers and the official code disagree, and how.
        params_tolerance: Millions by which the counted parameters may differ from the published ones.
        gflops_tolerance: Share by which the counted multiply-adds may differ from the published ones.
        min_clip: The smallest clip that the model takes, where it differs from the family's.
        tiny: Further arguments for a tiny model in tests, besides the family's.
        decoder: Arguments of the decoder of the masked pretraining that differ from its defaults.
        same_as: The variant that this one equals when both are built tiny; the quick tests leave this one out then.
    """

    name: str
    about: str
    protocol: Protocol
    options: Mapping[str, Any] = field(default_factory=dict)
    params: float | None = None
    gflops: float | None = None
    paper: str | None = None
    formats: tuple[str, ...] | None = None
    note: str = ""
    params_tolerance: float = 0.06
    gflops_tolerance: float = 0.01
    min_clip: Clip | None = None
    tiny: Mapping[str, Any] = field(default_factory=dict)
    decoder: Mapping[str, Any] = field(default_factory=dict)
    same_as: str | None = None


@dataclass(frozen=True)
class Family:
    """The models of one file.

    Attributes:
        model: Name of the class that builds every variant.
        paper: Authors, year and arXiv number, such as ``Li et al. 2022, arXiv:2201.04676``; the table in README makes a
            link of this form.
        variants: The models.
        small_clip: The smallest clip (frames, height, width) on which the family shows all its parts; tests use it.
            They expect that sizes are rounded up, so a model that rounds down needs multiples of its reductions.
        min_clip: The smallest clip (frames, height, width) that the models take; they refuse anything smaller.
        formats: Published layouts that `stvid.load_checkpoint` reads, as its report names them, besides stvid's own.
        autoencoder: Name of the class in the family's file that pretrains the models as masked autoencoders (see
            `stvid.models.pretraining`); None if there is none.
        parent: The kind of 2D network that `stvid inflate --to` starts the models from; None if there is none.
        parent_of: Names of the models that have this parent; empty if all have it.
        tiny: Arguments that make a model small enough for quick tests, but with two blocks or more.
        slow_goldens: Recorded official outputs (files of ``tests/goldens``) that take more than a few seconds on one
            thread; each family keeps a quick one.
        golden_options: For a recorded official output (a file of ``tests/goldens``) that does not say how its model is
            built: arguments of `stvid.create_model`, ``name`` among them.
    """

    model: str
    paper: str
    variants: tuple[Variant, ...]
    small_clip: Clip
    min_clip: Clip = (1, 1, 1)
    formats: tuple[str, ...] = ()
    autoencoder: str | None = None
    parent: str | None = None
    parent_of: tuple[str, ...] = ()
    tiny: Mapping[str, Any] = field(default_factory=dict)
    slow_goldens: tuple[str, ...] = ()
    golden_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# The names that the statement of a family may use besides the constants of its own file.
_VOCABULARY: dict[str, Any] = {
    "Family": Family,
    "Variant": Variant,
    "Protocol": Protocol,
    "KINETICS_MEAN": KINETICS_MEAN,
    "KINETICS_STD": KINETICS_STD,
    "IMAGENET_MEAN": IMAGENET_MEAN,
    "IMAGENET_STD": IMAGENET_STD,
}


def read_family(path: Path) -> Family | None:
    """Reads the family that a file of models declares, without importing the file.

    Args:
        path: A Python file.

    Returns:
        Its ``FAMILY``; None if the file declares none.

    Raises:
        StvidError: If the statement uses more than literals, constants of the file, and the classes of this module.
    """
    assigned: dict[str, ast.stmt] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            assigned[statement.targets[0].id] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            assigned[statement.target.id] = statement
    if "FAMILY" not in assigned:
        return None
    names = dict(_VOCABULARY)
    try:
        for name in _needed("FAMILY", assigned):
            # The package's own source, evaluated without builtins: it sees only the names gathered here.
            value = assigned[name].value  # type: ignore[attr-defined]
            names[name] = eval(compile(ast.Expression(value), str(path), "eval"), {"__builtins__": {}}, names)
    except NameError as error:
        raise StvidError(
            f"{path}: FAMILY cannot be read without running the file ({error}); it may use literals, Family, Variant, "
            "Protocol, and constants of the file that are made of these"
        ) from error
    family = names["FAMILY"]
    if not isinstance(family, Family):
        raise StvidError(f"{path}: FAMILY is a {type(family).__name__}, not a Family")
    return family


def _needed(name: str, assigned: Mapping[str, ast.stmt]) -> list[str]:
    """Returns the constants that the value of one is made of, each after those that it needs, itself last."""
    order: list[str] = []

    def visit(current: str) -> None:
        if current in order:
            return
        for node in ast.walk(assigned[current].value):  # type: ignore[attr-defined]
            if isinstance(node, ast.Name) and node.id in assigned and node.id != current:
                visit(node.id)
        order.append(current)

    visit(name)
    return order
