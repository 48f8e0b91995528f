"""The parts that several commands need: parsers, options of a model, loading a model with its protocol."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stvid.console import command_line
from stvid.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.config import TrainConfig
    from stvid.data.manifest import Manifest
    from stvid.models.base import VideoModel

__all__ = [
    "CSV_HELP",
    "OLD_NAMES",
    "Precision",
    "add_backend_option",
    "add_checkpoint_options",
    "add_device_option",
    "add_model_options",
    "add_precision_option",
    "find_in_shards",
    "load",
    "optimized",
    "parse",
    "parser_for",
    "pick_device",
    "say_unnamed",
    "split_config_options",
    "take_option",
    "use_new_names",
    "with_test_videos",
]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

# Options that were renamed, by command, the old name to the new one. The old names are accepted for one release.
OLD_NAMES: dict[str, dict[str, str]] = {
    "train": {"--output": "--out"},
    "test": {"--output": "--out", "--temporal": "--frame_order"},
    "compare": {"--classes": "--topk"},
    "predict": {"--stride": "--window_stride"},
    "inspect": {"--split": "--clips"},
    "features": {"--stride": "--window_stride", "--accelerator": "--device"},
    "demo": {"--stride": "--window_stride"},
}


def parser_for(command: str, description: str) -> ArgumentParser:
    """Returns the parser of ``stvid COMMAND``."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"stvid {command}", description=description, exit_on_error=False)


def use_new_names(command: str, argv: Sequence[str]) -> list[str]:
    """Puts the new names of a command's options in the place of the old ones, and says so in a line for each."""
    renamed = OLD_NAMES.get(command, {})
    found = []
    for item in argv:
        name, equals, value = item.partition("=")
        if name in renamed:
            if os.environ.get("LOCAL_RANK", "0") == "0":  # the first process says it for all
                print(f"{name} is now called {renamed[name]}", file=sys.stderr)
            item = f"{renamed[name]}{equals}{value}"
        found.append(item)
    return found


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Any:
    """Parses the options of a command.

    Raises:
        ConfigError: If one is unknown, missing or of another type; the message names it, and the nearest that exists.
    """
    from jsonargparse import ArgumentError

    argv = use_new_names(parser.prog.removeprefix("stvid "), argv)
    known = {option for action in parser._actions for option in action.option_strings}
    for option in argv:
        name = option.partition("=")[0]
        if name.startswith("--") and len(name) > 2 and name not in known:
            raise ConfigError(f"{name}: unknown option{nearest(name, known)}")
    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        if missing := re.search(r"the following arguments are required: (.+)$", str(error)):
            names = [f"--{name}" if f"--{name}" in known else name.upper() for name in missing[1].split(", ")]
            raise ConfigError(f"{', '.join(names)}: missing; {parser.prog} --help explains") from error
        from stvid.config import one_line

        raise ConfigError(one_line(error, prefix="--")) from error


def take_option(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Takes ``--name value`` or ``--name=value`` out of the arguments; the last one counts."""
    value: str | None = None
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        if item == name:
            value = next(items, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{name}: a value is missing")
        elif item.startswith(f"{name}="):
            value = item.partition("=")[2]
        else:
            rest.append(item)
    return value, rest


def split_config_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates dotted options (``--protocol.crop 224``), which belong to the config, from the command's own."""
    own: list[str] = []
    dotted: list[str] = []
    items = iter(argv)
    for item in items:
        if item.startswith("--") and "." in item.partition("=")[0]:
            dotted.append(item)
            if "=" not in item and (value := next(items, None)) is not None:
                dotted.append(value)
        else:
            own.append(item)
    return own, dotted


def add_checkpoint_options(parser: ArgumentParser, *, several: bool = False) -> None:
    """Adds the options that say which model is meant, and by which protocol; `load` reads them.

    Args:
        parser: The parser of a command.
        several: Whether ``--checkpoint`` takes more than one source; the command then calls `load` for each.
    """
    parser.add_argument(
        "--checkpoint",
        type=str,
        **({"nargs": "+", "action": "extend"} if several else {}),
        required=True,
        help=("One or more sources of weights, the first of which is shown first: " if several else "Weights: ")
        + "published ones by name (uniformer_s.k400_16x4; see stvid models --pretrained), a file, the "
        "folder of a run (its best checkpoint, else its newest) or of transformers, hf-hub:org/repo, an https address.",
    )
    parser.add_argument(
        "--config",
        type=str | None,
        help="Config with model, protocol and data, for files of weights that do not carry them.",
    )
    parser.add_argument("--model", type=str | None, help="Name of the model, for weights that do not carry it.")
    parser.add_argument(
        "--class_names",
        type=str | None,
        help="Names of the logits for weights that do not carry them: a file (a name a line; CSV, JSON or YAML with "
        "names and their numbers), or the name of a packaged list such as kinetics400 (stvid doctor lists them).",
    )
    parser.add_argument("--views", type=str | None, help="Temporal clips x spatial crops; default the protocol's.")


CSV_HELP = (
    "Leave cells of CSV files as they are that begin like a formula of a spreadsheet (=, +, -, @); without this they "
    "get an apostrophe in front, since names come from others."
)


def add_text_option(parser: ArgumentParser) -> None:
    """Adds the option that makes texts the classes; `load` reads it."""
    parser.add_argument(
        "--classes",
        type=str | None,
        help="Classes as texts, for models that take texts (X-CLIP): 'opening a door,closing a door', or a file as "
        "--class_names takes it.",
    )


def _texts(options: Any) -> tuple[str, ...] | None:
    """Returns the texts of ``--classes``; None without."""
    from stvid.data.manifest import read_class_names

    given = getattr(options, "classes", None)
    if given is None:
        return None
    if options.class_names is not None:
        raise ConfigError("--classes and --class_names both name the classes: give one of them")
    if os.path.isfile(given):
        return tuple(read_class_names(given))
    texts = tuple(text.strip() for text in given.split(","))
    if not all(texts):
        raise ConfigError(f"--classes {given!r}: a text is empty; write them as 'opening a door,closing a door'")
    return texts


def add_device_option(parser: ArgumentParser) -> None:
    """Adds the option that says where the model runs."""
    parser.add_argument("--device", type=str | None, help="cpu, cuda, cuda:1, ...; default a GPU if there is one.")


def add_precision_option(parser: ArgumentParser) -> None:
    """Adds the option that says in which arithmetic the model runs."""
    parser.add_argument("--precision", type=Precision, default="32-true", help="Arithmetic of the model.")


def add_backend_option(parser: ArgumentParser, *, default: str = "the one that the model was trained with") -> None:
    """Adds the option that names the decoder."""
    parser.add_argument(
        "--backend", type=Literal["av", "decord", "torchcodec", "frames"] | None, help=f"Decoder; default {default}."
    )


def add_model_options(parser: ArgumentParser) -> None:
    """Adds the options of the commands that run a trained model."""
    add_checkpoint_options(parser)
    add_device_option(parser)
    add_precision_option(parser)
    parser.add_argument(
        "--optimize",
        action="store_true",
        help="Run a copy made by stvid.optimize, which picks the precision, folds batch norms and picks the memory "
        "format for the device; the notes on it are printed and, by stvid test, recorded.",
    )
    add_backend_option(parser)


# The keys of the config that `test` and `predict` use; others say how a model was trained.
USED_KEYS = ("data.test", "data.val", "data.root", "data.format", "data.class_names", "data.backend")


def load(options: Any, dotted: Sequence[str]) -> tuple[VideoModel, TrainConfig]:
    """Returns the model with its protocol, and the config that names the data.

    The protocol is the checkpoint's if it carries one, else that of ``--config``, else the published one. Overrides on
    the command line are printed.
    """
    from stvid.checkpoints import read_checkpoint
    from stvid.config import config_keys, load_config, parse_config
    from stvid.data.manifest import read_class_names
    from stvid.sources import resolve_source
    from stvid.zoo import load_model

    keys = [option[2:].partition("=")[0] for option in dotted if option.startswith("--")]
    usable = [key for key in config_keys() if key.startswith("protocol.") or key in USED_KEYS]
    for key in keys:
        if key not in usable:
            why = "has no meaning here: it says how a model is trained" if key in config_keys() else "unknown option"
            raise ConfigError(f"--{key}: {why}{'' if key in config_keys() else nearest(key, usable)}")
    checkpoint = resolve_source(options.checkpoint)
    stored = read_checkpoint(checkpoint.path).get("stvid")
    described = isinstance(stored, Mapping) or checkpoint.weights is not None
    text = stored.get("config") if isinstance(stored, Mapping) else None
    if options.config is not None:
        config = load_config(options.config, dotted)
    elif text is not None:
        config = parse_config(text, dotted, source=checkpoint.name)
    else:
        config = load_config(None, dotted)
    name = options.model or (config.model.name if options.config else None)
    model = load_model(options.checkpoint, name=name, classes=_texts(options))
    if model.takes_texts and options.class_names is not None:
        model.set_classes(read_class_names(options.class_names))
    protocol = model.default_protocol
    if not described and options.config is not None:
        texts = {"class_names": protocol.class_names} if model.takes_texts else {}
        protocol, model.task = config.protocol.replace(**texts), config.classification
    changes: dict[str, Any] = {
        key.partition(".")[2]: getattr(config.protocol, key.partition(".")[2])
        for key in keys
        if key.startswith("protocol.")
    }
    names = options.class_names or (config.data.class_names if not protocol.class_names else None)
    if names is not None:
        changes["class_names"] = read_class_names(names)
    if options.views is not None:
        changes["views"] = options.views
    if protocol.class_names and changes.get("class_names", protocol.class_names) != protocol.class_names:
        raise ConfigError(
            f"class names: {checkpoint.name} names its {len(protocol.class_names)} classes itself, and not as they "
            "were given; leave the names out"
        )
    for key, value in changes.items():
        if key != "class_names" and getattr(protocol, key) != value:
            print(f"protocol.{key}: {value} instead of {getattr(protocol, key)}", file=sys.stderr)
    model.default_protocol = protocol.replace(**changes)
    named = model.default_protocol.class_names
    if named and len(named) != model.num_classes:
        raise ConfigError(f"{checkpoint.name}: has {model.num_classes} logits, but {len(named)} class names were given")
    return model, config


def check_classifier(model: VideoModel, source: str) -> None:
    """Refuses weights that give features alone, such as those of a pretraining.

    Args:
        model: From `load`.
        source: The weights, as the user named them.

    Raises:
        ConfigError: Says how to get a classifier.
    """
    if not model.num_classes:
        init = command_line("stvid", "train", "--init", source, "--data.train", "VIDEOS")
        raise ConfigError(f"{source}: has no classifier, only features; train one with: {init}")


def say_unnamed(model: VideoModel) -> None:
    """Says that the order of the classes is not known, if the model has no names for its logits."""
    if model.default_protocol.class_names:
        return
    from stvid.classes import class_list, class_lists

    fitting = [name for name in class_lists() if len(class_list(name)) == model.num_classes]
    hint = f" such as {', '.join(fitting)}, if its order is theirs" if fitting else "; stvid doctor lists them"
    print(
        "the order of the classes is not known, so they are called by the number of their logit; name them with "
        f"--class_names (a file, or the name of a packaged list{hint})",
        file=sys.stderr,
    )


def with_test_videos(config: TrainConfig, source: str, dotted: Sequence[str]) -> TrainConfig:
    """Returns the config with the videos of ``--data`` as those of the test.

    Args:
        config: The config of a run, whose list may have had another format and root.
        source: The list of videos, or their folder.
        dotted: Options of the config that were given on the command line; they are kept.
    """
    given = {option.partition("=")[0] for option in dotted}
    changes: dict[str, Any] = {"test": source}
    changes |= {key: value for key, value in (("format", "auto"), ("root", None)) if f"--data.{key}" not in given}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def optimized(model: VideoModel, options: Any) -> VideoModel:
    """Returns the model, or with ``--optimize`` a copy for inference on the chosen device; prints what was done.

    Raises:
        ConfigError: If a precision was given, too, or there is no such device.
    """
    if not options.optimize:
        return model
    if options.precision != "32-true":
        raise ConfigError(f"--optimize picks the precision itself; leave out --precision {options.precision}")
    from stvid.inference import optimize

    copy = optimize(model, device=pick_device(options.device))
    print(f"optimized: {'; '.join(copy.notes)}", file=sys.stderr)
    return copy


def find_in_shards(video: str) -> tuple[Manifest, int] | None:
    """Finds a video that is named as lists of tar shards name it, ``FOLDER/SHARD.tar/MEMBER``.

    Returns:
        The list of the shards, and the video's row; None if the name is not of this form.

    Raises:
        ManifestError: If the shards cannot be read.
        MissingFileError: If they do not hold the video.
    """
    shard = os.path.dirname(video)
    if not shard.endswith(".tar") or os.path.isdir(shard):
        return None
    from stvid.data.shards import read_shards
    from stvid.errors import MissingFileError

    manifest = read_shards(os.path.dirname(shard) or ".")
    ending = os.path.join(os.path.basename(shard), os.path.basename(video))
    for index in range(len(manifest)):
        if manifest[index].path.endswith(f"/{ending}"):
            return manifest, index
    raise MissingFileError(video, f"there is no such video in the shards of {manifest.source}")


def pick_device(name: str | None) -> str:
    """Returns the device as it was named, else a GPU if there is one.

    Raises:
        ConfigError: If there is no such device here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"--device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name
