"""The command line, ``stvid``: which commands there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stvid.commands import (
    benchmark,
    compare,
    demo,
    doctor,
    explain,
    export,
    features,
    inflate,
    inspect,
    models,
    predict,
    prep,
    pretrain,
    probe,
    test,
    train,
)
from stvid.commands.dispatch import dispatch

__all__ = ["main"]

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train.run,
    "pretrain": pretrain.run,
    "test": test.run,
    "compare": compare.run,
    "predict": predict.run,
    "inspect": inspect.run,
    "explain": explain.run,
    "features": features.run,
    "probe": probe.run,
    "inflate": inflate.run,
    "export": export.run,
    "demo": demo.run,
    "prep": prep.run,
    "models": models.run,
    "benchmark": benchmark.run,
    "doctor": doctor.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of ``stvid``.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    return dispatch("stvid", "Train, evaluate and use video classification models.", COMMANDS, argv)
