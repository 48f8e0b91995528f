"""The table of native models: which there are, what was published of them, and the class that builds each.

Every file of `stvid/models/families` is a family and says so itself (``FAMILY``, see `stvid.models.family`). The table
is made from the sources of these files, so that listing and describing models needs neither torch nor timm; the file of
a family is imported when one of its models is built. The table of its published weights stands beside it (see
`stvid.models.weights`). A family that lives elsewhere is added with `register_family`.

`stvid.zoo` stands above this module: there are `create_model` and `list_models`, which know the models of other
libraries too.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from stvid.errors import UnknownNameError, nearest
from stvid.models.family import Family, Variant, read_family
from stvid.models.weights import Weights, read_weights
from stvid.protocol import Protocol

if TYPE_CHECKING:
    from stvid.models.base import VideoModel

HeadName = Literal["default", "attentive"]

__all__ = [
    "HeadName",
    "ModelInfo",
    "autoencoder_class",
    "autoencoders",
    "build_model",
    "family_of",
    "find_weights",
    "model_arguments",
    "model_info",
    "native_models",
    "protocol_at",
    "register_family",
    "weights_of",
]


@dataclass(frozen=True)
class ModelInfo:
    """The facts about a model that are known before it is built.

    Attributes:
        name: As `stvid.create_model` takes it.
        build: Makes the model: a function of ``num_classes``, ``num_frames``, ``img_size`` and hyperparameters.
        protocol: The published protocol.
        params: Published parameters in millions; None if none were published.
        gflops: Published multiply-adds of one view in 1e9; None if none were published.
        paper: Authors, year and arXiv number; empty if there is none.
        formats: Published layouts that `stvid.load_checkpoint` reads, as its report names them, in addition to its own.
        note: Where the published numbers and the official code disagree, and how.
        about: One line that says which model it is.
        decoder: Arguments of the decoder of its masked pretraining that differ from the defaults.
    """

    name: str
    build: Callable[..., VideoModel]
    protocol: Protocol
    params: float | None
    gflops: float | None
    paper: str
    formats: tuple[str, ...] = ()
    note: str = ""
    about: str = ""
    decoder: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """A variant, its family, and the module that holds both."""

    variant: Variant
    family: Family
    module: str


_registered: dict[str, tuple[Family, ModuleType]] = {}  # families outside the package, by the name of their module


@functools.cache
def _native() -> Mapping[str, _Entry]:
    """Returns the models of the package by name."""
    table: dict[str, _Entry] = {}
    for path in sorted((Path(__file__).parent / "families").glob("*.py")):
        family = read_family(path)
        if family is not None:
            _add(table, family, f"stvid.models.families.{path.stem}")
    return table


def _add(table: dict[str, _Entry], family: Family, module: str) -> None:
    for variant in family.variants:
        if variant.name in table:
            raise ValueError(f"a model named {variant.name} exists already, in {table[variant.name].module}")
        table[variant.name] = _Entry(variant, family, module)


def _table() -> Mapping[str, _Entry]:
    if not _registered:
        return _native()
    table = dict(_native())
    for name, (family, _) in _registered.items():
        _add(table, family, name)
    return table


def register_family(module: ModuleType) -> None:
    """Adds the models of a module outside stvid, for this process.

    Args:
        module: A module with a ``FAMILY`` and the class that it names.

    Raises:
        ValueError: If the module has no ``FAMILY``, or one of its names is taken.
    """
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, Family) or not hasattr(module, family.model):
        raise ValueError(f"{module.__name__}: needs FAMILY = Family(...), and the class that its field `model` names")
    others = {name: entry for name, entry in _table().items() if entry.module != module.__name__}
    _add(others, family, module.__name__)
    _registered[module.__name__] = (family, module)


def native_models() -> list[str]:
    """Returns the sorted names of the models that stvid defines itself."""
    return sorted(_table())


def _entry(name: str) -> _Entry:
    table = _table()
    if name not in table:
        raise UnknownNameError(f"model {name!r}: no such model{nearest(name, table)} (see: stvid models)")
    return table[name]


def family_of(name: str) -> tuple[Family, Variant]:
    """Returns the family of a native model, and the model's own entry in it.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
    """
    entry = _entry(name)
    return entry.family, entry.variant


def weights_of(name: str) -> tuple[Weights, ...]:
    """Returns the published weights of a native model; the first are its default.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
    """
    entry = _entry(name)
    if entry.module in _registered:
        file = _registered[entry.module][1].__file__
        folder_and_stem = Path(file) if file else None
    else:
        folder_and_stem = Path(__file__).parent / "families" / f"{entry.module.rpartition('.')[2]}.py"
    return () if folder_and_stem is None else read_weights(folder_and_stem.with_suffix(".csv")).get(name, ())


def find_weights(name: str) -> Weights | None:
    """Returns the published weights of a name.

    Args:
        name: ``MODEL.TAG``, such as ``uniformer_s.k400_16x4``.

    Returns:
        The weights; None if the part before the first dot is no native model, so that the name means something else.

    Raises:
        UnknownNameError: If the model has no such weights; the message lists the nearest tags.
    """
    model, dot, tag = name.partition(".")
    if not dot or model not in _table():
        return None
    published = {weights.tag: weights for weights in weights_of(model)}
    if tag not in published:
        if not published:
            raise UnknownNameError(f"{name}: no weights of {model} are published")
        hint = nearest(tag, published) or f"; there are {', '.join(published)}"
        raise UnknownNameError(f"{name}: {model} has no weights {tag!r}{hint} (see: stvid models --pretrained {model})")
    return published[tag]


def model_info(name: str) -> ModelInfo:
    """Returns what is known of a native model.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
    """
    entry = _entry(name)
    variant, family = entry.variant, entry.family
    return ModelInfo(
        name=name,
        build=functools.partial(_build, entry),
        protocol=variant.protocol,
        params=variant.params,
        gflops=variant.gflops,
        paper=family.paper if variant.paper is None else variant.paper,
        formats=family.formats if variant.formats is None else variant.formats,
        note=variant.note,
        about=variant.about,
        decoder=variant.decoder,
    )


def model_arguments(name: str) -> tuple[str, ...]:
    """Returns the keyword arguments that the class of a native model takes.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
    """
    return tuple(inspect.signature(_class_of(_entry(name))).parameters)


def autoencoders() -> list[str]:
    """Returns the sorted names of the native models that can be pretrained as masked autoencoders."""
    return sorted(name for name, entry in _table().items() if entry.family.autoencoder is not None)


def autoencoder_class(name: str) -> Any:
    """Returns the class that pretrains a native model as a masked autoencoder; None if there is none.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
    """
    entry = _entry(name)
    return None if entry.family.autoencoder is None else getattr(_module_of(entry), entry.family.autoencoder)


def _module_of(entry: _Entry) -> ModuleType:
    return _registered[entry.module][1] if entry.module in _registered else importlib.import_module(entry.module)


def _class_of(entry: _Entry) -> Any:
    return getattr(_module_of(entry), entry.family.model)


def _build(entry: _Entry, **arguments: Any) -> VideoModel:
    """Calls the family's class with the variant's options and the caller's, which win."""
    kind = _class_of(entry)
    known = inspect.signature(kind).parameters
    for key in arguments:
        if key not in known:
            raise TypeError(f"{entry.variant.name} has no argument {key!r}{nearest(key, known)}")
    return kind(**{**entry.variant.options, **arguments})


MOST_CLASSES = 1_000_000
"""More logits than any data set has classes; their weights would fill the memory."""


def build_model(
    info: ModelInfo,
    *,
    num_classes: int = 400,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    head: HeadName = "default",
    hyperparameters: Mapping[str, Any] | None = None,
) -> VideoModel:
    """Builds a model with fresh weights, and tells it how it was built.

    Args:
        info: Which model.
        num_classes: Number of logits; 0 gives features.
        num_frames: Frames of a clip; None takes the model's own.
        img_size: Side of the square input in pixels, or (height, width); None takes the model's own.
        head: ``default``, or ``attentive`` for a head that pools by attention (V-JEPA 2's probe).
        hyperparameters: Further arguments of the family's class.

    Returns:
        The model in training mode. Its ``default_protocol`` is the published one at these frames and this size.

    Raises:
        ValueError: If `num_classes` is negative or absurdly large, `in_chans` is not from 1 up, or the model cannot be
            built at these frames or this size.
        TypeError: If the model has no such hyperparameter; the message names it; or `num_classes` is no number.
    """
    if not isinstance(num_classes, Integral):
        raise TypeError(f"num_classes is {num_classes!r}: a whole number is needed")
    channels = (hyperparameters or {}).get("in_chans", 3)
    if not isinstance(channels, Integral) or channels < 1:
        raise ValueError(f"in_chans is {channels!r}: a whole number from 1 up is needed")
    if num_classes < 0:
        raise ValueError(f"num_classes is {num_classes}: 0 gives features, otherwise the number of classes")
    if num_classes > MOST_CLASSES:
        raise ValueError(f"num_classes is {num_classes}: more than {MOST_CLASSES:,} classes cannot be told apart")
    options = dict(hyperparameters or {})
    frames = info.protocol.frames if num_frames is None else int(num_frames)
    size = info.protocol.crop if img_size is None else img_size
    height_width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    model = info.build(num_classes=num_classes, num_frames=frames, img_size=height_width, **options)
    model.default_protocol = protocol_at(info.protocol, frames, height_width)
    model.recipe = {
        "name": info.name,
        "num_classes": num_classes,
        "num_frames": frames,
        "img_size": list(height_width),
        "hyperparameters": options,
    }
    if head != "default":
        model.reset_classifier(num_classes, head=head)
    return model


def protocol_at(protocol: Protocol, frames: int, size: tuple[int, int]) -> Protocol:
    """Returns a protocol at other frames and another size; the short side keeps its proportion to the crop.

    Args:
        protocol: The published one.
        frames: Frames of a clip.
        size: (height, width) of the input. A protocol has square crops; a wider input is fed by its short side.
    """
    crop = min(size)
    short_side = max(crop, round(crop * protocol.short_side / protocol.crop))
    return protocol.replace(frames=frames, crop=crop, short_side=short_side)
