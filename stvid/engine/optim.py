"""Optimiser groups and the learning-rate curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.models import group_parameters

from stvid.config import OptimConfig
from stvid.errors import ConfigError
from stvid.models.layers import VideoModel

__all__ = ["build_optimizer", "learning_rate_curve", "parameter_groups", "scaled_learning_rate"]


def scaled_learning_rate(config: OptimConfig, clips_per_step: int) -> float:
    """Returns the peak learning rate: `lr` is stated for `base_batch` clips a step and scales linearly.

    Goyal et al. 2017, arXiv:1706.02677, section 2.1.
    """
    return config.lr if config.base_batch is None else config.lr * clips_per_step / config.base_batch


def parameter_groups(model: VideoModel, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Sorts the parameters by decay and, if `layer_decay` is not 1, by depth.

    Biases, norm parameters (all of one dimension) and those of `model.no_weight_decay` are not decayed. A layer group
    that is k groups before the classifier gets layer_decay ** k of the learning rate (BEiT, arXiv:2106.08254).

    Returns:
        Groups with ``params``, ``weight_decay``, ``lr_scale`` and a ``name`` for the logs.
    """
    undecayed = model.no_weight_decay()
    depth: dict[str, int] = {}
    if layer_decay != 1.0:
        depth = group_parameters(model, model.group_matcher(), reverse=True)
    last = max(depth.values(), default=0)
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name not in undecayed
        layer = last + 1 if id(parameter) in head else depth.get(name, last + 1)
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "weight_decay": weight_decay if decayed else 0.0,
                "lr_scale": layer_decay ** (last + 1 - layer),
                "name": f"layer{layer}-{'decay' if decayed else 'no_decay'}"
                if depth
                else ("decay" if decayed else "no_decay"),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: VideoModel, config: OptimConfig, *, lr: float) -> torch.optim.Optimizer:
    """Returns AdamW or SGD with Nesterov momentum over `parameter_groups`.

    Raises:
        ConfigError: If layer-wise decay is asked of a model without layer groups.
    """
    try:
        groups = parameter_groups(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    except TypeError as error:
        raise ConfigError(f"optim.layer_decay: {error}") from error
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0)


def learning_rate_curve(
    config: OptimConfig, *, steps_per_epoch: float, epochs: float, lr: float
) -> Callable[[int], float]:
    """Returns the factor of the peak rate at each step: linear warm-up, then cosine or constant.

    Args:
        config: Gives the warm-up, the smallest rate and the shape.
        steps_per_epoch: Optimiser steps of an epoch.
        epochs: Epochs that the curve spans; the rate stays at its last value beyond.
        lr: Peak rate, that is `scaled_learning_rate`; `warmup_lr` and `min_lr` are scaled by the same factor.
    """
    warmup_steps = config.warmup_epochs * steps_per_epoch
    total_steps = max(epochs * steps_per_epoch, 1)
    start, end = (config.warmup_lr / config.lr, config.min_lr / config.lr) if lr > 0 else (0.0, 0.0)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return start + (1 - start) * step / warmup_steps
        if config.schedule == "constant":
            return 1.0
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2

    return factor
