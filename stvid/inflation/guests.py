"""A network of the user's is made ready to be inflated: a copy without wrappers and history, with all its weights."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from stvid.errors import ConfigError
from stvid.inflation.anatomy import images_for, in_words, no_training
from stvid.inflation.watching import without_history

__all__ = ["copied", "own_copy"]

Module = TypeVar("Module", bound=nn.Module)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def own_copy(network: nn.Module, img_size: tuple[int, int], *, in_chans: int = 3) -> nn.Module:
    """Returns a copy of a user's network: not compiled, not wrapped, and with every layer initialised.

    Args:
        network: Takes images; it is not changed.
        img_size: (height, width) in pixels.
        in_chans: Channels of an image.

    Raises:
        ConfigError: If the network is scripted, cannot be copied, or cannot be run while layers wait for their sizes.
    """
    name = type(network).__name__
    network = _unwrapped(network)
    if isinstance(network, torch.jit.ScriptModule):
        raise ConfigError(
            f"{name}: is a TorchScript module, whose layers cannot be replaced; give the network that it was made from"
        )
    name = type(network).__name__
    try:
        network = copied(network)
    except (TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be copied ({in_words(error)})") from error
    for parent in network.modules():
        for child_name, child in list(parent.named_children()):
            if (inner := _unwrapped(child)) is not child:
                setattr(parent, child_name, inner)
    if any(is_lazy(parameter) for parameter in network.parameters()):
        _initialise(network, name, (2, in_chans, *img_size))
    return network


def copied(network: Module) -> Module:
    """Returns a deep copy, also of a network that keeps tensors which were computed; those come without history."""
    return copy.deepcopy(network, without_history(network))


def _unwrapped(network: nn.Module) -> nn.Module:
    while True:
        inner: Any = None
        if isinstance(network, _WRAPPERS):
            inner = network.module
        elif isinstance(network, nn.Module) and "_orig_mod" in network._modules:  # torch.compile's
            inner = network._modules["_orig_mod"]
        if inner is None:
            return network
        network = inner


def _initialise(network: nn.Module, name: str, shape: tuple[int, int, int, int]) -> None:
    """Runs a network once, so that its lazy layers learn their sizes."""
    try:
        with no_training(network):
            network(images_for(network, shape))
    except Exception as error:  # whatever a network's own code raises
        raise ConfigError(
            f"{name}: has layers that do not know their sizes yet (nn.LazyLinear and the like), and does not run on "
            f"images {shape} ({in_words(error)}); run it once on a batch of images before"
        ) from error
