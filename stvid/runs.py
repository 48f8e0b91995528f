"""The folder of a run: which checkpoint is meant, where results go, which videos a split names. No Lightning here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from stvid.checkpoints import read_checkpoint
from stvid.config import TrainConfig, config_keys, load_config, parse_config
from stvid.console import command_line, printable
from stvid.data.labels import numbers_note
from stvid.data.manifest import Manifest, read_class_names, read_manifest
from stvid.data.video_table import checked_class_names
from stvid.errors import CheckpointError, ConfigError, ManifestError
from stvid.machine import usable_cores
from stvid.sources import newest_checkpoint

__all__ = [
    "RUN_DIR_VARIABLE",
    "SERVICES_FILE",
    "check_resumable",
    "claim_output",
    "default_test_output",
    "default_workers",
    "held_evaluation",
    "held_out",
    "is_first_rank",
    "newest_checkpoint",
    "read_data",
    "read_split",
    "read_test_videos",
    "resume_config",
    "run_folder",
    "stored_run",
]

SERVICES_FILE = "loggers.json"  # names the runs of services (MLflow and others) that a run folder belongs to
RUN_DIR_VARIABLE = "STVID_RUN_DIR"  # tells the processes that Lightning starts which folder the first one chose


def run_folder(checkpoint: str | os.PathLike[str]) -> Path | None:
    """Returns the folder of the run that a checkpoint belongs to; None if it lies somewhere else."""
    path = Path(checkpoint)
    return path.parent.parent if path.parent.name == "checkpoints" else None


def resume_config(source: str | os.PathLike[str], options: Sequence[str] = ()) -> TrainConfig:
    """Returns the config of an interrupted run, with options applied.

    Raises:
        CheckpointError: If there is no checkpoint, or it does not hold a config.
    """
    checkpoint = newest_checkpoint(source)
    run = run_folder(checkpoint)
    if run is not None and (run / "config.yaml").is_file():
        config = load_config(run / "config.yaml", options)
    else:
        config = parse_config(stored_run(checkpoint)["config"], options, source=str(checkpoint))
    config.resume = str(checkpoint)
    if not any(option.partition("=")[0] == "--out" for option in options):
        config.output = None if run is None else str(run)
    return config


def stored_run(checkpoint: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Returns the record of a run in its checkpoint: ``config`` (YAML), ``protocol``, ``clips_per_step`` and more.

    Raises:
        CheckpointError: If it cannot be read or holds no run.
    """
    content = read_checkpoint(checkpoint)
    stored = content.get("stvid")
    if not isinstance(stored, Mapping) or "config" not in stored or "loops" not in content:
        raise CheckpointError(
            f"{checkpoint}: holds no run that could be continued; use --init to start from its weights"
        )
    protocol = stored.get("protocol")
    if not isinstance(protocol, Mapping) or "class_names" not in protocol:
        raise CheckpointError(
            f"{checkpoint}: what it tells of its run is damaged; use --init to start from its weights"
        )
    return stored


# What may differ from the interrupted run: where things are and how fast it goes, not what is computed.
RESUMABLE = {
    *("init", "resume", "output", "model.grad_checkpointing"),
    *("data.train", "data.val", "data.test", "data.root", "data.format", "data.class_names", "data.backend"),
    *("data.batch_size", "data.val_batch_size", "data.workers", "data.decode_threads", "data.val_views"),
    *("data.max_failures", "data.limit_val", "optim.schedule_epochs", "protocol.views"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
    *("trainer.strategy", "trainer.compile", "trainer.channels_last", "trainer.val_every", "trainer.save_every"),
    *("trainer.patience", "trainer.min_delta", "trainer.monitor", "trainer.loggers"),
    *("trainer.keep", "trainer.log_every_n_steps", "trainer.deterministic", "trainer.progress"),
}


def check_resumable(
    config: TrainConfig, stored: Mapping[str, Any], *, clips_per_step: int, training_videos: int
) -> None:
    """Refuses to continue a run with other settings than it had, which the checkpoint would silently overrule.

    Args:
        config: The complete config of the run that is to start, with `resume` set to a checkpoint.
        stored: The record that `stored_run` found in that checkpoint.
        clips_per_step: Clips that one step of the run takes that is to start.
        training_videos: How many videos it would train on.

    Raises:
        ConfigError: If a setting that changes the result differs; the message names it.
    """
    assert config.resume is not None
    before = parse_config(stored["config"], source=config.resume)
    for key in config_keys():
        old, new = (functools.reduce(getattr, key.split("."), value) for value in (before, config))
        if key == "protocol.class_names" and old != new:
            names = set(before.protocol.class_names) ^ set(config.protocol.class_names)
            differing = sorted(names) or ["the order"]
            raise ConfigError(
                f"{key}: a continued run keeps its classes; these differ: {', '.join(differing[:5])}; start a new run "
                "from its weights with --init"
            )
        if key not in RESUMABLE and old != new:
            raise ConfigError(
                f"{key}: {new} cannot be changed while a run is continued, it began with {old}; start a new run from "
                "its weights with --init"
            )
    clips_before = stored.get("clips_per_step", clips_per_step)
    if clips_before != clips_per_step:
        raise ConfigError(
            f"data.batch_size x trainer.devices: {clips_per_step} clips a step, but the run began with {clips_before}; "
            "keep their product to continue it"
        )
    videos_before = stored.get("training_videos", training_videos)
    if videos_before != training_videos:
        raise ConfigError(
            f"data.train: lists {training_videos} training videos, but the run began with {videos_before}; give it the "
            "same list, or start a new run from its weights with --init"
        )


def is_first_rank() -> bool:
    """Whether this process speaks for the run; before the processes are connected, the environment tells."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


@contextlib.contextmanager
def claim_output(config: TrainConfig, name: str) -> Iterator[Path]:
    """Gives the folder of the run, made and writable; never one that holds another run, or that one writes to now.

    Args:
        config: `output` names the folder; null takes that of the run that is continued, else a new one.
        name: Name of the new folder below ``runs``; a number is put behind it if it is taken.

    Yields:
        The folder, which no other process can claim until the end of the ``with``.

    Raises:
        ConfigError: If the folder holds a run that is not being continued, another process trains in it, it cannot be
            written to, or it has to be named since the processes are started from outside.
    """
    if RUN_DIR_VARIABLE in os.environ:
        yield Path(os.environ[RUN_DIR_VARIABLE])
        return
    output = _wanted_output(config)
    made: set[Path] = set()  # folders that were not there
    lock: contextlib.AbstractContextManager[Any] | None = None
    if output is None:
        folder = Path("runs") / name
        number = 2
        while _holds_run(folder) or (lock := _prepare(folder, made)) is None:
            folder = Path("runs") / f"{name}-{number}"
            number += 1
    else:
        folder = Path(output)
        if config.resume is None and is_first_rank() and _holds_run(folder):
            raise ConfigError(
                f"output {folder}: holds a run already; continue it with {command_line('--resume', folder)}, or choose "
                "another --out"
            )
        lock = _prepare(folder, made)
        if lock is None:
            raise ConfigError(
                f"output {folder}: another process trains in this folder; wait for its end, or choose another --out"
            )
    with lock:
        if is_first_rank():  # what a killed process had half written
            for left_over in [*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")]:
                left_over.unlink()
        try:
            yield folder
        finally:
            if folder in made and is_first_rank():
                _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    """Removes a run's new folder if the run failed before it wrote anything."""
    checkpoints = folder / "checkpoints"
    if {*folder.iterdir()} <= {checkpoints, folder / ".lock"} and not any(checkpoints.iterdir()):
        with contextlib.suppress(OSError):  # a system that keeps files which are in use, or somebody else's new file
            (folder / ".lock").unlink(missing_ok=True)
            checkpoints.rmdir()
            folder.rmdir()


def _wanted_output(config: TrainConfig) -> str | None:
    """Returns the folder that the config asks for; None if it is to be a new one below ``runs``."""
    output = config.output
    if output is None and config.resume is not None and (run := run_folder(config.resume)) is not None:
        output = str(run)
    if output is None and int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise ConfigError("output: not set; with processes started by torchrun or SLURM, name the folder with --out")
    if output == "":
        raise ConfigError("output: is empty; name a folder, or leave it out for a new one below runs")
    return output


def _prepare(folder: Path, made: set[Path]) -> contextlib.AbstractContextManager[Any] | None:
    """Makes a run's folder and locks it; returns the lock, which ``with`` releases, None if another process has it."""
    lock = filelock.FileLock(folder / ".lock")  # the system releases it when the process ends, however it does
    try:
        if not folder.exists():
            made.add(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        if is_first_rank():  # which holds the lock for all
            return lock.acquire(timeout=0)
    except filelock.Timeout:
        return None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise ConfigError(f"output {folder}: cannot be written to ({error.strerror}); choose another --out") from error
    return contextlib.nullcontext()


def _holds_run(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.ckpt"))


def default_test_output(
    checkpoint: str | os.PathLike[str], *, evaluation: str, views: str, temporal: str, data: str
) -> Path:
    """Returns where `stvid test` writes: the folder of the run, else one beside the weights.

    A changed order of frames has a folder below it, ``test-frozen``. If a folder holds the result of another
    evaluation (other videos, views or options), a new one is named after views and videos, ``test-10x3-val``.

    Args:
        checkpoint: Weights, as `stvid.sources` lists their forms.
        evaluation: Digest of what is measured, see `EvaluationResult`.
        views: Temporal clips x spatial crops.
        temporal: The change to the order of frames.
        data: Where the videos are listed.
    """
    if os.path.lexists(checkpoint):
        path = newest_checkpoint(checkpoint, prefer="best.ckpt")
        run = path.parent.parent if path.parent.name == "checkpoints" else path.parent / f"{path.stem}-test"
    else:  # a name; what was fetched lies in the cache, which is no place for results
        run = Path("runs", re.sub(r"[^\w.-]+", "-", os.fspath(checkpoint)).strip("-") + "-test")
    folder = run if temporal == "normal" else run / f"test-{temporal}"
    name = "-".join(["test", views, Path(data).stem, *([] if temporal == "normal" else [temporal])])
    number = 1
    while held_evaluation(folder) not in (None, evaluation):
        folder = run / (name if number == 1 else f"{name}-{number}")
        number += 1
    return folder


def held_evaluation(folder: Path) -> str | None:
    """Returns the digest of the evaluation whose result a folder holds; None if it holds none."""
    try:
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return ""  # something that is not to be overwritten
    return str(record.get("evaluation", "")) if isinstance(record, dict) else ""


def default_workers(workers: int | None) -> int:
    """Returns `workers`, or one for each CPU core that this process may use, 8 at most."""
    return min(usable_cores(), 8) if workers is None else workers


def read_split(
    config: TrainConfig, split: str, *, class_names: Sequence[str] | None = None, whole: bool = False
) -> Manifest:
    """Reads the manifest of a split (``train``, ``val`` or ``test``); ``motion`` is the embedded demo set.

    What is left out of a list, or taken in a way that may not be meant, is printed.

    Args:
        config: Names the lists.
        split: Which one.
        class_names: The classes in order; None takes the labels that occur.
        whole: Whether to take all rows of a list whose column names the split of each, not only those of `split`.

    Raises:
        ConfigError: If the split is not configured.
        ManifestError: If it cannot be read.
    """
    manifest = _read_split(config, split, class_names=class_names, whole=whole)
    if is_first_rank():
        for note in manifest.notes:
            print(printable(f"data.{split}: {note}"), file=sys.stderr, flush=True)
    return manifest


def _read_split(config: TrainConfig, split: str, *, class_names: Sequence[str] | None, whole: bool = False) -> Manifest:
    source = getattr(config.data, split) or (config.data.val if split == "test" else None)
    if source is None:
        raise ConfigError(f"data.{split}: not set; give a CSV, a JSON or a folder per class with --data.{split} PATH")
    if source == "motion":
        from stvid.data.motion import resolve_motion

        source = resolve_motion("train" if split == "train" else "val")
        return read_manifest(source, class_names=class_names, labelled=config.task != "pretrain")
    return read_manifest(
        source,
        root=config.data.root,
        format=config.data.format,
        class_names=class_names,
        multilabel=config.task == "multilabel",
        splits=() if whole else ("test", "val") if split == "test" else (split,),
        labelled=config.task != "pretrain",
    )


def _limited(manifest: Manifest, limit: int | None, seed: int) -> Manifest:
    if limit is None or limit >= len(manifest):
        return manifest
    rng = np.random.default_rng([seed, len(manifest)])
    return manifest.subset(np.sort(rng.choice(len(manifest), size=limit, replace=False)))


def _hold_out(manifest: Manifest, fraction: float, seed: int) -> tuple[Manifest, Manifest]:
    """Splits off the videos that `held_out` names."""
    mask = held_out(manifest, fraction, seed)
    return manifest.subset(np.flatnonzero(~mask)), manifest.subset(np.flatnonzero(mask))


def held_out(manifest: Manifest, fraction: float, seed: int) -> np.ndarray:
    """Draws the videos that are held out.

    Args:
        manifest: The videos. If the list has groups, these are held out as a whole.
        fraction: Share of each class; at least one video of each class that has two.
        seed: Seed of the draw.

    Returns:
        bool (N,).

    Raises:
        ConfigError: If the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"data.val_fraction: {fraction} is not between 0 and 1")
    rng = np.random.default_rng([seed, 1])
    if manifest.groups is not None:
        return _held_groups(manifest, manifest.groups, fraction, rng)
    held: list[int] = []
    primary = np.asarray(manifest.primary)
    for label in np.unique(primary):
        rows = rng.permutation(np.flatnonzero(primary == label))
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held += rows[:count].tolist()
    mask = np.zeros(len(manifest), dtype=bool)
    mask[held] = True
    return mask


def _held_groups(manifest: Manifest, groups: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Returns which videos are held out: whole groups, about a share of all, and never all videos of a class."""
    mask = np.zeros(len(manifest), dtype=bool)
    left = np.zeros(len(manifest.class_names), dtype=np.int64)
    labels = [manifest.label_ids(index) for index in range(len(manifest))]
    for ids in labels:
        left[ids] += 1
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    for rows in (members[group] for group in rng.permutation(np.unique(groups))):
        own = np.zeros_like(left)
        for row in rows:
            own[labels[row]] += 1
        fits = mask.sum() + len(rows) <= max(fraction * len(manifest), 1) or not mask.any()
        if fits and not ((left == own) & (own > 0)).any():
            mask[rows] = True
            left -= own
    return mask


def _class_order(config: TrainConfig) -> tuple[str, ...] | None:
    """Returns the order of the logits if the config or the initial weights fix it."""
    if config.task == "pretrain":
        return None
    if config.protocol.class_names:
        return checked_class_names(config.protocol.class_names, "protocol.class_names")
    if config.data.class_names is not None:
        return read_class_names(config.data.class_names)
    return None


def _check_there(videos: Manifest, split: str, *, samples: int = 50) -> None:
    """Raises ManifestError if none of the videos looked at exists: otherwise an epoch is trained before `val` fails."""
    if videos.members is not None:  # in shards or tables
        return
    numbers = np.linspace(0, len(videos) - 1, min(samples, len(videos))).astype(int)
    paths = [videos[int(number)].path for number in numbers]
    if not any(os.path.exists(path) for path in paths):
        written = " with backslashes, as on Windows: write / for them" if any("\\" in path for path in paths) else ""
        raise ManifestError(
            f"data.{split}: {videos.source}: its videos are not there ({paths[0]}, ...)"
            f"{', and are written' + written if written else '; data.root names their folder'}"
        )


def _ordered(train: Manifest, initial: Sequence[str]) -> Manifest:
    """Gives the classes the order of the initial weights, if these are the same; else says how numbers are ordered."""
    used = set(train.used_classes)
    if initial and set(initial) in (set(train.class_names), used):
        return train.with_class_names(initial)  # the head of the initial weights stays usable
    if is_first_rank() and (note := numbers_note(train.class_names, used)) is not None:
        print(printable(f"data.train: {note}"), file=sys.stderr, flush=True)
    return train


def _say_numbers(videos: Manifest, split: str) -> None:
    if videos.labels_are == "numbers" and is_first_rank():
        line = f"data.{split}: the labels of {videos.source} are numbers: they are the places of the class names"
        print(printable(line), file=sys.stderr, flush=True)


def read_data(config: TrainConfig, *, initial: Sequence[str] = ()) -> tuple[Manifest, Manifest | None]:
    """Reads the training and validation videos of a run, the held-out ones included.

    Args:
        config: Names the lists, and the share that is held out.
        initial: Class names of the weights that the run starts from. Their order is kept if the videos have the same.

    Returns:
        The training videos, and those for validation; None if there are none, which may be because every class has a
        single video.

    Raises:
        ConfigError: If there are none, they have no labels, or only one class.
        ManifestError: If a list cannot be read, or its videos are not where it says.
    """
    order = _class_order(config)
    train = read_split(config, "train", class_names=order)
    if not train.has_labels and config.task != "pretrain":
        raise ConfigError(f"data.train: {train.source} has no labels")
    if len(train.class_names) < 2 and config.task == "multiclass":
        raise ConfigError(
            f"data.train: {train.source}: all its videos are of one class, {train.class_names[0]!r}; a classifier "
            "needs two or more: give the folder that holds a folder for each class, or a list with several labels"
        )
    if order is None and train.has_labels:
        train = _ordered(train, initial)
    _check_there(train, "train")
    _say_numbers(train, "train")
    val = None
    listed = config
    if config.data.val is None and {"train", "val"} <= {*train.splits}:  # a column of the list says which are which
        listed = dataclasses.replace(config, data=dataclasses.replace(config.data, val=config.data.train))
    if listed.data.val is not None:
        val = _limited(
            read_split(listed, "val", class_names=train.class_names or None), config.data.limit_val, config.seed
        )
        _check_there(val, "val")
        _say_numbers(val, "val")
    elif config.data.val_fraction:
        train, held = _hold_out(train, config.data.val_fraction, config.seed)
        val = _limited(held, config.data.limit_val, config.seed) if len(held) else None
    return _limited(train, config.data.limit_train, config.seed), val


def read_test_videos(config: TrainConfig, *, class_names: Sequence[str] | None = None) -> Manifest:
    """Reads the videos of a test: `data.test`, else `data.val`, else those that the training held out.

    Args:
        config: The config of the run that is tested.
        class_names: Order of the classes; None sorts the names that occur. Held-out videos keep the training's.

    Raises:
        ConfigError: If the config names no such videos.
        ManifestError: If they cannot be read.
    """
    if config.data.test is not None or config.data.val is not None:
        return read_split(config, "test", class_names=class_names)
    if config.data.train is not None:
        listed = _read_split(config, "train", class_names=class_names)
        if "test" in listed.splits:  # a column of the list says which videos are for the test
            own = dataclasses.replace(config, data=dataclasses.replace(config.data, test=config.data.train))
            return read_split(own, "test", class_names=listed.class_names)
        if not config.data.val_fraction and "val" not in listed.splits:
            raise ConfigError("data.test: not set, and the run has no validation videos; name some with --data PATH")
    # The same videos that the training held out, all of them.
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, limit_val=None))
    held_out = read_data(whole)[1]
    if held_out is None:
        raise ConfigError(
            "data.test: not set, and the training could hold no videos out, since no class has two (or two "
            "groups); name some with --data PATH"
        )
    return held_out
