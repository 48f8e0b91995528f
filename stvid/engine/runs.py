"""The folder of a run: which checkpoint is meant, where results go, which videos a split names. No Lightning here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stvid.checkpoints import read_checkpoint
from stvid.config import TrainConfig, load_config, parse_config
from stvid.data.manifest import Manifest, read_manifest
from stvid.errors import CheckpointError, ConfigError

__all__ = [
    "RUN_DIR_VARIABLE",
    "choose_output",
    "default_test_output",
    "default_workers",
    "newest_checkpoint",
    "read_split",
    "resume_config",
]

RUN_DIR_VARIABLE = "STVID_RUN_DIR"  # tells the processes that Lightning starts which folder the first one chose


def newest_checkpoint(source: str | os.PathLike[str], *, prefer: str | None = None) -> Path:
    """Returns the checkpoint that a path means: itself, or the newest of a run's folder.

    Args:
        source: A checkpoint, a run's folder, or its ``checkpoints`` folder.
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
        raise CheckpointError(f"{path}: holds no checkpoint (*.ckpt)")
    resumable = [file for file in found if file.name != "best.ckpt"] or found
    return resumable[-1]


def resume_config(source: str | os.PathLike[str], options: Sequence[str] = ()) -> TrainConfig:
    """Returns the config of an interrupted run, with options applied.

    Raises:
        CheckpointError: If there is no checkpoint, or it does not hold a config.
    """
    checkpoint = newest_checkpoint(source)
    run = checkpoint.parent.parent
    if (run / "config.yaml").is_file():
        config = load_config(run / "config.yaml", options)
    else:
        stored = read_checkpoint(checkpoint).get("stvid", {})
        if "config" not in stored:
            raise CheckpointError(f"{checkpoint}: holds no run that could be continued; use --init to start from it")
        config = parse_config(stored["config"], options, source=str(checkpoint))
    config.resume = str(checkpoint)
    if not any(option.partition("=")[0] == "--output" for option in options):
        config.output = str(run)
    return config


def choose_output(config: TrainConfig, name: str) -> Path:
    """Returns the folder of the run, made and writable; never one that holds another run."""
    if RUN_DIR_VARIABLE in os.environ:
        return Path(os.environ[RUN_DIR_VARIABLE])
    if config.output is not None:
        folder = Path(config.output)
        if config.resume is None and _holds_run(folder):
            raise ConfigError(
                f"output {folder}: holds a run already; continue it with --resume {folder}, or choose another --output"
            )
    else:
        folder = Path("runs") / name
        number = 2
        while _holds_run(folder):
            folder = Path("runs") / f"{name}-{number}"
            number += 1
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output {folder}: cannot be written to ({error.strerror}); choose another --output"
        ) from error
    return folder


def _holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or any((folder / "checkpoints").glob("*.ckpt"))


def default_test_output(checkpoint: str | os.PathLike[str], temporal: str) -> Path:
    """Returns where `stvid test` writes: the folder of the run, else one beside the weights; below it for probes."""
    path = newest_checkpoint(checkpoint, prefer="best.ckpt")
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent / f"{path.stem}-test"
    return folder if temporal == "normal" else folder / f"test-{temporal}"


def default_workers(workers: int | None) -> int:
    """Returns `workers`, or one for each CPU core that this process may use, 8 at most."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def read_split(config: TrainConfig, split: str, *, class_names: Sequence[str] | None = None) -> Manifest:
    """Reads the manifest of a split (``train``, ``val`` or ``test``); ``motion`` is the embedded demo set.

    Raises:
        ConfigError: If the split is not configured.
        ManifestError: If it cannot be read.
    """
    source = getattr(config.data, split) or (config.data.val if split == "test" else None)
    if source is None:
        raise ConfigError(f"data.{split}: not set; give a CSV, a JSON or a folder per class with --data.{split} PATH")
    if source == "motion":
        from stvid.data.motion import resolve_motion

        source = resolve_motion("train" if split == "train" else "val")
        return read_manifest(source, class_names=class_names)
    return read_manifest(
        source,
        root=config.data.root,
        format=config.data.format,
        class_names=class_names,
        multilabel=config.task == "multilabel",
    )
