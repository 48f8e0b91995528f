"""Trainings as jobs of a cluster: what `stvid train --submit slurm` hands to submitit.

The job is the same command as without ``--submit``. Each of its processes is one rank, which Lightning finds by SLURM's
variables. A job that is started again, after a preemption, the end of its time or the loss of a machine, continues the
run from its newest checkpoint; before a preemption that is announced it saves the step in hand.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stvid.config import TrainConfig
from stvid.errors import ConfigError, StvidError
from stvid.files import write_atomically
from stvid.runs import claim_output, is_first_rank

__all__ = ["JobRequest", "TrainingJob", "minutes", "preemption_signal", "submit"]

CLUSTERS = ("slurm", "local")
_RESTARTS = 1000  # a long training takes as many time limits as it needs
_PATIENCE = 120  # seconds in which the first rank, or the cluster, ends the processes that have nothing left to do


@dataclass(frozen=True)
class JobRequest:
    """The demands of a job on a cluster; None leaves it to the cluster.

    Attributes:
        cluster: ``slurm``, or ``local`` for a process of this machine, as a trial.
        nodes: Number of machines.
        gpus_per_node: GPUs of each machine, one process for each.
        cpus_per_task: Cores of each process.
        mem_gb: Memory of each machine in GB.
        time: Time limit as SLURM writes it: minutes, ``8:00:00``, ``2-12`` and so on.
        extra: Further options of sbatch by their long names, such as ``partition``, ``account``, ``qos``.
    """

    cluster: str
    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    time: str = "60"
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cluster not in CLUSTERS:
            raise ConfigError(f"--submit: {self.cluster!r} is not one of {', '.join(CLUSTERS)}")
        for name in ("nodes", "gpus_per_node", "cpus_per_task", "mem_gb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name}: {value} is not a whole number from 1 up")
        if self.cluster == "local" and self.nodes > 1:
            raise ConfigError(f"--nodes: {self.nodes} is more than the one machine of --submit local")
        minutes(self.time)

    def placement(self, devices: int | str) -> list[str]:
        """Returns the options of the training that follow from the machines.

        Args:
            devices: `trainer.devices` of the config, which counts where no GPUs are asked for.
        """
        return [f"--trainer.num_nodes={self.nodes}", f"--trainer.devices={self.gpus_per_node or devices}"]

    def parameters(self, devices: int | str, name: str) -> dict[str, Any]:
        """Returns the arguments of submitit's executor.

        Args:
            devices: `trainer.devices` of the config.
            name: Name of the job.

        Raises:
            ConfigError: If it cannot be known how many processes a machine is to run.
        """
        values: dict[str, Any] = {"name": name, "timeout_min": minutes(self.time)}
        if self.gpus_per_node is not None:
            values["gpus_per_node"] = self.gpus_per_node
        if self.cluster == "local":  # Lightning starts the other processes, as it does without a job
            return {**values, "tasks_per_node": 1}
        if self.gpus_per_node is None and not str(devices).isdigit():
            raise ConfigError("--gpus_per_node: not set; how many GPUs is each machine to have?")
        values |= {"nodes": self.nodes, "tasks_per_node": self.gpus_per_node or int(devices)}
        values |= {} if self.cpus_per_task is None else {"cpus_per_task": self.cpus_per_task}
        values |= {} if self.mem_gb is None else {"mem_gb": self.mem_gb}
        more = {key.replace("_", "-"): value for key, value in self.extra.items()}
        return values | ({"slurm_additional_parameters": more} if more else {})


def minutes(text: str) -> int:
    """Reads a time limit in one of SLURM's forms: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s.

    Raises:
        ConfigError: If it has another form, or is no time at all.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise ConfigError(f"--time: {text!r} is no time limit; write minutes, hours:minutes:seconds, or days-hours")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, mins, seconds = 0, numbers[0], (*numbers, 0)[1]
    total = math.ceil(int(days or 0) * 1440 + hours * 60 + mins + seconds / 60)
    if total < 1:
        raise ConfigError(f"--time: {text!r} is no time at all")
    return total


def preemption_signal() -> signal.Signals | None:
    """Returns the signal that announces the end of this job; None outside of jobs that submitit started."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


class TrainingJob:
    """Is called in every process of a job, and again whenever the job is started again.

    Args:
        first: Options of the command that begin the run.
        again: Options that continue it.
        folder: Folder of the run.
        command: Trains with the options, and returns an exit code; a function of a module, since it is pickled.
    """

    def __init__(
        self, first: Sequence[str], again: Sequence[str], folder: Path, command: Callable[[Sequence[str]], int]
    ) -> None:
        self.command = command
        self.first = list(first)
        self.again = list(again)
        self.folder = folder

    def options(self) -> list[str]:
        """Returns the options that count now: those that continue, as soon as there is a checkpoint."""
        begun = any((self.folder / "checkpoints").glob("*.ckpt"))
        return self.again if begun else self.first

    def __call__(self) -> int:
        """Trains to the end.

        Raises:
            StvidError: If the command failed; the cluster then knows the job as failed.
        """
        announced = preemption_signal()
        code = self.command(self.options())
        if announced is not None and code == 128 + announced and is_first_rank():
            os.kill(os.getpid(), announced)  # the state is saved: now submitit's own handler puts the job back
            time.sleep(_PATIENCE)
        elif announced is not None and code in (128 + announced, 128 + signal.SIGTERM) and not is_first_rank():
            time.sleep(_PATIENCE)  # an end of this process could end the first one, which puts the job back
        if code:
            raise StvidError(f"the training ended with code {code}; see the log above")
        return code

    def checkpoint(self) -> Any:
        """Returns the job to be started again, as submitit asks for it after `preemption_signal`."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    request: JobRequest,
    options: Sequence[str],
    *,
    config: TrainConfig,
    name: str,
    command: Callable[[Sequence[str]], int],
) -> str:
    """Hands a training to a cluster.

    Args:
        request: What it asks for.
        options: The options of ``stvid train`` or ``stvid pretrain`` without those of the job.
        config: What these options mean.
        name: Name of the run's folder below ``runs`` if the config names none.
        command: Trains with options, and returns an exit code.

    Returns:
        Lines that name the job, its logs, and the folder of the run.

    Raises:
        ConfigError: If submitit is not there, the cluster refuses, or the folder holds another run.
    """
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("--submit: submitit is not installed; pip install 'stvid[slurm]'")
    import submitit
    from submitit.core.utils import FailedJobError

    devices = config.trainer.devices
    with claim_output(config, _free_name(config, name)) as claimed:
        folder = claimed.resolve()
        logs = folder / "jobs"
        placement = request.placement(devices)
        again = ["--resume", str(folder), *placement]
        first = [*options, *placement] if config.resume is not None else [*options, *placement, f"--out={folder}"]
        parameters = request.parameters(devices, f"stvid-{folder.name}")
        try:
            restarts = {f"{request.cluster}_max_num_timeout": _RESTARTS}
            executor = submitit.AutoExecutor(logs, cluster=request.cluster, **restarts)
            executor.update_parameters(**parameters)
            job = executor.submit(TrainingJob(first, again, folder, command))
        except (RuntimeError, ValueError, OSError, FailedJobError) as error:
            raise ConfigError(f"--submit {request.cluster}: {' '.join(str(error).split())}") from error
        typed = shlex.join(["stvid", config.command, *first])
        write_atomically(logs / f"{job.job_id}_command.txt", lambda path: path.write_text(f"{typed}\n"))
    return f"submitted job {job.job_id}\nlogs      {logs}\noutput    {folder}"


def _free_name(config: TrainConfig, name: str) -> str:
    """Returns a name below ``runs`` that no folder has, not even that of a job which waits."""
    if config.output is not None or config.resume is not None:
        return name
    free, number = name, 2
    while Path("runs", free).exists():
        free, number = f"{name}-{number}", number + 1
    return free
