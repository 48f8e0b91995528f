"""Reading and writing weights: stvid's own checkpoints and every published format of the models it has.

A published format is recognised by its keys, not by its file name. Everything in a file that may be the state of a
network is tried (see `candidates`): the model's family turns the keys into its own (`VideoModel.convert_checkpoint`),
and the first state that has all keys of the model and no others is taken. If none fits, an error lists what is missing
and left over. Files are read by `stvid.weight_files` without running anything of what they hold.

A checkpoint of stvid also says what it is: under the key ``stvid`` (``.ckpt``, ``.pt``) or in the metadata
(``.safetensors``) it holds the call that builds the model, the protocol with the class names, the task, and the
version.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from stvid.errors import CheckpointError, ConfigError, UnknownNameError
from stvid.files import write_atomically
from stvid.models.base import VideoModel
from stvid.models.pretraining import MaskedAutoencoder
from stvid.models.registry import MOST_CLASSES, find_weights
from stvid.models.transformers_configs import normalisation_of
from stvid.models.weights import Weights
from stvid.protocol import Protocol, Task
from stvid.sources import adopt_weights, newest_checkpoint, resolve_source
from stvid.version import __version__
from stvid.weight_files import CHECKED, Candidate, WeightFile, find_candidates, read_weight_file, seal

__all__ = [
    "LoadReport",
    "candidates",
    "check_description",
    "describe",
    "head_keys",
    "load_checkpoint",
    "nearest_state",
    "read_checkpoint",
    "save_model",
    "unwrap",
]

PREFIXES = ("module.", "model.", "backbone.", "encoder.module.")
SHOWN_KEYS = 8
# Modules that training code keeps beside the network, by the first part of their names.
AUXILIARY = re.compile(
    r"criterion|loss|metric|accuracy|acc[._0-9]|_acc|top_?[15]|confusion|f1|auroc|ema|swa|averaged|teacher|queue", re.I
)

# A masked pretraining: how formats that are one end, and the tensors that belong to its decoder.
_PRETRAININGS = ("pretraining", "MAE")
_OF_A_DECODER = re.compile(r"(?:decoder|encoder_to_decoder|mask_token|fusion|multi_scale_fusion_heads)\b|decoder_")


class Content(dict[str, Any]):
    """The content of a file of weights, which knows where it is from.

    Attributes:
        source: The file or folder.
        foreign: Names of the foreign classes that were not built, and how often each was met.
    """

    def __init__(self, read: WeightFile) -> None:
        super().__init__(read.content)
        self.source = str(read.path)
        self.foreign = dict(read.foreign)


@dataclass
class LoadReport:
    """Tells what `load_checkpoint` recognised, took over and changed.

    Attributes:
        source: Path, or ``mapping``.
        format: The recognised format.
        loaded: Number of tensors taken over.
        reset: Keys of the classifier that were left as initialised, since `reset_head` was given.
        resized: Keys of position tables that were resized, with the shapes before and after.
        adapted: Keys of first layers that were adapted to another number of channels, with the two numbers.
        protocol: The protocol that came with the weights, if any.
        found: Where in the file the network stands, such as ``state_dict: model.``; empty for the file as a whole.
        left_out: Parts of the file that were not taken: criteria, metrics, averaged copies, a classifier that the model
            has not, and foreign classes.
        others: Where other states of the same network stand, such as an averaged copy; the plain one was taken.
    """

    source: str
    format: str
    loaded: int
    reset: list[str] = field(default_factory=list)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    adapted: dict[str, tuple[int, int]] = field(default_factory=dict)
    protocol: Protocol | None = None
    found: str = ""
    left_out: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.source}: {self.format} format, {self.loaded} tensors"
        if self.found and self.found != "state_dict":
            text += f" (of {self.found})"
        if self.resized:
            text += f", {len(self.resized)} resized"
        for key, (before, after) in self.adapted.items():
            text += f", {key} adapted from {before} to {after} channels"
        if self.reset:
            text += f", new head ({', '.join(self.reset)})"
        if self.left_out:
            text += f", left out {_listed(self.left_out)}"
        if self.others:
            text += f"; {_listed(self.others)} fits too and was not taken"
        return text


def read_checkpoint(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file or folder of weights without running anything of what it holds.

    Args:
        source: A file of any program: .pth, .pt, .pyth, .pkl, .ckpt, .bin, .safetensors, .npz, flax's ``checkpoint``
            (its first bytes tell, not its name); the index of a file in shards; a folder of a run, of transformers,
            DeepSpeed or torch.distributed.

    Returns:
        The content of the file. Objects of foreign classes are placeholders. For files of arrays alone it is a flat
        mapping, with stvid's own description under ``stvid``; for folders of transformers the state is under
        ``state_dict`` and the configs are under ``transformers``.

    Raises:
        CheckpointError: If the file is missing or damaged, or is something else.
    """
    path = Path(source)
    if path.is_dir():
        path = newest_checkpoint(path, prefer="best.ckpt")
    content = Content(read_weight_file(path))
    if "stvid" in content:
        check_description(content["stvid"], content.source)
    return content


_MOST_FRAMES = 2**16
_MOST_SIDE = 2**14
_MOST_LAYERS = 1024
_LAYERS = re.compile(r"depth|layers|blocks|num_heads|repeats")


def check_description(stored: Any, source: str) -> None:
    """Checks the type of everything in a description that `describe` made, and that no size in it is absurd.

    Args:
        stored: The value of ``stvid`` in a file.
        source: The file, for messages.

    Raises:
        CheckpointError: If it is damaged, or of something that cannot be built.
    """
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{source}: its description is damaged: {str(stored)[:60]!r} is no table; save it again")
    try:
        if "protocol" in stored:
            Protocol.from_dict(stored["protocol"])
    except ConfigError as error:
        raise CheckpointError(f"{source}: its protocol cannot be used ({str(error)[:300]})") from error
    if stored.get("task") not in (None, *get_args(Task)):
        raise CheckpointError(f"{source}: its task {stored['task']!r} is not one of {', '.join(get_args(Task))}")
    for key, kind in {"model": Mapping, "measured": Mapping, "weights": str, "config": str, "version": str}.items():
        if key in stored and not isinstance(stored[key], kind):
            raise CheckpointError(f"{source}: its description is damaged: {key} is {str(stored[key])[:60]!r}")
    _check_recipe(stored.get("model", {}), source)


def _check_recipe(recipe: Mapping[str, Any], source: str) -> None:
    def is_number(value: Any, least: int, most: int) -> bool:
        return type(value) is int and least <= value <= most

    size = recipe.get("img_size", [1, 1])
    good = {
        "name": isinstance(recipe.get("name", ""), str | None),
        "module": isinstance(recipe.get("module", ""), str),
        "head": isinstance(recipe.get("head", ""), str),
        "num_classes": is_number(recipe.get("num_classes", 0), 0, MOST_CLASSES),
        "num_frames": is_number(recipe.get("num_frames", 1), 1, _MOST_FRAMES),
        "img_size": isinstance(size, list | tuple)
        and len(size) == 2
        and all(is_number(side, 1, _MOST_SIDE) for side in size),
        "hyperparameters": isinstance(recipe.get("hyperparameters", {}), Mapping)
        and all(_is_sane(key, value) for key, value in recipe.get("hyperparameters", {}).items()),
    }
    wrong = [key for key, fine in good.items() if not fine]
    if wrong:
        value = str(recipe.get(wrong[0]))[:80]
        raise CheckpointError(f"{source}: its description cannot be built: {wrong[0]} is {value!r}")


def _is_sane(name: Any, value: Any, depth: int = 0) -> bool:
    """Whether an argument of a model is not so large that building it would never end."""
    if depth > 8 or not isinstance(name, str):
        return False
    if isinstance(value, Mapping):
        return all(_is_sane(key, item, depth + 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_LAYERS and all(_is_sane(name, item, depth + 1) for item in value)
    if isinstance(value, int | float):
        return abs(value) <= (_MOST_LAYERS if _LAYERS.search(name) else _MOST_FRAMES)
    return value is None or isinstance(value, str)


def candidates(content: Mapping[str, Any]) -> list[tuple[str, dict[str, Tensor]]]:
    """Lists what may be the state of a network in the content of a file, the likeliest first.

    The content as a whole, what stands under each wrapper (``state_dict``, ``model``, ``params``, ``ema``, ...), and
    what is left when a prefix is taken off that all of the keys share, or many of them (``model.``,
    ``module.encoder_q.``, ``student.backbone.``). Marks of torch's wrappers (``_orig_mod.``) are taken out everywhere.
    Plain networks come before averaged copies (moving averages, teachers, MoCo's ``encoder_k``).

    Args:
        content: From `read_checkpoint`, or any mapping from names to tensors and arrays, with or without wrappers.

    Returns:
        Pairs of where the state was found, such as ``state_dict: module.encoder_q.`` (empty for the content as it is),
        and the flat state without that prefix.
    """
    return [(found.name, found.state) for found in find_candidates(content)]


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the likeliest state of a network in the content of a file, without the usual prefixes.

    `candidates` lists the others; where it is known what the network must look like, that is the better choice.
    """
    found = find_candidates(content)
    if not found:
        return {}
    state = found[0].state
    while prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in state)), ""):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _listed(keys: list[str]) -> str:
    shown = ", ".join(keys[:SHOWN_KEYS])
    return shown + (f", and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")


def _stored_protocol(content: Mapping[str, Any], model: VideoModel) -> Protocol | None:
    """Returns the protocol that came with weights, for a model with their classes; None if there is none."""
    stored = content.get("stvid")
    if isinstance(stored, Mapping) and "protocol" in stored:
        protocol = Protocol.from_dict(stored["protocol"])
        return protocol.replace(class_names=()) if model.num_classes == 0 else protocol
    foreign = content.get("transformers")
    return _transformers_protocol(foreign, model) if isinstance(foreign, Mapping) else None


def _transformers_protocol(configs: Mapping[str, Any], model: VideoModel) -> Protocol | None:
    """Returns the model's protocol with the class names and the pixels' scale that transformers' configs hold."""
    changes: dict[str, Any] = {}
    config, pixels = configs.get("config"), configs.get("preprocessor")
    labels = config.get("id2label") if isinstance(config, Mapping) else None
    if isinstance(labels, Mapping):
        names = [labels.get(str(number), labels.get(number)) for number in range(len(labels))]
        words = [name for name in names if isinstance(name, str) and not re.fullmatch(r"LABEL_\d+|", name)]
        if len(words) == len(names) == model.num_classes:
            changes["class_names"] = tuple(words)
    if isinstance(pixels, Mapping):
        normalisation = normalisation_of(config if isinstance(config, Mapping) else {}, pixels)
        if normalisation is not None:
            changes["mean"], changes["std"] = normalisation
        size = pixels.get("size")
        side = size.get("shortest_edge") if isinstance(size, Mapping) else size
        if type(side) is int and side >= model.default_protocol.crop:
            changes["short_side"] = side
    return model.default_protocol.replace(**changes) if changes else None


def _stored_task(content: Mapping[str, Any], name: str) -> str | None:
    stored = content.get("stvid")
    task = stored.get("task") if isinstance(stored, Mapping) else None
    if task is not None and task not in get_args(Task):
        raise CheckpointError(f"{name}: its task {task!r} is not one of {', '.join(get_args(Task))}")
    return task


def _stored_numbers(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], Weights | None]:
    """Returns what the stored weights were measured at, and the published file that they are from, if they say so."""
    stored = content.get("stvid")
    if not isinstance(stored, Mapping):
        return {}, None
    measured, name = stored.get("measured"), stored.get("weights")
    try:
        weights = find_weights(name) if isinstance(name, str) else None
    except UnknownNameError:  # written by a version with another table
        weights = None
    return (measured if isinstance(measured, Mapping) else {}), weights


def _stored_recipe(content: Mapping[str, Any]) -> Mapping[str, Any]:
    stored = content.get("stvid")
    recipe = stored.get("model") if isinstance(stored, Mapping) else None
    return recipe if isinstance(recipe, Mapping) else {}


@dataclass
class _Fit:
    """How a part of a file fits a model.

    Attributes:
        candidate: The part.
        format: The format that the model's family recognised.
        state: Its tensors in the model's own keys, without those that are left out.
        missing: Keys of the model that it has not.
        left_over: Keys that the model has not.
        left_out: Keys that the model has not and need not have: of a criterion, or of a classifier.
        differing: Number of its tensors, without the classifier's, that have another shape.
        matched: Number of its tensors that the model has.
        error: Why the family refuses it.
    """

    candidate: Candidate
    format: str = ""
    state: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    differing: int = 0
    matched: int = 0
    error: CheckpointError | None = None

    @property
    def fits(self) -> bool:
        """Whether it has all keys of the model and no others."""
        return not self.missing and not self.left_over and self.error is None


class _Target:
    """A model that weights are looked for.

    Args:
        model: The model.
        reset_head: Whether the classifier may be missing.
    """

    def __init__(self, model: nn.Module, *, reset_head: bool) -> None:
        self.model = model
        self.own = model.state_dict()
        self.head = head_keys(model)
        self.reset_head = reset_head
        # A head of another kind (attentive) is new as a whole, and the file's is left out.
        self.whole_head = {key for key in self.own if key.startswith("head.")} | self.head
        self.name: str = getattr(model, "recipe", {}).get("name") or type(model).__name__
        # A model without classes leaves the file's classifier out, which would stand where its own is not.
        self.no_classifier = ""
        if isinstance(model, VideoModel) and model.num_classes == 0 and not self.head:
            self.no_classifier = f"{_classifier_name(model)}."

    def fit(self, candidate: Candidate) -> _Fit:
        """Tells how a part of a file fits."""
        found = _Fit(candidate, "state dict", dict(candidate.state))
        if isinstance(self.model, VideoModel):
            try:
                found.format, found.state = self.model.convert_checkpoint(candidate.state)
            except CheckpointError as error:
                found.error = error
                return found
        counts = "num_batches_tracked"
        if self.reset_head and not self.whole_head <= found.state.keys() and self.whole_head != self.head:
            found.left_out = [key for key in found.state if key.startswith("head.")]
            found.state = {key: value for key, value in found.state.items() if not key.startswith("head.")}
        may_miss = self.whole_head if self.reset_head and not self.head & found.state.keys() else set()
        found.missing = [
            key for key in self.own if key not in found.state and not key.endswith(counts) and key not in may_miss
        ]
        foreign = [key for key in found.state if key not in self.own]
        found.left_out += [key for key in foreign if self.no_classifier and key.startswith(self.no_classifier)]
        if not found.missing:
            first = {key: key.partition(".")[0] for key in foreign}
            modules = {key.partition(".")[0] for key in self.own}
            found.left_out += [key for key, part in first.items() if part not in modules and AUXILIARY.search(key)]
        left_out = set(found.left_out)
        found.left_over = [key for key in foreign if key not in left_out and not key.endswith(counts)]
        found.state = {key: value for key, value in found.state.items() if key not in left_out}
        shared = [key for key in found.state if key in self.own]
        found.matched = len(shared)
        found.differing = sum(found.state[key].shape != self.own[key].shape for key in shared if key not in self.head)
        return found


def _choose(target: _Target, found: Sequence[Candidate], name: str) -> tuple[_Fit, list[str]]:
    """Returns the first part of a file that fits a model, and where others stand that fit, too.

    Raises:
        CheckpointError: If none fits: with the keys of the nearest.
    """
    fits: list[_Fit] = []
    nearest: _Fit | None = None
    refused: CheckpointError | None = None
    for candidate in found:
        if any(fit.differing == 0 for fit in fits) and len(candidate.state) < len(fits[0].candidate.state) // 2:
            continue
        fit = target.fit(candidate)
        if fit.fits:
            fits.append(fit)
        elif fit.error is not None:
            refused = refused or fit.error
        elif nearest is None or fit.matched > nearest.matched:
            nearest = fit
    if fits:
        best = next((fit for fit in fits if fit.differing == 0), fits[0])
        tensors = {id(value) for value in best.candidate.state.values()}
        others = [
            fit.candidate.name
            for fit in fits
            if fit.differing <= best.differing and not tensors & {id(value) for value in fit.candidate.state.values()}
        ]
        return best, list(dict.fromkeys(others))
    if refused is not None:
        raise CheckpointError(f"{name}: {refused}") from refused
    if nearest is None:
        raise CheckpointError(f"{name}: holds no tensors")
    raise CheckpointError(f"{name}: does not fit {target.name}{_misfit(nearest, target, found)}")


def _misfit(fit: _Fit, target: _Target, found: Sequence[Candidate]) -> str:
    """Says which keys are missing and left over; and that it is another architecture, if it is."""
    where = f" (nearest: {fit.candidate.name})" if fit.candidate.name else ""
    parts = [f"missing {_listed(fit.missing)}"] if fit.missing else []
    parts += [f"left over {_listed(fit.left_over)}"] if fit.left_over else []
    missing = set(fit.missing)
    keys = next((other.state for other in found if other.path == fit.candidate.path), fit.candidate.state)
    endings = sum(any(key[place + 1 :] in missing for place in _dots(key)) for key in keys)
    if len(target.own) - len(missing) <= len(target.own) // 2:  # most of the model is missing
        where = f" (it is a checkpoint of another architecture than {target.name})"
        if 2 * endings >= len(missing):
            where = " (its keys end like those of the model: what stands before them differs from key to key)"
    return f"{where}: {'; '.join(parts)}"


def _dots(key: str) -> list[int]:
    return [place for place, letter in enumerate(key) if letter in "./"]


def nearest_state(model: VideoModel, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the state in a file that fits a model, or that is nearest to it, before its keys are converted.

    The classifier may be missing or of another size. It is for callers that must know the state before they can build
    the model as the weights need it.

    Args:
        model: A model of the same name, with any options.
        content: From `read_checkpoint`.

    Raises:
        CheckpointError: If there are no tensors.
    """
    target = _Target(model, reset_head=True)
    fits = [target.fit(candidate) for candidate in _candidates_of(content, _name_of(content))]
    if not fits:
        raise CheckpointError(f"{_name_of(content)}: holds no tensors")
    fitting = [fit for fit in fits if fit.fits] or [fit for fit in fits if fit.error is not None]
    return (fitting[0] if fitting else max(fits, key=lambda fit: fit.matched)).candidate.state


def _candidates_of(content: Mapping[str, Any], name: str) -> list[Candidate]:
    try:
        return find_candidates(content)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _name_of(content: Mapping[str, Any]) -> str:
    return content.source if isinstance(content, Content) else "mapping"


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    reset_head: bool = False,
    name: str | None = None,
) -> LoadReport:
    """Loads weights in stvid's own or a published format into a model.

    What else a file holds (a criterion, metrics, an averaged copy) is left out. A position table that has to be resized
    is said on standard error.

    Args:
        model: A model of `create_model`. Its protocol and task are replaced by those stored with the weights, if there
            are any and the head is kept. If it has no classes, the classifier in the file is left out.
        source: A file, a folder or a name, as `stvid.sources` lists them, or a mapping from keys to tensors or arrays,
            with or without wrappers.
        reset_head: Leave the classifier as initialised if its size differs from the checkpoint's, or if the
            checkpoint has none.
        name: The name of a mapping in messages.

    Returns:
        What was recognised and done.

    Raises:
        CheckpointError: If the file cannot be read, any key is missing or left over, a shape differs, or the head has
            another number of classes and `reset_head` is off. The model is unchanged then.
    """
    weights = None
    if isinstance(source, Mapping):
        name, content = name or _name_of(source), source
    else:
        located = resolve_source(source)
        name, content, weights = located.name, read_checkpoint(located.path), located.weights
    if isinstance(model, VideoModel) and model.inference_only:
        raise CheckpointError(
            f"{name}: cannot be loaded into this model: {model.inference_only}; load it into a plain one"
        )
    task = _stored_task(content, name)
    found = _candidates_of(content, name)
    if not found:
        raise CheckpointError(f"{name}: holds no tensors{_said_of_optimizer(content)}")
    target = _Target(model, reset_head=reset_head)
    fit, others = _choose(target, found, name)
    state, own = fit.state, target.own
    adapted = _adapt_stem(model, state, own)
    resized = _resize_tables(model, state, own, target.head, _stored_recipe(content))
    reset = _reset_keys(fit, target, name)
    kept = {key: value for key, value in state.items() if key in own and key not in reset}
    taken = _as_the_model_has_them(kept, own, name)
    # A model without memory of its own (on the meta device) takes the tensors themselves, so that there is one copy.
    model.load_state_dict(taken, strict=False, assign=any(value.is_meta for value in own.values()))
    protocol = None
    if isinstance(model, VideoModel):
        model.adopt_format(fit.format, _stored_recipe(content).get("hyperparameters", {}))
        protocol = _stored_protocol(content, model)
        if not reset:
            model.default_protocol = model.default_protocol if protocol is None else protocol
            model.task = model.task if task is None else task
            model.measured, model.weights = _stored_numbers(content)
    if weights is not None and isinstance(model, VideoModel):
        adopt_weights(model, weights, trained=not reset)
    if resized:
        print(f"stvid: {name}: {_said_of_tables(resized)}", file=sys.stderr)
    report = LoadReport(name, fit.format, len(taken), reset=reset, resized=resized, adapted=adapted, protocol=protocol)
    report.found, report.others = fit.candidate.name, others
    report.left_out = _left_out(fit, found, content, target)
    return report


def _as_the_model_has_them(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Returns tensors in the types that the model's have.

    Numbers that are not finite are said on standard error: whatever a model computes with them is not finite either.

    Raises:
        CheckpointError: If tensors have no numbers, or such as lose by it: complex ones, whole ones for fractions.
    """
    taken = {}
    broken = []
    for key, value in state.items():
        floating = own[key].is_floating_point()
        if value.is_meta:
            raise CheckpointError(f"{name}: its tensors have shapes only, no numbers (they are on torch's meta device)")
        if floating and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name}: {key} is {kind}, where {own[key].dtype} is needed; save the weights before they are quantised"
            )
        taken[key] = value.to(own[key].dtype)
        # The sum is quick, and may overflow; only then each number is looked at.
        if floating and not torch.isfinite(taken[key].sum()) and not torch.isfinite(taken[key]).all():
            broken.append(key)
    if broken:
        count = f"{len(broken)} of its tensors hold" if len(broken) > 1 else "one of its tensors holds"
        print(f"stvid: {name}: {count} numbers that are not finite: {_listed(broken)}", file=sys.stderr)
    return taken


def _said_of_optimizer(content: Mapping[str, Any]) -> str:
    """Says where the tensors of a file without a network are, if they are those of an optimizer."""
    states = [content, *(value for value in content.values() if isinstance(value, Mapping))]
    if any({"state", "param_groups"} <= {*state} for state in states):
        return " of a network, only the state of an optimizer; name the file of the weights"
    return ""


def _reset_keys(fit: _Fit, target: _Target, name: str) -> list[str]:
    """Returns the keys of the classifier if it has to stay as initialised.

    Raises:
        CheckpointError: If its size differs and it must not, or another tensor has another shape.
    """
    state, own = fit.state, target.own
    differing = [key for key in state if key in own and state[key].shape != own[key].shape]
    wrong = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in differing]
    wrong = [text for key, text in zip(differing, wrong, strict=True) if key not in target.head]
    if wrong:
        raise CheckpointError(f"{name}: shapes differ from {target.name}: {_listed(wrong)}")
    if target.reset_head and not target.head & state.keys():  # weights of a backbone alone, or of another kind of head
        return sorted(target.whole_head)
    reset = [key for key in differing if key in target.head]
    if reset and not target.reset_head:
        classes = state[reset[0]].shape[0]
        raise CheckpointError(
            f"{name}: its head has {classes} classes, the model {own[reset[0]].shape[0]}; build the model with "
            f"num_classes={classes}, or load with reset_head=True for a new head"
        )
    return sorted(target.head) if reset else []  # weight and bias go together, even where one of them happens to fit


def _left_out(fit: _Fit, found: Sequence[Candidate], content: Mapping[str, Any], target: _Target) -> list[str]:
    """Lists the parts of a file that were not taken."""

    def counted(name: str, count: int) -> str:
        return f"{name} ({count} tensor{'' if count == 1 else 's'})"

    path = fit.candidate.path
    beside = {
        "/".join(other.path): len(other.state)
        for other in found
        if not other.prefix and other.path[: len(path)] != path and path[: len(other.path)] != other.path
    }
    parts = [counted(name, count) for name, count in (fit.candidate.beside | beside).items()]
    classifier = [key for key in fit.left_out if target.no_classifier and key.startswith(target.no_classifier)]
    if classifier:
        parts.append(f"its classifier ({', '.join(sorted(classifier))})")
    decoder = [key for key in fit.candidate.state if _OF_A_DECODER.match(key)]
    if fit.format.endswith(_PRETRAININGS) and not isinstance(target.model, MaskedAutoencoder):
        parts.append(counted("the decoder of the pretraining", len(decoder)))
    groups = Counter(key.partition(".")[0] for key in fit.left_out if key not in classifier)
    parts += [counted(f"{name}.", count) for name, count in groups.items()]
    foreign = content.foreign if isinstance(content, Content) else {}
    modules = ("torch.nn.", "__torch__")  # of a network that was saved whole, whose tensors are what was taken
    return parts + [f"objects of {name}" for name in foreign if not name.startswith(modules)]


def _said_of_tables(resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """Says in one line which tables were resized, and which option of `create_model` decides their size."""
    options = dict.fromkeys(_option_of(key) for key in resized)
    tables = [f"{key} from {old} to {new}" for key, (old, new) in resized.items()]
    return f"resized {_listed(tables)}; {' and '.join(options)} of the model decides"


def _option_of(key: str) -> str:
    if key.endswith("relative_position_bias_table"):
        return "window_size"
    return "num_frames" if re.search("tim|temp|frame", key) else "num_frames or img_size"


COLOURS = 3


def _adapt_stem(model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Adapts in `state` the first convolutions of weights for three colours to the channels of the model's clips.

    As timm does it (timm/models/_manipulate.py, adapt_input_conv): one channel gets the sum over the colours; for other
    numbers the colours are repeated in turn and scaled, so that the sum over all channels stays about the same.

    Returns:
        The number of channels before and after, for each key.
    """
    adapted: dict[str, tuple[int, int]] = {}
    channels = model.in_chans if isinstance(model, VideoModel) else COLOURS
    if channels == COLOURS:
        return adapted
    for key, value in list(state.items()):
        wanted = own[key].shape if key in own else value.shape
        if value.dim() < 4 or value.shape[1] != COLOURS or tuple(wanted) != (len(value), channels, *value.shape[2:]):
            continue
        if channels == 1:
            state[key] = value.sum(dim=1, keepdim=True)
        else:
            turns = [number % COLOURS for number in range(channels)]
            state[key] = value[:, turns] * (COLOURS / channels)
        adapted[key] = (COLOURS, channels)
    return adapted


def _resize_tables(
    model: nn.Module,
    state: dict[str, Tensor],
    own: Mapping[str, Tensor],
    head: set[str],
    built: Mapping[str, Any],
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Resizes in `state` the position tables whose shape differs from the model's; returns the shapes of each."""
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    if not isinstance(model, VideoModel):
        return resized
    for key, value in list(state.items()):
        if key not in own or key in head or value.shape == own[key].shape:
            continue
        table = model.resize_table(key, value, built)
        if table is not None:
            resized[key] = (tuple(value.shape), tuple(table.shape))
            state[key] = table
    return resized


def _classifier_name(model: VideoModel) -> str:
    classifier = model.get_classifier()
    return next(name for name, module in model.named_modules() if module is classifier)


def head_keys(model: nn.Module) -> set[str]:
    """Returns the names of the classifier's tensors; empty for a module that is no model of stvid."""
    if not isinstance(model, VideoModel):
        return set()
    return {f"{_classifier_name(model)}.{key}" for key in model.get_classifier().state_dict()}


def describe(model: VideoModel, protocol: Protocol | None = None) -> dict[str, Any]:
    """Returns the description that stvid stores with weights: how to build the model, its protocol and its task.

    The name of the published file that they are from is part of it, and what was measured, if there are these.

    Args:
        model: The model.
        protocol: The protocol; None takes the model's own.
    """
    return {
        "version": __version__,
        "model": dict(model.recipe),
        "protocol": (model.default_protocol if protocol is None else protocol).to_dict(),
        "task": model.task,
        **({} if model.weights is None else {"weights": model.weights.name}),
        **({"measured": dict(model.measured)} if model.measured else {}),
    }


def save_model(model: VideoModel, path: str | os.PathLike[str], *, protocol: Protocol | None = None) -> None:
    """Writes weights with their description: ``.safetensors``, or ``.pt`` for torch's own format.

    Args:
        model: The model.
        path: Where to write it.
        protocol: The protocol that its training used, with the class names; None takes `model.default_protocol`.

    Raises:
        CheckpointError: If the file cannot be written, the suffix is another, the model is for inference only, or the
            protocol names another number of classes than the model has.
    """
    target = Path(path)
    named = () if protocol is None else protocol.class_names
    if named and len(named) != model.num_classes:
        raise CheckpointError(
            f"{target}: not written: the model has {model.num_classes} logits, but the protocol names {len(named)}"
        )
    if model.inference_only:
        raise CheckpointError(f"{target}: not written: {model.inference_only}; save the model it was made from")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".safetensors":
            from safetensors.torch import save_file

            metadata = {"format": "pt", "stvid": json.dumps(describe(model, protocol)), **CHECKED}

            def write(file: Path) -> None:
                save_file(state, str(file), metadata)
                seal(file)

            write_atomically(target, write)
        elif target.suffix in (".pt", ".pth", ".ckpt"):
            write_atomically(
                target, lambda file: torch.save({"state_dict": state, "stvid": describe(model, protocol)}, file)
            )
        else:
            raise CheckpointError(f"{target}: the suffix must be .safetensors, .pt, .pth or .ckpt")
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror or error})") from error
