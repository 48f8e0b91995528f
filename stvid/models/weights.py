"""The tables of published weights: for each model, which files there are, and what each was made for.

A table stands beside the file of its family, ``families/uniformer.csv`` beside ``families/uniformer.py``, a row for
each published file. Reading it needs neither torch nor a network connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stvid.protocol import Protocol

__all__ = ["Weights"]


@dataclass(frozen=True)
class Weights:
    """A published file of weights, and all that is known of it before it is fetched.

    Attributes:
        model: The model that it fits, as `stvid.create_model` takes it.
        tag: What tells the files of a model apart, such as ``k400_16x4``.
        url: Where it is published: ``https://...``, ``hf:REPO`` or ``hf:REPO/FILE`` (Hugging Face), ``gdrive:ID`` or
            ``gdrive-folder:ID`` (Google Drive).
        sha256: SHA-256 of the file in hexadecimal digits, or its first digits; empty if it was not published.
        bytes: Size of the file; None if it was not published.
        protocol: How the published numbers were measured, without the class names.
        num_classes: Number of logits; 0 for weights without a classifier.
        classes: Name of the list of class names that fits the logits (see `stvid.classes`); empty if their order is not
            known.
        top1: Published top-1 accuracy in percent with the views of `protocol`; None if there is none.
        top5: Published top-5 accuracy in percent with the same views.
        pretrained_on: The data of the pretraining, in the words of the source; empty for none or unknown.
        options: Further arguments of `stvid.create_model` that these weights need.
        licence: Licence of the weights, or of the repository that publishes them; empty if unknown.
        source: Where these facts were read, as repository@commit:path.
        note: What a user of the weights must know besides.
    """

    model: str
    tag: str
    url: str
    protocol: Protocol
    num_classes: int
    sha256: str = ""
    bytes: int | None = None
    classes: str = ""
    top1: float | None = None
    top5: float | None = None
    pretrained_on: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    source: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """The name that commands and `stvid.load_model` take, such as ``uniformer_s.k400_16x4``."""
        return f"{self.model}.{self.tag}"
