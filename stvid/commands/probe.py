"""``stvid probe`` trains a classifier on frozen features and measures it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands.common import (
    add_checkpoint_options,
    add_device_option,
    add_precision_option,
    load,
    parse,
    parser_for,
    pick_device,
    split_config_options,
    take_option,
)
from stvid.console import printable, progress_bar
from stvid.errors import ConfigError
from stvid.files import claimed

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.data.manifest import Manifest

__all__ = ["run"]


def _parser() -> ArgumentParser:
    parser = parser_for(
        "probe",
        "Train a classifier on the features of a frozen network and measure it: what does the network know already? "
        "Name the videos with --data.train and --data.val (without it a fifth of the training videos is held out). "
        "Features are made once and kept below --out; an interrupted probe goes on from them.",
    )
    add_checkpoint_options(parser)
    parser.add_argument(
        "--kind",
        type=Literal["linear", "knn", "attentive"],
        default="linear",
        help="linear: logistic regression; knn: the vote of the nearest training videos; attentive: a head that pools "
        "by attention, trained on the videos.",
    )
    parser.add_argument(
        "--task", type=Literal["multiclass", "multilabel"], default="multiclass", help="Kind of labels."
    )
    parser.add_argument(
        "--l2", type=float | None, help="Penalty of a linear probe; default the best on held-out training videos."
    )
    parser.add_argument("--k", type=int, default=20, help="Neighbours that vote (knn).")
    parser.add_argument("--temperature", type=float, default=0.07, help="Weight of near neighbours (knn).")
    parser.add_argument("--epochs", type=int, default=10, help="Epochs of training (attentive).")
    parser.add_argument("--batch_size", type=int, default=8, help="Clips in one forward pass.")
    parser.add_argument("--workers", type=int | None, help="Decoding processes; default one for each core, 8 at most.")
    add_device_option(parser)
    add_precision_option(parser)
    parser.add_argument(
        "--backend", type=Literal["av", "decord", "torchcodec", "frames"], default="av", help="Decoder."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of what is held out.")
    parser.add_argument(
        "--out",
        type=str,
        default="probe",
        help="Folder for result.json, logits.npz, probe.json, probe.safetensors (the network with its new classifier, "
        "for stvid test and stvid predict) and the features.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace a result that is no probe's.")
    parser.add_argument("--json", action="store_true", help="Print result.json instead of the summary.")
    return parser


def run(argv: Sequence[str]) -> int:
    """Train a classifier on frozen features and measure it (linear, neighbours, attentive)."""
    own, dotted = split_config_options(argv)
    options = parse(_parser(), own)
    data, others = _split_data(dotted)

    import torch

    from stvid.engine.probe import probe
    from stvid.runs import default_workers

    learned, measured = _videos(data, options)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)  # parts that the weights do not hold are the same at each call
        model, _ = load(options, others)
    folder = Path(options.out)
    _check_free(folder, options.overwrite)
    shown = sys.stderr.isatty() and options.kind != "attentive"  # whose training has a bar of its own
    bar_of = progress_bar("videos", len(learned) + len(measured), enabled=shown)
    with claimed(folder / "result.json"), bar_of as bar:
        result = probe(
            model,
            learned,
            measured,
            kind=options.kind,
            out=folder,
            seed=options.seed,
            task=options.task,
            l2=options.l2,
            k=options.k,
            temperature=options.temperature,
            epochs=options.epochs,
            batch_size=options.batch_size,
            workers=default_workers(options.workers),
            device=pick_device(options.device),
            precision=options.precision,
            backend=options.backend,
            progress=bar.advance,
        )
    if options.json:
        print((folder / "result.json").read_text(encoding="utf-8"))
        return 0
    print(printable(result.summary(), keep="\n"))
    files = "result.json, logits.npz, probe.json" + (", probe.safetensors" if result.fitted is not None else "")
    print(printable(f"written to {folder} ({files})"))
    return 0


_DATA = ("data.train", "data.val", "data.root", "data.format", "data.class_names", "data.val_fraction")


def _split_data(dotted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the options that name the videos, as ``--key=value``, from those of the protocol."""
    data: list[str] = []
    rest = list(dotted)
    for key in _DATA:
        value, rest = take_option(rest, f"--{key}")
        if value is not None:
            data.append(f"--{key}={value}")
    return data, rest


def _videos(data: Sequence[str], options: Any) -> tuple[Manifest, Manifest]:
    """Reads the videos to learn from and those to measure."""
    from stvid.config import load_config
    from stvid.runs import read_data

    given = {option[2:].partition("=")[0] for option in data}
    if "data.train" not in given:
        raise ConfigError("--data.train: missing; give a CSV, a JSON or a folder per class")
    held = [] if given & {"data.val", "data.val_fraction"} else ["--data.val_fraction=0.2"]
    learned, measured = read_data(load_config(None, [*data, *held, f"--task={options.task}", f"--seed={options.seed}"]))
    if measured is None:
        raise ConfigError("--data.val: missing, and no class has two videos of which one could be held out")
    return learned, measured


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds a result that is not a probe's, unless it may be replaced."""
    if overwrite or not (folder / "result.json").exists():
        return
    if not (folder / "probe.json").exists():
        raise ConfigError(
            f"--out {folder}: holds the result of an evaluation; choose another folder, or replace it with --overwrite"
        )
    print(printable(f"replacing the probe in {folder}"), file=sys.stderr)
