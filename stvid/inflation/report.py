"""The report of an inflation: a row for each tensor, and the proof on a still video."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "COPIED",
    "EXACT",
    "RANDOM",
    "FilterPair",
    "InflationReport",
    "LayerDifference",
    "Proof",
    "RuleKind",
    "TensorRule",
]

EXACT = 1e-5  # the largest relative difference that still counts as equal
RANDOM = "RANDOM"  # the origin of weights that nobody trained
COPIED = "copied"  # the words for tensors that did not change
RuleKind = Literal["copied", "derived", "initialised", "dropped"]


@dataclass(frozen=True)
class TensorRule:
    """One row: from what a tensor was made, and how.

    Attributes:
        source: Name in the 2D network, several joined with ``+``; empty if the tensor has no origin there.
        target: Name in the video model; empty if the tensor was dropped.
        kind: ``copied`` without a change, ``derived`` from one or more tensors of the 2D network, ``initialised`` as a
            tensor that the 2D network does not have, or ``dropped``.
        rule: The same for people, with the details: ``copied``, ``repeated 3 times in time, divided by 3``,
            ``dropped: a count of batches``.
        source_shape: Shape in the 2D network, several joined with ``+``; empty like `source`.
        target_shape: Shape in the video model; empty for a scalar, and if `target` is.
    """

    source: str
    target: str
    kind: RuleKind
    rule: str
    source_shape: str
    target_shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerDifference:
    """How far one layer of the video model is from its 2D twin on a still video.

    Attributes:
        name: Name of the layer in the 2D network.
        relative: Largest difference over the largest magnitude of the 2D layer's output.
    """

    name: str
    relative: float


@dataclass(frozen=True)
class FilterPair:
    """A kernel before and after, for the picture.

    Attributes:
        name: Name of the layer.
        source: (out, in, height, width).
        target: (out, in, time, height, width).
    """

    name: str
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Proof:
    """The outcome of a comparison on a still video; as a text, one line.

    Attributes:
        difference: As in `InflationReport`.
        exact: Whether it is below `EXACT`.
        compared: What was compared.
        computed_in: The type in which it was.
        reasons: Why the two cannot be equal, if they are not.
        text: The outcome in one line.
    """

    difference: float
    exact: bool
    compared: str
    computed_in: str
    reasons: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class InflationReport:
    """The rule of every tensor, and the proof on a still video.

    Attributes:
        source: The name of the 2D network.
        target: The name of the video model.
        rules: A row per tensor of either side.
        difference: Largest difference between the 2D network on an image and the video model on that image repeated
            over time, relative to the difference between the 2D network's outputs for two images; None if it was not
            measured.
        compared: What was compared.
        reasons: Why the two cannot be equal on a still video, each as one sentence; empty if they must be.
        aligned: The difference with a reason taken away; None if none can be.
        alignment: What was done for `aligned`.
        layers: Differences of single layers in the order of the forward pass, for `stvid.look.inflation_page`.
        filters: Kernels for the same page.
        weights: Where the weights are from: ``RANDOM``, ``as given`` for a module, a file, or ``published``.
        computed_in: The type in which the two were compared.
        notes: Further remarks, each as one sentence, such as on what the network returns.
    """

    source: str
    target: str
    rules: list[TensorRule]
    difference: float | None = None
    compared: str = "logits"
    reasons: list[str] = field(default_factory=list)
    aligned: float | None = None
    alignment: str = ""
    layers: list[LayerDifference] = field(default_factory=list)
    filters: list[FilterPair] = field(default_factory=list)
    weights: str = ""
    computed_in: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def proof(self) -> Proof | None:
        """The outcome of the proof; None if it was left out."""
        if self.difference is None:
            return None
        return Proof(self.difference, self.exact, self.compared, self.computed_in, tuple(self.reasons), self.verdict())

    @property
    def exact(self) -> bool:
        """Whether the proof was made and found the two equal."""
        return self.difference is not None and self.difference < EXACT

    @property
    def as_promised(self) -> bool:
        """Whether the two are equal, or a reason is named why they cannot be. Without a proof nothing is promised."""
        return self.exact or self.difference is None or bool(self.reasons)

    def verdict(self) -> str:
        """Returns the outcome of the proof in one line."""
        if self.difference is None:
            return "still video: not compared"
        line = f"still video: largest difference of the {self.compared} {self.difference:.1e} (relative)"
        if self.exact:
            return f"{line}: exact"
        if not self.reasons:
            return f"{line}: NOT EQUAL, although it should be"
        line += f": approximate, since {'; '.join(self.reasons)}"
        return f"{line}; with {self.alignment}: {self.aligned:.1e}" if self.aligned is not None else line

    def counts(self) -> dict[str, int]:
        """Returns the number of tensors of each rule, the most frequent first; they add up to all tensors."""
        return dict(Counter(rule.rule for rule in self.rules).most_common())

    def print(self, console: Console | None = None, *, every_tensor: bool = False) -> None:
        """Prints the table and the verdict.

        Args:
            console: Where to; None takes standard output.
            every_tensor: One row for each copied tensor too, instead of one for all of them.
        """
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console() if console is None else console
        if self.weights == RANDOM:
            console.print(Text(f"{self.source}: the weights are RANDOM (give a file, or take the published ones)"))
        table = Table(title=f"{self.source} -> {self.target}", title_justify="left")
        for name in ("tensor", "rule", "2D", "3D"):
            table.add_column(name, overflow="fold")
        rows = self.rules if every_tensor else [rule for rule in self.rules if rule.kind != "copied"]
        for rule in rows:
            cells = (_both_names(rule), rule.rule, rule.source_shape, _shape(rule))
            table.add_row(*(Text(cell) for cell in cells))
        copied = len(self.rules) - len(rows)
        if copied:
            table.add_row(Text(f"{copied} tensors"), Text(COPIED), Text(""), Text(""))
        table.add_section()
        table.add_row(Text(f"{len(self.rules)} tensors"), Text("all of both networks"), Text(""), Text(""))
        console.print(table)
        for note in self.notes:
            console.print(Text(f"note: {note}"), soft_wrap=True)
        console.print(Text(self.verdict()), soft_wrap=True)


def _both_names(rule: TensorRule) -> str:
    names = [name for name in (rule.source, rule.target) if name]
    return names[0] if len(set(names)) == 1 else " -> ".join(names)


def _shape(rule: TensorRule) -> str:
    return str(rule.target_shape) if rule.target else ""
