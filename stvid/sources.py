"""Where weights come from: one place that turns whatever names them into a file or folder on this machine.

Every function and option that takes weights takes the same sources, and this module reads them:

- a file, the folder of a run, a folder of transformers or its index file;
- ``NAME.TAG``, published weights of a native model, such as ``uniformer_s.k400_16x4``;
- ``hf-hub:org/repo``, with ``@revision`` if not the newest, a repository of the Hugging Face hub;
- ``https://...``, a file of weights.

What is not on this machine is fetched once and kept (see `stvid.downloads`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stvid.errors import CheckpointError
from stvid.models.registry import find_weights, native_models, protocol_at, weights_of
from stvid.models.weights import Weights

if TYPE_CHECKING:
    from stvid.models.base import VideoModel

__all__ = ["Source", "adopt_weights", "fetch_weights", "newest_checkpoint", "published_source", "resolve_source"]


@dataclass(frozen=True)
class Source:
    """Weights that lie on this machine.

    Attributes:
        name: The name by which they were asked for.
        path: The file, or the folder if the files of a folder belong together.
        weights: What is known of them, if they are published weights with a name.
    """

    name: str
    path: Path
    weights: Weights | None = None


def resolve_source(source: str | os.PathLike[str], *, prefer: str | None = "best.ckpt") -> Source:
    """Returns where weights lie, and fetches them first if need be.

    Args:
        source: One of the forms that the module's docstring lists. What exists as a file or folder is that file or
            folder, whatever else its name could mean.
        prefer: The checkpoint that is taken from a run's folder if it is there, else the newest; None takes the newest.

    Raises:
        CheckpointError: If there is nothing of that name.
        UnknownNameError: If a native model has no weights of that tag; the message lists the nearest.
        StvidError: If the file cannot be fetched.
    """
    given = os.fspath(source)
    if not given:
        raise CheckpointError("checkpoint: its name is empty; a variable of the shell may not be set")
    if given.lower().endswith((".onnx", ".pt2")) and os.path.isfile(given):
        raise CheckpointError(
            f"{given}: is a program that stvid export wrote, not weights: run it with stvid.load_exported, and give "
            "the checkpoint here that it was made of"
        )
    if os.path.lexists(given):
        return Source(given, newest_checkpoint(given, prefer=prefer))
    if given.startswith("hf-hub:"):
        from stvid.downloads import fetch_hub_folder

        return Source(given, fetch_hub_folder(given))
    if given.startswith(("https://", "http://")):
        from stvid.downloads import fetch

        return Source(given, fetch(given))
    weights = find_weights(given)
    if weights is not None:
        return published_source(weights)
    if given in native_models():
        tags = [other.name for other in weights_of(given)]
        hint = f"; name its weights, too: {', '.join(tags[:8])}{', ...' if len(tags) > 8 else ''}" if tags else ""
        raise CheckpointError(f"{given}: is a model, not weights{hint}")
    return Source(given, newest_checkpoint(given, prefer=prefer))  # tells that there is no such file


def published_source(weights: Weights) -> Source:
    """Returns published weights, fetched if need be; a file of the same name in the working folder is not meant."""
    return Source(weights.name, fetch_weights(weights), weights)


def fetch_weights(weights: Weights) -> Path:
    """Returns the file or folder of published weights, fetched if it is not here yet.

    A licence that excludes commercial use is said on stderr.

    Raises:
        StvidError: If the file cannot be fetched, is not the published one, or only a person can fetch it.
    """
    from stvid.downloads import fetch, say_licence

    path = fetch(weights.url, sha256=weights.sha256, size=weights.bytes, name=weights.name, licence=weights.licence)
    say_licence(weights.name, weights.licence)
    return path


def adopt_weights(model: VideoModel, weights: Weights, *, trained: bool) -> None:
    """Gives a model what is known of published weights: their protocol, class names and task.

    Args:
        model: The model that they were loaded into; its frames and size stay.
        weights: The published weights.
        trained: Whether the model has their classifier; otherwise the classes are others, and unknown here.
    """
    names = weights.class_names or model.default_protocol.class_names  # the file itself may name them
    names = names if len(names) == model.num_classes else ()
    size = model.recipe["img_size"]
    model.default_protocol = protocol_at(
        weights.protocol.replace(class_names=names if trained else ()), model.recipe["num_frames"], (size[0], size[1])
    )
    if trained:
        model.task = weights.task
        model.weights = weights


def newest_checkpoint(source: str | os.PathLike[str], *, prefer: str | None = None) -> Path:
    """Returns the checkpoint that a path means: itself, or the newest of a run's folder.

    Args:
        source: A checkpoint, a run's folder, or its ``checkpoints`` folder; a folder of another program (transformers,
            DeepSpeed, torch.distributed) stands for itself.
        prefer: File name to take if it is there, such as ``best.ckpt``.

    Raises:
        CheckpointError: If there is none.
    """
    path = Path(source)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run folder")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if prefer is not None and (folder / prefer).is_file():
        return folder / prefer
    found = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        from stvid.weight_files import holds_weights  # needs torch, which listing models does not

        if holds_weights(path):
            return path
        raise CheckpointError(
            f"{path}: holds no checkpoint: it is neither a run of stvid (*.ckpt) nor a folder of transformers, "
            "DeepSpeed or torch.distributed"
        )
    resumable = [file for file in found if file.name != "best.ckpt"] or found
    return resumable[-1]
