"""``stvid train`` trains a model from a config, or from weights alone; ``stvid pretrain`` runs through here, too."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands.common import take_option, use_new_names
from stvid.commands.dispatch import dispatch
from stvid.console import command_line
from stvid.errors import ConfigError

if TYPE_CHECKING:
    from stvid.config import TrainConfig
    from stvid.engine.submission import JobRequest

__all__ = ["run", "run_in_job", "train_or_pretrain"]

Command = Literal["train", "pretrain"]


def run(argv: Sequence[str]) -> int:
    """Train a model from a config, or fine-tune weights (--init) on your videos."""
    return train_or_pretrain("train", argv)


def train_or_pretrain(
    command: Command, argv: Sequence[str], *, in_job: Callable[[Sequence[str]], int] | None = None
) -> int:
    """Runs one of the two commands.

    Args:
        command: ``train`` or ``pretrain``.
        argv: Its arguments.
        in_job: Runs the command in a job of a cluster; None takes `run_in_job`.
    """
    from stvid.config import dump_config, train_parser

    if any(option in ("-h", "--help") for option in argv):
        train_parser(command).print_help()
        return 0
    argv = use_new_names("train", argv)
    request, argv = _job_request(argv)
    only_print, find_rate = "--print_config" in argv, "--find_lr" in argv
    name, options = take_option([word for word in argv if word not in ("--print_config", "--find_lr")], "--config")
    resume, rest = take_option(options, "--resume")
    if find_rate and (resume is not None or command == "pretrain"):
        why = "a continued run keeps its learning rate; leave out --resume" if resume else "only for stvid train"
        raise ConfigError(f"--find_lr: {why}")
    config = _config(command, name, resume, rest, only_print=only_print)
    if only_print:
        print(dump_config(config), end="")
        return 0

    if request is not None:
        return _submit(request, argv, config, name or resume, in_job or run_in_job)
    if find_rate:
        return _find_rate(config, name)

    from stvid.engine.finetuning import run_name
    from stvid.engine.train import train
    from stvid.runs import is_first_rank  # after the config: a mistake there need not wait for Lightning

    source = name or resume
    result = train(config, name=run_name(config) if source is None else Path(source).stem)
    if not is_first_rank():
        return 0
    for key, value in result.metrics.items():
        if key.startswith("val_") and not key.endswith(("_failed", "_low", "_high")):
            print(f"{key.removeprefix('val_'):<16}{value:.4f}")
    if command == "pretrain":
        print(f"next: {command_line('stvid', 'train', '--init', result.output, '--data.train', 'VIDEOS')}")
        return 0
    test = command_line("stvid", "test", "--checkpoint", result.output)
    print(f"next: {test}; {command_line('stvid', 'predict', 'VIDEO', '--checkpoint', result.output)}")
    return 0


def _config(
    command: Command, name: str | None, resume: str | None, options: Sequence[str], *, only_print: bool
) -> TrainConfig:
    """Returns the config of a run.

    Args:
        command: ``pretrain`` makes it one of a pretraining.
        name: Its file, if one is named.
        resume: The run that is continued, if one is.
        options: Keys and values in the form of the command line, ``--init`` among them.
        only_print: Whether the defaults do.

    Raises:
        ConfigError: If there is no config, it cannot be used, or is that of the other command.
    """
    from stvid.config import load_config

    init, _ = take_option(options, "--init")
    options = [*options, *(["--task=pretrain"] if command == "pretrain" and resume is None else [])]
    if resume is not None:
        from stvid.runs import resume_config

        config = resume_config(resume, options) if name is None else load_config(name, options)
        config.resume = config.resume if name is None else resume
    elif name is None and command == "pretrain" and not only_print:
        raise ConfigError(
            "--config is missing; for example: stvid pretrain --config videomae_vit_s_motion_pretrain.yaml"
        )
    elif name is None and init is None and not only_print:
        raise ConfigError(f"--config is missing; for example: {_suggestion(options)}")
    elif name is None and (init is None or command == "pretrain"):
        config = load_config(None, options)
    else:
        from stvid.engine.finetuning import resolve_config

        config = resolve_config(name, options)
    if (config.task == "pretrain") != (command == "pretrain"):
        other, kind = ("train", "no") if command == "pretrain" else ("pretrain", "a")
        place = ["--resume", resume] if resume is not None else ["--config", name or "CONFIG"]
        raise ConfigError(f"{place[1]}: is {kind} masked pretraining; use {command_line('stvid', other, *place)}")
    return config


def _job_request(argv: Sequence[str]) -> tuple[JobRequest | None, list[str]]:
    """Takes the options of a job out of the arguments.

    Raises:
        ConfigError: If one has a wrong value, or stands without ``--submit``.
    """
    from stvid.config import JOB_OPTIONS

    given: dict[str, Any] = {}
    rest = list(argv)
    for name, kind, _ in JOB_OPTIONS:
        text, rest = take_option(rest, f"--{name}")
        if text is None:
            continue
        if kind is int and not text.isdecimal():
            raise ConfigError(f"--{name}: {text!r} is not a whole number from 1 up")
        given[name] = kind(text)
    cluster = given.pop("submit", None)
    if cluster is None:
        if given:
            raise ConfigError(f"--{next(iter(given))}: belongs to a job of a cluster; add --submit slurm")
        return None, rest
    from stvid.engine.submission import JobRequest

    names: tuple[str, ...] = ("partition", "account", "qos", "constraint")
    extra = {name: given.pop(name) for name in names if name in given}
    return JobRequest(cluster, **given, extra=extra), rest


def _submit(
    request: JobRequest,
    argv: Sequence[str],
    config: TrainConfig,
    source: str | None,
    in_job: Callable[[Sequence[str]], int],
) -> int:
    """Hands the training to a cluster, and prints where it is."""
    from stvid.engine.finetuning import run_name
    from stvid.engine.submission import submit

    if "--find_lr" in argv:
        raise ConfigError("--find_lr: prints what it finds; leave out --submit")
    name = run_name(config) if source is None else Path(source).stem
    print(submit(request, argv, config=config, name=name, command=in_job))
    return 0


def run_in_job(options: Sequence[str]) -> int:
    """Trains as the program does, with its lines for errors and its exit codes.

    Args:
        options: Arguments after ``stvid train``.
    """
    return dispatch("stvid", "", {"train": run}, ["train", *options])


def _find_rate(config: TrainConfig, name: str | None) -> int:
    """Prints the learning rate to take, and where the curve is."""
    from stvid.engine.finetuning import run_name
    from stvid.engine.rate_finder import find_rate
    from stvid.runs import is_first_rank

    found = find_rate(config, Path("runs", f"{run_name(config) if name is None else Path(name).stem}-lr"))
    if is_first_rank():
        print(found.describe())
    return 0


def _suggestion(words: Sequence[str]) -> str:
    """Returns a command that does what the words, without a config and weights, were meant to do."""
    plain: list[str] = []
    options: list[str] = []
    items = iter(words)
    for word in items:
        if not word.startswith("--"):
            plain.append(word)
            continue
        options.append(word)
        if "=" not in word and (value := next(items, None)) is not None:
            options.append(value)
    configs = [word for word in plain if word.endswith((".yaml", ".yml"))]
    weights = [word for word in plain if _is_weights(word)]
    videos = [word for word in plain if word not in configs and word not in weights]
    command = ["stvid", "train"]
    if configs:
        command += ["--config", configs[0]]
    elif not weights:
        some = videos or any(option.partition("=")[0] == "--data.train" for option in options)
        command += ["--config", "uniformer_xxs_folder.yaml" if some else "uniformer_xxs_motion.yaml"]
    if weights:
        command += ["--init", weights[0]]
    if videos:
        command += ["--data.train", videos[0]]
    elif weights and not any(option.partition("=")[0] == "--data.train" for option in options):
        command += ["--data.train", "VIDEOS"]
    return command_line(*command, *options)


def _is_weights(word: str) -> bool:
    suffixes = (".pt", ".pth", ".pyth", ".ckpt", ".tar", ".safetensors", ".npz", ".pkl", ".msgpack")
    return word.endswith(suffixes) or word.startswith("hf-hub:") or os.path.isdir(os.path.join(word, "checkpoints"))
