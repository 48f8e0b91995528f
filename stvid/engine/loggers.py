"""Where a training reports its numbers: files of the run folder, and services, through Lightning's loggers.

A service (Weights & Biases, MLflow, Comet) gets the complete config, the numbers, the files of the run, and the report
of `stvid test`. Which of its runs is meant stands in ``loggers.json`` of the run folder, so that a continued training
and a later test go on in the same one. Address, project and key are those that each service reads from its own
variables, such as ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI`` or ``COMET_API_KEY``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from stvid.config import TrainConfig, config_keys, dump_config
from stvid.console import printable
from stvid.engine.callbacks import MetricsCsv
from stvid.errors import ConfigError, StvidError
from stvid.files import write_atomically
from stvid.runs import SERVICES_FILE

__all__ = ["Services", "attach_report", "check_installed", "flat_config", "make_loggers"]

_MODULES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}
_PROJECT = "stvid"


class _MlflowNames(MLFlowLogger):
    """Writes ``val_top1@4x3`` as ``val_top1/4x3``: MLflow allows no @ in a name, and Lightning would drop it."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name.replace("@", "/"): value for name, value in metrics.items()}, step)


def make_loggers(config: TrainConfig, output: Path) -> list[Logger]:
    """Returns the loggers that write into the run folder; ``metrics.csv`` is always written.

    Args:
        config: `trainer.loggers` names what else is written.
        output: Folder of the run.
    """
    loggers: list[Logger] = [MetricsCsv(output, resumed=config.resume is not None)]
    if "tensorboard" in config.trainer.loggers:
        loggers.append(TensorBoardLogger(save_dir=output, name="", version=""))
    return loggers


def check_installed(names: Iterable[str]) -> None:
    """Refuses services whose library is not there.

    Raises:
        ConfigError: Names the command that installs it.
    """
    for name in names:
        if name in _MODULES and importlib.util.find_spec(_MODULES[name]) is None:
            raise ConfigError(f"trainer.loggers: {name} is not installed; pip install 'stvid[{name}]'")


def flat_config(config: TrainConfig) -> dict[str, Any]:
    """Returns the value of every dotted key of a config, as a service lists hyperparameters."""
    return {key: functools.reduce(getattr, key.split("."), config) for key in config_keys()}


class Services(Callback):
    """Connects a training with the services that its config names; the first rank speaks for all.

    Args:
        config: The complete config of the run.
        output: Folder of the run.
        resumed: Whether the run goes on in the runs of the services that it had.
    """

    def __init__(self, config: TrainConfig, output: Path, *, resumed: bool = False) -> None:
        self.config = config
        self.output = output
        self.resumed = resumed
        self.loggers: dict[str, Logger] = {}
        self._continued: dict[str, dict[str, str]] = {}

    def open(self, trainer: Trainer) -> None:
        """Begins a run in each service, or goes on in that of the training that is continued.

        Raises:
            ConfigError: If a service refuses, or cannot be reached.
        """
        if not trainer.is_global_zero:
            return
        known = self._continued = _recorded(self.output) if self.resumed else {}
        for name in dict.fromkeys(self.config.trainer.loggers):
            if name in _MODULES:
                try:
                    self.loggers[name] = _connected(name, self.output, known.get(name, {}))
                except _failures(name) as error:
                    raise ConfigError(f"trainer.loggers: {name}: {_one_line(error)}") from error
        trainer.loggers = [*trainer.loggers, *self.loggers.values()]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends the complete config, and writes down which runs of the services these are."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{dump_config(self.config)}```", trainer.global_step)
        for name, logger in self.loggers.items():
            # MLflow's parameters never change; a longer continuation is told by the newer config.yaml alone.
            if name != "mlflow" or name not in self._continued:
                logger.log_hyperparams(flat_config(self.config))
        if self.loggers:
            record = {name: _place(name, logger) for name, logger in self.loggers.items()}
            text = json.dumps(record, indent=1) + "\n"
            write_atomically(self.output / SERVICES_FILE, lambda path: path.write_text(text, encoding="utf-8"))

    def close(self, *, failed: bool) -> None:
        """Sends the files of the run, and ends the connections.

        Args:
            failed: Whether the training ended before its time.
        """
        files = [path for path in (self.output / "config.yaml", self.output / "metrics.csv") if path.is_file()]
        for name, logger in self.loggers.items():
            _send(name, logger, files, kind="run", where=self.output)
            _disconnect(name, logger, failed=failed)
        self.loggers = {}


def attach_report(folder: Path, run: Path) -> None:
    """Sends the report of a test to the services that the training reported to; says so if one cannot be reached.

    Args:
        folder: Holds ``report.html`` and ``result.json``.
        run: Folder of the run that was tested; without services there is nothing to do.

    Raises:
        ConfigError: If the library of a service is not there.
    """
    known = _recorded(run)
    check_installed(known)
    files = [path for path in (folder / "report.html", folder / "result.json") if path.is_file()]
    for name, place in known.items():
        try:
            logger = _connected(name, run, place)
        except _failures(name) as error:
            _warn(name, error)
            continue
        _send(name, logger, files, kind="report", where=run)
        _disconnect(name, logger, failed=False)


def _recorded(run: Path) -> dict[str, dict[str, str]]:
    """Returns which run of each service belongs to a run folder."""
    path = run / SERVICES_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(record[name]) for name in record if name in _MODULES}
    except (ValueError, TypeError) as error:
        raise StvidError(f"{path}: is damaged ({error}); remove it to report to new runs of the services") from error


def _connected(name: str, output: Path, place: Mapping[str, str]) -> Logger:
    """Returns the logger of a service, connected.

    Args:
        name: The service.
        output: Folder of the run, which gives the run its name, and holds what the service keeps on this machine.
        place: What `_place` returned when the run was begun; empty for a new one.
    """
    run = output.resolve().name
    if name == "wandb":
        project = place.get("project") or os.environ.get("WANDB_PROJECT", _PROJECT)
        logger = WandbLogger(name=run, save_dir=output, project=project, id=place.get("id"), resume="allow")
    elif name == "mlflow":
        # MLflow's own default is a folder of the working directory, whose format it no longer keeps up.
        given = place.get("uri") or os.environ.get("MLFLOW_TRACKING_URI")
        logger = _MlflowNames(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
            run_name=run,
            tracking_uri=given or f"sqlite:///{(output / 'mlflow.db').resolve()}",
            artifact_location=None if given else (output / "mlflow_artifacts").resolve().as_uri(),
            run_id=place.get("id"),
        )
    else:
        logger = CometLogger(
            project=os.environ.get("COMET_PROJECT_NAME", _PROJECT),
            name=run,
            experiment_key=place.get("id"),
            offline_directory=str(output / "comet"),
        )
    _ = logger.experiment  # it is made when it is asked for first
    return logger


def _place(name: str, logger: Logger) -> dict[str, str]:
    """Returns what is needed to find the run of a service again."""
    if name == "mlflow":
        return {"id": str(logger.run_id), "uri": str(logger._tracking_uri)}
    if name == "wandb":
        return {"id": str(logger.experiment.id), "project": str(logger.experiment.project)}
    return {"id": str(logger.version)}


def _send(name: str, logger: Logger, files: Sequence[Path], *, kind: str, where: Path) -> None:
    """Sends files as the artifact of a run; a service that fails then is named, and the work is not lost for it."""
    try:
        if name == "wandb":
            import wandb

            label = re.sub(r"[^\w.-]+", "-", f"{where.resolve().name}-{kind}")
            artifact = wandb.Artifact(label, type=kind)
            for path in files:
                artifact.add_file(str(path), name=path.name)
            logger.experiment.log_artifact(artifact)
        for path in files:
            if name == "mlflow":
                logger.experiment.log_artifact(logger.run_id, str(path))
            elif name == "comet":
                logger.experiment.log_asset(str(path), file_name=path.name, overwrite=True)
    except _failures(name) as error:
        _warn(name, error)


def _disconnect(name: str, logger: Logger, *, failed: bool) -> None:
    try:
        if name == "wandb":
            logger.experiment.finish(exit_code=int(failed))
        elif name == "mlflow":
            logger.finalize("failed" if failed else "success")
        else:
            logger.experiment.end()
    except _failures(name) as error:
        _warn(name, error)


def _failures(name: str) -> tuple[type[Exception], ...]:
    """Returns what the library of a service raises when the service refuses or cannot be reached."""
    if name == "wandb":
        import wandb.errors

        return (wandb.errors.Error, OSError)
    if name == "mlflow":
        from mlflow.exceptions import MlflowException

        return (MlflowException, OSError, ImportError)
    from comet_ml.exceptions import CometException

    return (CometException, OSError, ValueError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _warn(name: str, error: Exception) -> None:
    print(printable(f"warning: {name}: not all was sent: {_one_line(error)}"), file=sys.stderr, flush=True)
