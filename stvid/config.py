"""The typed configuration of a training run: how it is found, read and written.

A config file is YAML with the sections of `stvid.config_sections`; a key that it leaves out has its default. The file
is looked up in the working directory, then among the packaged configs. Every key can be overridden on the command line
with a dotted option (``--optim.lr 0.001``). An unknown key or a wrong type is an error of one line, which names the key
and the nearest valid one.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from stvid.config_sections import (
    AugmentConfig,
    AutoencoderConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TrainerConfig,
)
from stvid.errors import ConfigError, nearest
from stvid.files import expand_home
from stvid.protocol import Protocol

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = [
    "JOB_OPTIONS",
    "AugmentConfig",
    "AutoencoderConfig",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "TrainerConfig",
    "config_keys",
    "dump_config",
    "find_config",
    "list_configs",
    "load_config",
    "one_line",
    "parse_config",
    "train_parser",
]


# Options of `stvid train` that hand it to a cluster, with their types and meanings. They are no part of a config.
JOB_OPTIONS: tuple[tuple[str, type, str], ...] = (
    ("submit", str, "Train as a job: slurm, or local for a process of this machine. All options below need it."),
    ("nodes", int, "Machines of the job (default 1)."),
    ("gpus_per_node", int, "GPUs of each machine, with a process for each; default trainer.devices processes on CPUs."),
    ("cpus_per_task", int, "Cores of each process of the job."),
    ("mem_gb", int, "Memory of each machine of the job in GB."),
    ("time", str, "Time limit of the job as SLURM writes it (default 60 minutes); it is started again after that."),
    ("partition", str, "SLURM's partition."),
    ("account", str, "SLURM's account."),
    ("qos", str, "SLURM's quality of service."),
    ("constraint", str, "Features of the machines, as SLURM names them."),
)

# The keys that name a file or folder; "~/" is the home folder there, as a shell writes it.
_PATHS = (*("init", "resume", "output", "data.train", "data.val", "data.test", "data.root", "data.class_names"),)


def _config_folder() -> Path:
    """Returns the folder of the packaged configs: beside this file in a wheel, beside the package in a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def list_configs() -> list[str]:
    """Returns the file names of the packaged configs, sorted."""
    return sorted(path.name for path in _config_folder().glob("*.yaml"))


def _configs_of(command: str) -> list[str]:
    """Returns the packaged configs of a command; those of pretrainings say so at the end of their names."""
    return [name for name in list_configs() if name.endswith("_pretrain.yaml") == (command == "pretrain")]


def find_config(name: str | os.PathLike[str]) -> Path:
    """Finds the file of a config.

    Args:
        name: A path, the name of a file of the working directory, or the name of a packaged config, tried in this
            order. ``.yaml`` may be left off.

    Raises:
        ConfigError: If there is no such file; the message lists the nearest packaged names.
    """
    asked = Path(name)
    for candidate in (asked, asked.with_name(f"{asked.name}.yaml")) if asked.name else ():
        if candidate.is_file():
            return candidate
        if len(asked.parts) == 1 and (_config_folder() / candidate).is_file():
            return _config_folder() / candidate
    if str(name) and asked.is_dir():
        raise ConfigError(f"config {str(name)!r}: is a folder, not a file; name a YAML file")
    stems = {Path(packaged).stem for packaged in list_configs()}
    hint = nearest(asked.stem, stems) or "; their names: stvid train --help"
    raise ConfigError(f"config {str(name) or repr('')}: not found here nor among the packaged configs{hint}")


_hints_of = functools.cache(typing.get_type_hints)


@functools.cache
def _section_types() -> Mapping[str, type]:
    hints = _hints_of(TrainConfig)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}


def config_keys() -> list[str]:
    """Returns every dotted key of a config, such as ``optim.lr``."""
    return list(_all_keys())


@functools.cache
def _all_keys() -> tuple[str, ...]:
    sections = _section_types()
    keys: list[str] = []
    for item in dataclasses.fields(TrainConfig):
        if item.name in sections:
            keys += [f"{item.name}.{inner.name}" for inner in dataclasses.fields(sections[item.name])]
        else:
            keys.append(item.name)
    return tuple(keys)


def _check_keys(values: Mapping[str, Any], source: str) -> None:
    """Raises ConfigError at the first key that does not exist."""
    known, sections = set(_all_keys()), _section_types()
    for key, value in values.items():
        if key in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {key}: expected keys and values, got {value!r}")
            for inner in value:
                if f"{key}.{inner}" not in known:
                    raise ConfigError(f"{source}: {key}.{inner}: unknown key{_hint(f'{key}.{inner}')}")
        elif key not in known:
            raise ConfigError(f"{source}: {key}: unknown key{_hint(str(key))}")


# What other programs call a key of the config.
_OTHER_WORDS = {
    **dict.fromkeys(("learning_rate", "base_lr", "lr_rate"), "optim.lr"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("pretrained", "weights", "load_from", "finetune"), "init"),
    **dict.fromkeys(("gpus", "num_gpus", "n_gpus"), "trainer.devices"),
    **dict.fromkeys(("num_workers", "n_workers"), "data.workers"),
    **dict.fromkeys(("num_frames", "clip_len"), "protocol.frames"),
    **dict.fromkeys(("img_size", "input_size", "image_size"), "protocol.crop"),
    **dict.fromkeys(("out", "output_dir", "work_dir"), "output"),
}


def _hint(key: str) -> str:
    """Names the nearest keys: what is meant by another program's word, a section, or the key of a like name."""
    known = config_keys()
    if (meant := _OTHER_WORDS.get(key.rpartition(".")[2])) in known:
        return f"; nearest: {meant}"
    top = [*_section_types(), *(name for name in known if "." not in name)]
    if "." not in key and (found := nearest(key, top)):
        return found
    if found := nearest(key, known):
        return found
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    return f"; nearest: {', '.join(same)}" if same else ""


def _read_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_ConfigLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # depth, and dates that do not exist
        mark = getattr(error, "problem_mark", None)
        where = source if mark is None else f"{source}, line {mark.line + 1}"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{where}: not valid YAML: {problem}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected keys and values, got {type(values).__name__}")
    return values


_ABOUT = {
    "train": (
        "stvid train --config NAME.yaml [--any.key value]\n"
        "       stvid train --init WEIGHTS --data.train VIDEOS [--any.key value]",
        "Train a model from a config, or fine-tune weights: without a config, architecture and protocol are those of "
        "the weights, and the schedule suits the number of videos. ",
    ),
    "pretrain": (
        "stvid pretrain --config NAME_pretrain.yaml [--any.key value]",
        "Pretrain a video transformer on videos without labels: most of a clip is hidden, and a decoder predicts its "
        "pixels. The encoder then starts a training: stvid train --init RUN. ",
    ),
}
_OF_EVERY_KEY = (
    "Every key of the config is an option here. A packaged config states only what its paper sets; every other key has "
    "the default that is listed below. The folder of a run holds the complete config as config.yaml, which starts the "
    "same run again."
)


@functools.cache
def train_parser(command: Literal["train", "pretrain"] = "train") -> ArgumentParser:
    """Returns the parser of `stvid train` or `stvid pretrain`, with ``--config`` and an option for each key.

    It is made only once.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser

    usage, about = _ABOUT[command]
    parser = ArgumentParser(
        prog=f"stvid {command}",
        usage=usage,
        exit_on_error=False,
        description=about + _OF_EVERY_KEY,
        epilog="Packaged configs: " + ", ".join(_configs_of(command)),
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="YAML file; a bare name is looked up here, then among the packaged configs.",
    )
    # The command itself takes these, which are no part of a config.
    if command == "train":
        parser.add_argument(
            "--find_lr",
            action="store_true",
            help="Do not train: raise the learning rate step by step, print the one to take, and write the curve.",
        )
    for name, kind, text in JOB_OPTIONS:
        parser.add_argument(f"--{name}", type=kind | None, help=text)
    parser.add_class_arguments(TrainConfig)
    for action in parser._actions:
        if action.dest in _section_types():  # options of jsonargparse that `parse_config` does not take
            action.help = argparse.SUPPRESS
        elif action.dest == "print_config":
            action.help = "Print the complete config, with all its keys and the options applied, and train nothing."
            action.nargs = 0  # the command takes it itself, and without a value
        elif action.dest == "output":
            action.option_strings = ["--out"]  # as the commands name it; `parse_config` takes it
    return parser


def one_line(error: Exception, *, prefix: str = "") -> str:
    """Turns a message of jsonargparse into one line, such as ``optim.lr: expected float, got 'abc'``.

    Args:
        error: The exception that was raised while parsing.
        prefix: Text that is put before the key, such as ``--``.
    """
    text = " ".join(str(error).split())
    match = re.search(r'Parser key "([^"]+)": (.*)$', text)
    if match is None:
        return text.removeprefix("argument ")
    key, problem = prefix + match[1], match[2]
    if found := re.search(r"Expected an? (.+?)\. Got value:(.*)$", problem):
        names = _type_name(found[1])
    elif found := re.search(r"Union subtypes Subtypes: \[(.+?)\] Errors: .* Given value:(.*)$", problem):
        names = re.sub(r",? ?NoneType", " or null", _type_name(found[1]))
    else:
        return f"{key}: {problem}"
    got = found[2].strip()
    return f"{key}: expected {names}, got {got!r}{_hint_of_quotes(got) if names.startswith('str') else ''}"


def _hint_of_quotes(got: str) -> str:
    """Returns what to do where YAML took a word for a truth value, a number or a date."""
    if got in ("True", "False"):
        return "; yes, no, on and off are truth values in YAML: put quotes around the word"
    return "; put quotes around it" if re.fullmatch(r"[-+.:\d ]+", got) else ""


def _type_name(text: str) -> str:
    """Writes ``<class 'float'>`` as ``float``, ``Literal['a', 'b']`` as ``one of 'a', 'b'`` (a single value alone)."""
    text = re.sub(r"<class '([^']+)'>|typing\.", r"\1", text)
    text = {"tuple": "a list such as [1, 2]", "list": "a list such as [a, b]", "dict": "keys such as {a: 1}"}.get(
        text, text
    )
    text = re.sub(r"Literal\[([^\[\],]*)\]", r"\1", text)
    return re.sub(r"Literal\[([^\[\]]*)\]", r"one of \1", text)


def load_config(config: str | os.PathLike[str] | None = None, options: Sequence[str] = ()) -> TrainConfig:
    """Reads a config file and applies options in the form of the command line.

    Args:
        config: A path or a name, as `find_config` takes it; None starts from the defaults.
        options: Keys and values, for example ``["--optim.lr", "0.001", "--data.train=train.csv"]``.

    Raises:
        ConfigError: One line that names the key, what is wrong, and the nearest valid key.
    """
    if config is None:
        return parse_config("", options, source="command line")
    path = find_config(config)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"config {path}, line {line}: is not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read ({error.strerror})") from error
    return parse_config(text, options, source=str(path))


def parse_config(text: str, options: Sequence[str] = (), *, source: str) -> TrainConfig:
    """Reads a config from text and applies options, as `load_config` does with a file.

    Args:
        text: The config as YAML.
        options: Keys and values in the form of the command line.
        source: The place that the text is from, which messages name.

    Raises:
        ConfigError: One line that names the key, what is wrong, and the nearest valid key.
    """
    from jsonargparse import ArgumentError

    values = _read_yaml(text, source)
    _check_keys(values, source)
    # Every command names its output --out; the key of the file, which run folders hold, is output.
    options = [re.sub(r"^--out(?==|$)", "--output", option) for option in options]
    for option in options:
        if option.startswith("--") and (key := option[2:].partition("=")[0]) not in _all_keys():
            if section := _section_types().get(key):
                example = f"--{key}.{dataclasses.fields(section)[0].name}"
                raise ConfigError(f"--{key}: not an option but a section; give its keys, for example {example}")
            raise ConfigError(f"--{key}: unknown option{_hint(key)}")
    parser = train_parser()
    try:
        # Only what is given is parsed: the dataclasses know their defaults, which need no check.
        given = parser.parse_object(values, defaults=False)
        given = parser.parse_args(list(options), namespace=given, defaults=False) if options else given
    except (ArgumentError, ConfigError) as error:
        raise ConfigError(one_line(error)) from error
    config: TrainConfig = _build(TrainConfig, given.as_dict())
    for dotted in _PATHS:
        part, _, name = dotted.rpartition(".")
        owner = getattr(config, part) if part else config
        if isinstance(path := getattr(owner, name), str):
            setattr(owner, name, expand_home(path))
    return config


def _build(kind: type, values: Mapping[str, Any], start: str = "") -> Any:
    hints = _hints_of(kind)
    built = {}
    for item in dataclasses.fields(kind):
        if item.name not in values:
            continue
        value = values[item.name]
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = _build(hint, value, f"{start}{item.name}.")
        elif value is None and typing.get_origin(hint) is list:  # jsonargparse lets it through
            raise ConfigError(f"{start}{item.name}: null is no list; leave the key out, or give []")
        built[item.name] = value
    return kind(**built)


def dump_config(config: TrainConfig) -> str:
    """Returns the complete config as YAML, every key of it; `load_config` reads it back to the same config."""

    def plain(value: Any) -> Any:
        if isinstance(value, Protocol):
            return value.to_dict()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return yaml.dump(plain(config), Dumper=_ConfigDumper, sort_keys=False, allow_unicode=True, width=110)


class _ConfigLoader(yaml.SafeLoader):
    """A YAML loader that refuses what YAML silently takes in a way that nobody means.

    A key that stands twice, of which YAML takes the last; and numbers such as 010, which is 8 there, and 1:30, 90.
    """

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(node.value)
        if ":" in text or re.match(r"[-+]?0[0-9_]+$", text):
            said = "is a number of base 60" if ":" in text else "is a number of base 8"
            raise yaml.constructor.ConstructorError(
                None, None, f"{text} {said} in YAML; write it in base 10, or put quotes around it", node.start_mark
            )
        is_whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):  # the loader itself knows what to say
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _ConfigLoader.add_constructor(_tag, _ConfigLoader.construct_number)


class _ConfigDumper(yaml.SafeDumper):
    """A YAML dumper that writes mappings in blocks and lists in one line."""


_ConfigDumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)
