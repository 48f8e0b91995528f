"""Stages on Ray: the files of a job as a dataset of ``ray.data``, which spreads it over a machine or a cluster.

Stages without a model keep no state, so that they run as Ray's tasks: as many at once as the cluster has cores for, on
machines that its autoscaler adds, too. Those with a model run as a pool of actors, each on a GPU of its own if the
cluster has GPUs, which grows as far as there is work and room. Ray repeats what was lost with a process or a machine.
Outcomes come back as the tasks end, so that the journal (`stvid.data.jobs`) holds them should this process die.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stvid.data.stage_base import Rows, Stage
from stvid.errors import StvidError
from stvid.machine import usable_cores
from stvid.version import __version__

__all__ = ["run_on_ray", "started_ray"]

_RETRIES = 2  # of a task whose process or machine was lost; a file may take its process down each time
_TASKS_EACH = 16  # tasks for each worker, so that all end at about the same time
_MOST_TASKS = 10_000  # of one dataset, whose tasks all have their entry in Ray's tables


class _InFolder:
    """A stage that is called in the folder of the driver, which relative paths start from."""

    def __init__(self, stage: Stage, folder: str) -> None:
        self.stage = stage
        self.folder = folder

    def __call__(self, rows: Rows) -> dict[str, Any]:
        try:
            os.chdir(self.folder)
        except OSError as error:
            reason = f"{self.folder}: {error.strerror or error}, on the machine {socket.gethostname()}"
            rows = {**rows, "error": [reason] * len(rows[self.stage.column])}
        return self.stage(rows)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise StvidError(f"--engine ray: {error}; Ray needs: pip install 'stvid[ray]'") from error
    return ray


@contextlib.contextmanager
def started_ray(address: str | None, workers: int | None) -> Iterator[int]:
    """Connects to a Ray cluster, or starts Ray on this machine; ends that at the end of the ``with``.

    If this process is connected already, that connection is used and stays.

    Args:
        address: The cluster, as Ray names it: ``auto``, ``HOST:PORT``, ``ray://HOST:PORT``; None starts Ray here.
        workers: Cores that Ray may use here; None takes all.

    Yields:
        How many GPUs the cluster has.

    Raises:
        StvidError: If Ray is missing, the cluster cannot be reached, or its machines have no or another stvid.
    """
    ray = _ray()
    if ray.is_initialized():
        with _settings():
            yield int(ray.cluster_resources().get("GPU", 0))
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            # A cluster of this one process sends no statistics to Ray's makers, unless its user wants it.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init("local", num_cpus=workers or usable_cores(), include_dashboard=False, **quiet)
        else:
            _check_address(address)
            ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        where = "it cannot be started here" if address is None else f"{address} cannot be reached"
        raise StvidError(f"--engine ray: {where} ({' '.join(str(error).split())[:200]})") from error
    try:
        with _settings():
            _check_workers(ray)
            yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raises OSError if nobody answers at an address; Ray itself would try for minutes, and then end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Changes settings of ``ray.data`` for the time of a job: a lost task ends no run, and stvid shows the progress."""
    from ray.data import DataContext

    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    changes = {"max_errored_blocks": -1, "enable_progress_bars": False}
    before, level = {name: getattr(context, name) for name in changes}, logger.level
    try:
        for name, value in changes.items():
            setattr(context, name, value)
        logger.setLevel(logging.CRITICAL)  # what is lost is tried again, and reported by stvid
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)


def _version_there() -> str:
    """Returns the version of stvid on the machine of a worker."""
    return __version__


def _check_workers(ray: Any) -> None:
    """Refuses a cluster that cannot run the stages, before each file fails by itself."""
    try:
        version = ray.get(ray.remote(num_cpus=1, max_retries=_RETRIES)(_version_there).remote())
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())
        raise StvidError(
            f"--engine ray: stvid does not run on the machines of the cluster ({text[-200:]}); install it there"
        ) from error
    if version != __version__:
        raise StvidError(
            f"--engine ray: the machines of the cluster have stvid {version}, this one has {__version__}; install the "
            "same on all"
        )


def run_on_ray(
    stage: Stage,
    keys: Sequence[str],
    workers: int | None,
    record: Callable[[str, Mapping[str, Any], str], None],
) -> list[str]:
    """Does the work of a stage on files, within `started_ray`.

    Args:
        stage: The work.
        keys: The files.
        workers: The most tasks at once; None leaves it to the cluster.
        record: Called with the file, the result and the error of each piece of work that is done.

    Returns:
        The files that were lost with their tasks, again and again.

    Raises:
        StvidError: If the connection to the cluster is lost.
    """
    ray = _ray()
    cores = int(ray.cluster_resources().get("CPU", 1))
    size = max(1, min(stage.rows_at_once, len(keys) // (_TASKS_EACH * (workers or max(1, cores)))))
    lost: list[str] = []
    try:
        for start in range(0, len(keys), size * _MOST_TASKS):
            some = keys[start : start + size * _MOST_TASKS]
            seen: set[str] = set()
            for rows in _mapped(ray, stage, some, size, workers):
                for outcome in stage.outcomes(rows):
                    seen.add(outcome[0])
                    record(*outcome)
            lost += [key for key in some if key not in seen]
    except (ray.exceptions.RayError, ConnectionError) as error:
        text = " ".join(str(error).split())
        raise StvidError(f"--engine ray: {text[:300]}; what is done is kept, and the same command goes on") from error
    return lost


def _mapped(ray: Any, stage: Stage, keys: Sequence[str], size: int, workers: int | None) -> Iterator[Rows]:
    """Yields what the stage returns, task by task."""
    import pyarrow
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    names = [os.fsencode(key) for key in keys]  # bytes, since a name need not be UTF-8
    tables = [
        pyarrow.table({stage.column: pyarrow.array(names[start : start + size], pyarrow.binary())})
        for start in range(0, len(names), size)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args")  # has no other name for the number of retries
        videos = ray.data.from_arrow(tables)
        if stage.lasting:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
            # A machine with fewer cores than the stage would use takes it alone.
            cores = min(stage.cores, max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes()))
            room = ray.cluster_resources().get("GPU" if gpus else "CPU", 1)
            most = workers or max(1, int(room) // (1 if gpus else cores))
            found = videos.map_batches(
                _InFolder,
                fn_constructor_args=[stage, os.getcwd()],
                batch_size=None,
                compute=ActorPoolStrategy(min_size=1, max_size=most),
                num_cpus=cores,
                num_gpus=gpus,
                max_task_retries=_RETRIES,
            )
        else:
            found = videos.map_batches(
                _InFolder(stage, os.getcwd()),
                batch_size=None,
                compute=TaskPoolStrategy(workers),
                num_cpus=1,
                max_retries=_RETRIES,
            )
    yield from found.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
