"""Names to models: `register_model`, `create_model`, `list_models`.

Each family's file registers its variants at its bottom. A variant is a function of keyword arguments that calls the
family's class; the entry beside it says what was published: the protocol, the parameters and the multiply-adds.

A name with a slash, ``<library>/<name>``, is a model of another library behind the same API; see `LIBRARIES`.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from stvid.errors import UnknownNameError, nearest
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

__all__ = ["ModelInfo", "create_model", "list_models", "model_info", "register_model"]

# The files that hold the families; importing one registers its variants.
FAMILIES = (
    "c3d",
    "i3d",
    "i3d_resnet",
    "p3d",
    "resnet3d",
    "timesformer",
    "uniformer",
    "video_resnet",
    "video_swin",
    "vivit",
    "xvit",
)

# The modules that know the models of a library, asked in this order and imported at first use. Each has two functions:
# `library_models(library)` lists the names behind the slash, `library_model_info(library, name)` returns a `ModelInfo`.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "pytorchvideo": ("stvid.models.external",),
    "timm": ("stvid.inflation.inflate",),
    "torchvision": ("stvid.models.external", "stvid.inflation.inflate"),
}


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a variant before it is built.

    Attributes:
        name: As `create_model` takes it.
        build: The variant's function.
        protocol: The published protocol.
        params: Published parameters in millions; None if none were published.
        gflops: Published multiply-adds of one view in 1e9; None if none were published.
        paper: Authors, year and arXiv number.
        formats: Published layouts that `stvid.load_checkpoint` reads, as its report names them; stvid's own besides.
        note: Where the published numbers and the official code disagree, how.
    """

    name: str
    build: Callable[..., VideoModel]
    protocol: Protocol
    params: float | None
    gflops: float | None
    paper: str
    formats: tuple[str, ...] = ()
    note: str = ""


_REGISTRY: dict[str, ModelInfo] = {}
Builder = TypeVar("Builder", bound=Callable[..., VideoModel])


def register_model(
    *,
    protocol: Protocol,
    params: float | None = None,
    gflops: float | None = None,
    paper: str = "",
    formats: tuple[str, ...] = (),
    note: str = "",
) -> Callable[[Builder], Builder]:
    """Registers the decorated function under its own name; see `ModelInfo` for the arguments.

    Raises:
        ValueError: If the name is taken.
    """

    def register(build: Builder) -> Builder:
        name = build.__name__
        if name in _REGISTRY:
            raise ValueError(f"a model named {name} is registered already")
        _REGISTRY[name] = ModelInfo(name, build, protocol, params, gflops, paper, formats, note)
        return build

    return register


def _load_families() -> None:
    for family in FAMILIES:
        importlib.import_module(f"stvid.models.families.{family}")


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names of the models that match a shell pattern.

    Args:
        pattern: ``uniformer_*`` matches models of stvid itself. A pattern with a slash matches models of other
            libraries, whether those are installed or not: ``pytorchvideo/*``, ``*/mvit_*``.
    """
    if "/" in pattern:
        libraries, _, names = pattern.partition("/")
        matching = fnmatch.filter(LIBRARIES, libraries)
        return sorted(
            f"{library}/{name}" for library in matching for name in fnmatch.filter(_library_names(library), names)
        )
    _load_families()
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def model_info(name: str) -> ModelInfo:
    """Returns the registry entry of a name.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
    """
    if "/" in name:
        return _library_model_info(name)
    _load_families()
    try:
        return _REGISTRY[name]
    except KeyError:
        elsewhere = [f"{library}/{name}" for library in LIBRARIES if name in _library_names(library)]
        hint = f"; there is {', '.join(elsewhere)}" if elsewhere else nearest(name, _REGISTRY)
        raise UnknownNameError(f"model {name!r}: no such model{hint} (see: stvid models)") from None


def _library_names(library: str) -> set[str]:
    modules = (importlib.import_module(module) for module in LIBRARIES[library])
    return {name for module in modules for name in module.library_models(library)}


def _library_model_info(name: str) -> ModelInfo:
    library, _, own_name = name.partition("/")
    if library not in LIBRARIES:
        known = ", ".join(f"{library}/..." for library in LIBRARIES)
        raise UnknownNameError(f"model {name!r}: no library {library!r}; there are {known}")
    for module in map(importlib.import_module, LIBRARIES[library]):
        if own_name in module.library_models(library):
            return module.library_model_info(library, own_name)
    from stvid.models.external import NATIVE

    if native := NATIVE.get(library, {}).get(own_name):
        raise UnknownNameError(f"{name}: is native here: {native}")
    hint = nearest(own_name, _library_names(library))
    raise UnknownNameError(f"model {name!r}: {library} has no {own_name!r}{hint} (see: stvid models '{library}/*')")


def create_model(
    name: str,
    *,
    num_classes: int = 400,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    checkpoint: Any = None,
    **hyperparameters: Any,
) -> VideoModel:
    """Builds a model by name.

    Args:
        name: One of `list_models`; ``<library>/<name>`` is a model of another library.
        num_classes: Number of logits.
        num_frames: Frames of a clip; None takes the variant's own.
        img_size: Side of the square input in pixels, or (height, width); None takes the variant's own.
        checkpoint: A path or mapping of weights for `stvid.load_checkpoint`.
        **hyperparameters: Further arguments of the family's constructor, for example ``drop_path_rate``.

    Returns:
        A model in training mode: ``forward(clip)`` takes (B, C, T, H, W) and returns logits (B, num_classes). Its
        ``default_protocol`` is the published one at these frames and this size.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
        ValueError: If `num_classes` is negative, or the model cannot be built at these frames or this size.
        TypeError: If the model has no such hyperparameter; the message names it.
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    info = model_info(name)
    if num_classes < 0:
        raise ValueError(f"num_classes is {num_classes}: 0 gives features, otherwise the number of classes")
    frames = info.protocol.frames if num_frames is None else int(num_frames)
    size = info.protocol.crop if img_size is None else img_size
    height_width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    model = info.build(num_classes=num_classes, num_frames=frames, img_size=height_width, **hyperparameters)
    crop = min(height_width)  # a protocol has square crops; a model built for a wider input is fed by its short side
    short_side = max(crop, round(crop * info.protocol.short_side / info.protocol.crop))
    model.default_protocol = info.protocol.replace(frames=frames, crop=crop, short_side=short_side)
    model.recipe = {
        "name": name,
        "num_classes": num_classes,
        "num_frames": frames,
        "img_size": list(height_width),
        "hyperparameters": dict(hyperparameters),
    }
    if checkpoint is not None:
        from stvid.checkpoints import load_checkpoint

        load_checkpoint(model, checkpoint)
    return model
