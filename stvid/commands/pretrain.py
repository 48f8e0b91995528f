"""``stvid pretrain`` pretrains a video transformer on videos without labels."""

from __future__ import annotations

from collections.abc import Sequence

from stvid.commands.dispatch import dispatch
from stvid.commands.train import train_or_pretrain

__all__ = ["run", "run_in_job"]


def run(argv: Sequence[str]) -> int:
    """Pretrain a video transformer on videos without labels, as a masked autoencoder."""
    return train_or_pretrain("pretrain", argv, in_job=run_in_job)


def run_in_job(options: Sequence[str]) -> int:
    """Pretrains as the program does, with its lines for errors and its exit codes.

    Args:
        options: Arguments after ``stvid pretrain``.
    """
    return dispatch("stvid", "", {"pretrain": run}, ["pretrain", *options])
