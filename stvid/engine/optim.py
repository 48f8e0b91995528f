"""Optimiser groups and the learning-rate curve."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from timm.models import group_parameters
from timm.optim import RMSpropTF

from stvid.config import OptimConfig
from stvid.errors import ConfigError
from stvid.models.base import VideoModel

__all__ = ["Treatment", "build_optimizer", "learning_rate_curve", "plan_parameters", "scaled_learning_rate"]


def scaled_learning_rate(config: OptimConfig, clips_per_step: int) -> float:
    """Returns the peak learning rate: `lr` is stated for `base_batch` clips a step and scales linearly.

    Goyal et al. 2017, arXiv:1706.02677, section 2.1.
    """
    return config.lr if config.base_batch is None else config.lr * clips_per_step / config.base_batch


class Treatment(NamedTuple):
    """How a parameter is optimised.

    Attributes:
        decayed: Whether weight decay applies.
        layer: Number of its layer group from the input on; the classifier has the highest.
        lr_scale: Factor of the learning rate.
    """

    decayed: bool
    layer: int
    lr_scale: float


def plan_parameters(model: VideoModel, config: OptimConfig) -> dict[str, Treatment]:
    """Decides by name how each parameter is optimised.

    Biases, norm parameters (all of one dimension; not with `decay_1d`) and those of `model.no_weight_decay` are not
    decayed. A layer group that is k groups before the classifier gets layer_decay ** k of the learning rate (BEiT,
    arXiv:2106.08254), everything before the classifier `backbone_scale` of it, and what `lr_scales` names its factor.

    Raises:
        ConfigError: If layer-wise decay is asked of a model without layer groups, or no parameter is found by an
            expression of `lr_scales`.
    """
    factors = _named_factors(model, config.lr_scales)
    undecayed = model.no_weight_decay()
    depth: dict[str, int] = {}
    if config.layer_decay != 1.0:
        try:
            depth = group_parameters(model, model.group_matcher(), reverse=True)
        except TypeError as error:
            raise ConfigError(f"optim.layer_decay: {error}") from error
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    last = max(depth.values(), default=-1)
    # What no expression matches, as the classifier, is one group already, the last.
    unmatched = any(depth.get(name) == last for name, parameter in model.named_parameters() if id(parameter) in head)
    top = last if unmatched else last + 1
    plan = {}
    for name, parameter in model.named_parameters():
        layer = top if id(parameter) in head else depth.get(name, top)
        decayed = (parameter.ndim > 1 or config.decay_1d) and name not in undecayed
        scale = config.layer_decay ** (top - layer) * (1.0 if id(parameter) in head else config.backbone_scale)
        plan[name] = Treatment(decayed, layer, scale * factors.get(name, 1.0))
    return plan


def _named_factors(model: VideoModel, scales: Mapping[str, float]) -> dict[str, float]:
    """Returns the factor of each parameter that an expression is found in."""
    factors: dict[str, float] = {}
    names = [name for name, _ in model.named_parameters()]
    for pattern, scale in scales.items():
        found = [name for name in names if re.search(pattern, name)]
        if not found:
            raise ConfigError(
                f"optim.lr_scales: {pattern!r} is found in no parameter's name; they run from {names[0]} to {names[-1]}"
            )
        for name in found:
            factors.setdefault(name, scale)
    return factors


def build_optimizer(
    model: VideoModel, config: OptimConfig, *, lr: float, plan: Mapping[str, Treatment] | None = None
) -> torch.optim.Optimizer:
    """Returns AdamW, SGD or RMSProp.

    Args:
        model: Its parameters that need a gradient are optimised.
        config: Which optimiser, and its constants.
        lr: Peak learning rate of the classifier.
        plan: The result of `plan_parameters` before the parameters were sharded; None makes it now.

    Raises:
        ConfigError: If layer-wise decay is asked of a model without layer groups.
    """
    plan = plan_parameters(model, config) if plan is None else plan
    groups: dict[Treatment, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        treatment = plan[name.replace("_fsdp_wrapped_module.", "")]
        # Names must differ where rates do: Lightning logs each group's rate by its name.
        label = [f"layer{treatment.layer}"] if config.layer_decay != 1.0 else []
        if config.lr_scales:
            label.append(f"x{treatment.lr_scale!r}")
        elif config.backbone_scale != 1.0:
            label.append("head" if treatment.lr_scale == 1.0 else "backbone")
        label.append("decay" if treatment.decayed else "no_decay")
        group = groups.setdefault(
            treatment,
            {
                "params": [],
                "weight_decay": config.weight_decay if treatment.decayed else 0.0,
                "lr": lr * treatment.lr_scale,
                "name": "-".join(label),
            },
        )
        group["params"].append(parameter)
    if config.name == "adamw":
        return torch.optim.AdamW(list(groups.values()), lr=lr, betas=config.betas)
    if config.name == "rmsprop":
        return RMSpropTF(list(groups.values()), lr=lr, alpha=config.rho, eps=config.epsilon, momentum=config.momentum)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(list(groups.values()), lr=lr, momentum=config.momentum, nesterov=nesterov)


def learning_rate_curve(
    config: OptimConfig, *, steps_per_epoch: float, epochs: float, lr: float
) -> Callable[[int], float]:
    """Returns the factor of the peak rate at each step: linear warm-up, then cosine, steps or constant.

    Args:
        config: Gives the warm-up, the smallest rate and the shape.
        steps_per_epoch: Optimiser steps of an epoch.
        epochs: Epochs that the curve spans; the rate stays at its last value beyond.
        lr: Peak rate, that is `scaled_learning_rate`; `warmup_lr` and `min_lr` are scaled by the same factor.
    """
    warmup_steps = config.warmup_epochs * steps_per_epoch
    total_steps = max(epochs * steps_per_epoch, 1)
    start, end = (config.warmup_lr / config.lr, config.min_lr / config.lr) if lr > 0 else (0.0, 0.0)
    cosine_start = 0.0 if config.cosine_over_warmup else warmup_steps
    milestones = [epoch * steps_per_epoch for epoch in config.milestones]

    def scheduled(step: float) -> float:
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "step":
            return config.gamma ** bisect_right(milestones, step)
        progress = min((step - cosine_start) / max(total_steps - cosine_start, 1), 1.0)
        return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2

    def factor(step: int) -> float:
        if step < warmup_steps:
            return start + (scheduled(warmup_steps) - start) * step / warmup_steps
        return scheduled(step)

    return factor
