"""Lightning's trainer as stvid makes it: quiet, and with its complaints as one line for the user."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from stvid.config import TrainConfig
from stvid.errors import ConfigError
from stvid.inflation.temporal import TemporalConv

__all__ = ["check_precision", "make_trainer", "quiet_lightning", "strategy_of"]

_REFUSALS = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)


def quiet_lightning() -> None:
    """Silences the hints and warnings of Lightning that say nothing to a user of stvid."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
    # Depth-wise weights have two equal layouts; DDP copies them, which costs nothing to speak of.
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")


def make_trainer(*, devices: int | str, section: str = "trainer.", **options: Any) -> Trainer:
    """Makes a trainer that leaves the sharing of the videos among the ranks to stvid's own loaders.

    Args:
        devices: How many devices, as a number or in digits, or anything else that Lightning takes.
        section: What stands before the names of the arguments where a user gives them, for errors.
        **options: The other arguments of Lightning's `Trainer`, which refuses what it does not know.

    Raises:
        ConfigError: If Lightning cannot use accelerator, devices, strategy or precision here; it says which.
    """
    count: Any = int(devices) if str(devices).lstrip("-").isdigit() else devices
    try:
        return Trainer(devices=count, enable_model_summary=False, use_distributed_sampler=False, **options)
    except _REFUSALS as error:
        key = _refused_key({"devices": count} | options)
        where = "trainer" if key is None else f"{section}{key}"
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error


def _refused_key(options: Mapping[str, Any]) -> str | None:
    """Returns the key that Lightning refuses, and its value; None if it refuses none of those of the devices.

    Its messages do not always name the argument, so the arguments are tried, each beside those before it.
    """
    tried: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for key in ("accelerator", "devices", "strategy", "precision"):
        if key in options:
            tried[key] = options[key]
            try:
                Trainer(**({"accelerator": "cpu"} | tried))
            except _REFUSALS:
                return f"{key} {options[key]}"
    return None


def strategy_of(config: TrainConfig) -> str | Strategy:
    """Returns what Lightning takes as its strategy; ``fsdp2`` shares out the weights as `stvid.engine.sharding` does.

    Raises:
        ConfigError: If fsdp2 has no GPUs, or is combined with what it cannot do.
    """
    options = config.trainer
    if options.strategy != "fsdp2":
        return options.strategy
    if options.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        raise ConfigError("trainer.strategy fsdp2: shares out the weights among GPUs, and there is none here; take ddp")
    if options.ema_decay is not None:
        raise ConfigError("trainer.ema_decay: not with trainer.strategy fsdp2, which shares out the weights; take ddp")
    # A checkpoint is one file with whole weights, which every other command reads.
    return ModelParallelStrategy(save_distributed_checkpoint=False)


def check_precision(trainer: Trainer, model: nn.Module) -> None:
    """Refuses a training in which torch computes wrong gradients.

    On CPUs, in bfloat16, torch (2.14 among others) gives wrong weight gradients of depthwise 3D convolutions over
    fewer frames than their kernel has, in the memory format that the models use; sometimes they are not finite.

    Raises:
        ConfigError: If the training would run into this.
    """
    if trainer.strategy.root_device.type != "cpu" or "bf16" not in str(trainer.precision):
        return
    kinds = (nn.Conv3d, TemporalConv)
    depthwise = [name for name, part in model.named_modules() if isinstance(part, kinds) and part.groups > 1]
    if depthwise:
        raise ConfigError(
            f"trainer.precision {trainer.precision}: torch computes wrong gradients of depthwise 3D convolutions in "
            f"bfloat16 on CPUs, and this model has them ({depthwise[0]}); take 32-true"
        )
