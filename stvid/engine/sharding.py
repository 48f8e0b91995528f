"""Weights, gradients and optimiser state that are shared out among the ranks, block by block: FSDP2.

Each block of a model is a unit of torch's `fully_shard`: its weights are gathered before it runs and given back after
it, so that a rank holds one block at a time besides its share of all. What belongs to no block is a last unit. Names,
shapes and the single file of a checkpoint stay as they are without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from stvid.errors import ConfigError
from stvid.models.base import VideoModel

__all__ = ["precision_policy", "shard", "sharded_blocks", "whole_weights"]


def sharded_blocks(model: VideoModel) -> dict[str, nn.Module]:
    """Returns the modules that become units of their own, by name, in the order of the model's definition.

    They are the stages of the model, or the blocks that a stage consists of. A stage that is the last block of a list
    (Hiera, MViT and Swin) stands for all blocks of the list, and a block for all of its class, since the last stage
    ends with a norm in some models (UniFormer). None lies within another.

    Args:
        model: Its `stages` are asked.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    for name, stage in ((names[id(stage)], stage) for stage in model.stages().values()):
        around = model.get_submodule(name.rpartition(".")[0]) if "." in name else model
        for block in _parts(around if isinstance(around, nn.Sequential | nn.ModuleList) else stage):
            found[names[id(block)]] = block
    kinds = {type(block) for block in found.values() if not type(block).__module__.startswith("torch.")}
    found |= {name: module for name, module in model.named_modules() if type(module) in kinds and name}
    outer = {name for name in found if not any(name.startswith(f"{other}.") for other in found)}
    return {name: found[name] for name, _ in model.named_modules() if name in outer}


def _parts(stage: nn.Module) -> Iterator[nn.Module]:
    """Yields the blocks of a stage that have weights; a list of modules has no `forward` that could gather them."""
    if isinstance(stage, nn.Sequential | nn.ModuleList):
        for child in stage.children():
            yield from _parts(child)
    elif any(True for _ in stage.parameters()):
        yield stage


def precision_policy(model: nn.Module, precision: str) -> MixedPrecisionPolicy:
    """Returns in which type weights are gathered and gradients are added up.

    In bfloat16 the gathered weights are rounded, which halves the traffic; each rank's own share and the sum of the
    gradients stay in float32. Batch norms, whose statistics are float32, need weights of the same type: a model with
    batch norms gathers float32, and autocast alone computes in bfloat16.

    Args:
        model: Whether it has batch norms counts.
        precision: `trainer.precision`.
    """
    rounded = "bf16" in precision and not any(isinstance(module, _BatchNorm) for module in model.modules())
    if not rounded:
        return MixedPrecisionPolicy(reduce_dtype=torch.float32)
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def shard(model: VideoModel, *, policy: MixedPrecisionPolicy | None = None, mesh: DeviceMesh | None = None) -> None:
    """Shares the weights of a model out among the ranks, in place. Activation checkpointing is the model's own switch.

    Args:
        model: Every rank has it with the same weights.
        policy: From `precision_policy`; None computes in the type of the weights.
        mesh: The ranks; None takes all.

    Raises:
        ConfigError: If the model has a weight that cannot be shared out.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise ConfigError(
                f"trainer.strategy fsdp2: torch cannot share out weights without an axis, and {type(model).__name__} "
                f"has them ({name}); take ddp"
            )
    policy = MixedPrecisionPolicy() if policy is None else policy
    for parameter in model.parameters():  # a share is a slice of the plain layout
        parameter.data = parameter.data.contiguous()
    for block in sharded_blocks(model).values():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@contextlib.contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Gives every rank the whole weights for a while, so that ranks may run the model a different number of times.

    Gathering needs all ranks; a validation, in which one of them may have more videos, must not gather while it runs.

    Args:
        model: Sharded, or not: then there is nothing to do.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)
