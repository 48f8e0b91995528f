"""The command line: one function per command, each thin over the Python API.

An error is one line on standard error and a non-zero exit code: 2 for something in the call or the config, 1 for
something in the data or the weights, 128 + n after signal n. ``STVID_DEBUG=1`` shows the traceback besides.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.errors import ConfigError, StvidError, UnknownNameError, nearest
from stvid.version import __version__

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.config import TrainConfig
    from stvid.evaluation.predict import Prediction
    from stvid.models.layers import VideoModel
    from stvid.protocol import Protocol

__all__ = ["main"]

Device = str
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def _parser(command: str, description: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"stvid {command}", description=description, exit_on_error=False)


def _parse(parser: ArgumentParser, argv: Sequence[str]) -> Any:
    """Parses options; an unknown one is an error with the nearest name."""
    from jsonargparse import ArgumentError

    known = {option for action in parser._actions for option in action.option_strings}
    for option in argv:
        name = option.partition("=")[0]
        if name.startswith("--") and len(name) > 2 and name not in known:
            raise ConfigError(f"{name}: unknown option{nearest(name, known)}")
    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        from stvid.config import one_line

        raise ConfigError(one_line(error, prefix="--")) from error


# --- train ------------------------------------------------------------------------------------------------------------


def train(argv: Sequence[str]) -> int:
    """Train a model from a config."""
    from stvid.config import load_config, train_parser

    if any(option in ("-h", "--help") for option in argv):
        train_parser().print_help()
        return 0
    name, options = _take_option(argv, "--config")
    resume, rest = _take_option(options, "--resume")
    from stvid.engine.runs import is_first_rank, resume_config
    from stvid.engine.train import train as run

    if resume is not None and name is None:
        config = resume_config(resume, rest)
    else:
        if name is None:
            raise ConfigError("--config is missing; for example: stvid train --config uniformer_xxs_motion.yaml")
        config = load_config(name, rest)
        config.resume = resume
    result = run(config, name=Path(name or resume or "run").stem)
    if not is_first_rank():
        return 0
    for key, value in result.metrics.items():
        if key.startswith("val_") and not key.endswith(("_failed", "_low", "_high")):
            print(f"{key.removeprefix('val_'):<16}{value:.4f}")
    best = result.best if result.best is not None else result.last
    print(f"next: stvid test --checkpoint {result.output}; stvid predict VIDEO --checkpoint {best}")
    return 0


def _take_option(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
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


# --- test and predict -------------------------------------------------------------------------------------------------


def _split_config_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
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


def _add_model_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=str,
        required=True,
        help="A checkpoint, or the folder of a run (its best one, else its newest).",
    )
    parser.add_argument(
        "--config",
        type=str | None,
        help="Config with model, protocol and data, for weights that do not carry them (published ones).",
    )
    parser.add_argument("--model", type=str | None, help="Name of the model, for weights that do not carry it.")
    parser.add_argument(
        "--class_names", type=str | None, help="File with a class name a line, for weights that do not carry them."
    )
    parser.add_argument("--views", type=str | None, help="Temporal clips x spatial crops; default the protocol's.")
    parser.add_argument("--device", type=str | None, help="cpu, cuda, cuda:1, ...; default a GPU if there is one.")
    parser.add_argument("--precision", type=Precision, default="32-true", help="Arithmetic of the model.")
    parser.add_argument(
        "--backend",
        type=Literal["av", "decord", "torchcodec", "frames"] | None,
        help="Decoder; default the one that the model was trained with.",
    )


# What of the config `test` and `predict` use; other keys say how a model was trained.
USED_KEYS = ("data.test", "data.val", "data.root", "data.format", "data.class_names", "data.backend")


def _load(options: Any, dotted: Sequence[str]) -> tuple[VideoModel, TrainConfig]:
    """Returns the model with its protocol, and the config that names the data.

    The protocol is the checkpoint's if it carries one, else that of ``--config``, else the published one. Overrides on
    the command line are printed.
    """
    from stvid.checkpoints import load_model, read_checkpoint
    from stvid.config import config_keys, load_config, parse_config
    from stvid.data.manifest import read_class_names
    from stvid.engine.runs import newest_checkpoint

    keys = [option[2:].partition("=")[0] for option in dotted if option.startswith("--")]
    usable = [key for key in config_keys() if key.startswith("protocol.") or key in USED_KEYS]
    for key in keys:
        if key not in usable:
            why = "has no meaning here: it says how a model is trained" if key in config_keys() else "unknown option"
            raise ConfigError(f"--{key}: {why}{'' if key in config_keys() else nearest(key, usable)}")
    checkpoint = newest_checkpoint(options.checkpoint, prefer="best.ckpt")
    stored = read_checkpoint(checkpoint).get("stvid")
    described = isinstance(stored, Mapping)
    text = stored.get("config") if isinstance(stored, Mapping) else None
    if options.config is not None:
        config = load_config(options.config, dotted)
    elif text is not None:
        config = parse_config(text, dotted, source=str(checkpoint))
    else:
        config = load_config(None, dotted)
    model = load_model(checkpoint, name=options.model or (config.model.name if options.config else None))
    protocol = model.default_protocol
    if not described and options.config is not None:
        protocol = config.protocol
        model.task = config.task
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
            f"class names: {checkpoint} names its {len(protocol.class_names)} classes itself, and not as they were "
            "given; leave the names out"
        )
    for key, value in changes.items():
        if key != "class_names" and getattr(protocol, key) != value:
            print(f"protocol.{key}: {value} instead of {getattr(protocol, key)}", file=sys.stderr)
    model.default_protocol = protocol.replace(**changes)
    named = model.default_protocol.class_names
    if named and len(named) != model.num_classes:
        raise ConfigError(f"{checkpoint}: has {model.num_classes} logits, but {len(named)} class names were given")
    return model, config


def _device(name: str | None) -> str:
    import torch

    return name if name is not None else ("cuda" if torch.cuda.is_available() else "cpu")


def test(argv: Sequence[str]) -> int:
    """Measure a model on labelled videos with multi-view evaluation."""
    parser = _parser(
        "test",
        "Measure a model on labelled videos: each is decoded once, all its views are averaged. Keys of the config can "
        "be given too (--protocol.stride 2, --data.test videos.csv); what differs from the checkpoint is printed.",
    )
    _add_model_options(parser)
    parser.add_argument(
        "--data", type=str | None, help="Videos; default the run's data.test, else its data.val. motion: the demo set."
    )
    parser.add_argument(
        "--temporal",
        type=Literal["normal", "frozen", "shuffled", "reversed"],
        default="normal",
        help="What is done to the order of each clip's frames: does the model use time?",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="Clips in one forward pass.")
    parser.add_argument("--workers", type=int | None, help="Decoding processes; default one a core, 8 at most.")
    parser.add_argument(
        "--output", type=str | None, help="Folder for result.json and logits.npz; default that of the run."
    )
    parser.add_argument("--json", action="store_true", help="Print result.json instead of the summary.")
    own, dotted = _split_config_options(argv)
    options = _parse(parser, own)

    from stvid.engine.runs import default_test_output, default_workers, read_data, read_split
    from stvid.evaluation.evaluate import evaluate

    model, config = _load(options, dotted)
    given = {option.partition("=")[0] for option in dotted}
    if options.data is not None:
        other = {"test": options.data}  # the list of the run may have had another format and root
        other |= {key: value for key, value in (("format", "auto"), ("root", None)) if f"--data.{key}" not in given}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **other))
    names = model.default_protocol.class_names
    held_out = None
    if config.data.test is None and config.data.val is None:
        if not config.data.val_fraction:
            raise ConfigError("--data is missing: the checkpoint's run names no validation videos")
        _, held_out = read_data(config)  # the same videos that the training held out
    videos = held_out if held_out is not None else read_split(config, "test", class_names=names or None)
    if not names:
        if len(videos.class_names) != model.num_classes:
            raise ConfigError(
                f"the checkpoint has {model.num_classes} logits without names, the videos have "
                f"{len(videos.class_names)} classes; give the names in the order of the logits with --class_names FILE"
            )
        print("the checkpoint names no classes: its logits are taken in the order of the sorted names", file=sys.stderr)
        model.default_protocol = model.default_protocol.replace(class_names=videos.class_names)
    result = evaluate(
        model,
        videos,
        batch_size=options.batch_size,
        workers=default_workers(options.workers),
        device=_device(options.device),
        precision=options.precision,
        backend=options.backend or config.data.backend,
        temporal=options.temporal,
        seed=config.seed,
        progress=sys.stderr.isatty(),
    )
    output = Path(options.output) if options.output else default_test_output(options.checkpoint, options.temporal)
    written = result.save(output)
    print(written.read_text(encoding="utf-8") if options.json else result.summary())
    if not options.json:
        print(f"written to {output}")
    return 0


def predict(argv: Sequence[str]) -> int:
    """Classify video files."""
    parser = _parser(
        "predict",
        "Classify video files. The protocol (frames, size, views, class names) comes from the checkpoint; its keys can "
        "be overridden (--protocol.stride 2), which is printed.",
    )
    parser.add_argument("files", type=str, nargs="+", help="Video files.")
    _add_model_options(parser)
    parser.add_argument("--topk", type=int, default=5, help="Classes shown for each file.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    own, dotted = _split_config_options(argv)
    options = _parse(parser, own)

    from stvid.evaluation.predict import predict as run

    model, config = _load(options, dotted)
    predictions = run(
        model,
        options.files,
        topk=options.topk,
        device=_device(options.device),
        precision=options.precision,
        backend=options.backend or config.data.backend,
    )
    if options.json:
        print(json.dumps([dataclasses.asdict(prediction) for prediction in predictions], indent=2, allow_nan=False))
    else:
        _print_predictions(predictions, model.default_protocol)
    failed = [prediction for prediction in predictions if prediction.error is not None]
    for prediction in failed:
        print(f"stvid: error: {prediction.path}: {prediction.error}", file=sys.stderr)
    return 1 if failed else 0


def _print_predictions(predictions: Sequence[Prediction], protocol: Protocol) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for prediction in predictions:
        if prediction.error is not None:
            continue
        console.print(Text(prediction.path, style="italic"), soft_wrap=True)
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(justify="right")
        table.add_column()
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            table.add_row(f"{100 * probability:.1f}%", Text(name))
        console.print(table)
    console.print(Text(protocol.describe(), style="dim"))


# --- models and doctor ------------------------------------------------------------------------------------------------


def models(argv: Sequence[str]) -> int:
    """List the models."""
    parser = _parser("models", "List the models: parameters, multiply-adds of one view, and published protocol.")
    parser.add_argument("pattern", type=str, nargs="?", default="*", help="Names to show, such as 'uniformer_*'.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = _parse(parser, argv)

    from stvid.models.registry import list_models, model_info

    names = list_models(options.pattern)
    if not names:
        raise UnknownNameError(f"{options.pattern}: no such model{nearest(options.pattern, list_models())}")
    infos = [model_info(name) for name in names]
    if options.json:
        records = [
            {
                "name": info.name,
                "params_millions": info.params,
                "gflops": info.gflops,
                "protocol": info.protocol.to_dict(),
                "paper": info.paper,
            }
            for info in infos
        ]
        print(json.dumps(records, indent=2))
        return 0

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("model", "params M", "GFLOPs", "frames", "size", "views", "paper"):
        table.add_column(column, justify="right" if column in ("params M", "GFLOPs", "frames", "size") else "left")
    for info in infos:
        frames = f"{info.protocol.frames}" + (f"x{info.protocol.stride}" if info.protocol.sampling == "dense" else "")
        table.add_row(
            info.name,
            "" if info.params is None else f"{info.params:g}",
            "" if info.gflops is None else f"{info.gflops:g}",
            frames,
            str(info.protocol.crop),
            info.protocol.views,
            info.paper,
        )
    Console().print(table)
    return 0


def doctor(argv: Sequence[str]) -> int:
    """Report versions, decoders, attention backends and devices, and how to mend what is missing."""
    parser = _parser(
        "doctor", "Report versions, decoders, attention backends and devices, and how to mend what is missing."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    options = _parse(parser, argv)

    from stvid.doctor import examine, print_report

    report = examine()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)
    return 0 if report["usable"] else 1


# --- main -------------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "test": test,
    "predict": predict,
    "models": models,
    "doctor": doctor,
}


def _help() -> str:
    lines = ["usage: stvid COMMAND [OPTIONS]", "", "Train, evaluate and use video classification models.", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<10} {(command.__doc__ or '').strip()}")
    lines += ["", "stvid COMMAND --help shows the options of a command; stvid --version shows the version."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        print(f"stvid {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail(f"{name}: no such command{nearest(name, COMMANDS)} (see: stvid --help)", 2)
    try:
        return COMMANDS[name](rest)
    except SystemExit as error:  # --help of a command
        return error.code if isinstance(error.code, int) else 2
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the reader has gone; nothing more can be printed
        return 1
    except StvidError as error:
        signum = getattr(error, "signum", None)
        if signum is not None:
            if os.environ.get("LOCAL_RANK", "0") != "0":  # the first rank says it for all
                return 128 + signum
            return _fail(str(error), 128 + signum)
        return _fail(str(error), 2 if isinstance(error, ConfigError | UnknownNameError) else 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"internal error: {message[:500]} (STVID_DEBUG=1 shows where; please report it)", 70)


def _fail(message: str, code: int) -> int:
    if os.environ.get("STVID_DEBUG") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"stvid: error: {message}", file=sys.stderr, flush=True)
    return code
