"""Lightning's trainer as stvid makes it: quiet, and with its complaints as one line for the user."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from stvid.errors import ConfigError

__all__ = ["make_trainer", "quiet_lightning"]


def quiet_lightning() -> None:
    """Silences the hints and warnings of Lightning that say nothing to a user of stvid."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
    # Depth-wise weights have two equal layouts; DDP copies them, which costs nothing to speak of.
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")


def make_trainer(*, devices: int | str, **options: Any) -> Trainer:
    """Makes a trainer that leaves the sharing of the videos among the ranks to stvid's own loaders.

    Args:
        devices: How many devices, as a number or in digits, or anything else that Lightning takes.
        **options: The other arguments of Lightning's `Trainer`, which refuses what it does not know.

    Raises:
        ConfigError: If Lightning cannot use accelerator, devices, strategy or precision here; its message says which.
    """
    count: Any = int(devices) if str(devices).lstrip("-").isdigit() else devices
    try:
        return Trainer(devices=count, enable_model_summary=False, use_distributed_sampler=False, **options)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
