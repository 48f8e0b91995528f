"""A network of the user's is made ready to be inflated: a copy without wrappers and history, with all its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stvid.errors import ConfigError
from stvid.inflation.anatomy import images_for, in_words, no_training
from stvid.inflation.watching import without_history

__all__ = ["constants_of", "copied", "keep_usual_layout", "other_constants", "own_copy"]

Module = TypeVar("Module", bound=nn.Module)
FEW_CHANNELS = 16  # with fewer, see `keep_usual_layout`
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
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"{name}: its state holds {key}, a {type(value).__name__} and no tensor (get_extra_state), which a "
                "file of weights cannot hold"
            )
    return network


def constants_of(network: nn.Module) -> dict[str, list[float]]:
    """Returns what a network computes with that is in no file of its weights, to tell another network by.

    Such are buffers that are not persistent, and tensors that are plain attributes, as tables of positions often are.

    Returns:
        For each its name, and its number of entries, a sum that depends on their order, and the sum of their squares.
    """
    found = {}
    for name, module in network.named_modules():
        passing = {key: module._buffers[key] for key in module._non_persistent_buffers_set}
        plain = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        for key, value in {**passing, **plain}.items():
            if value is not None and not value.is_meta and not value.is_complex():
                exact = value.detach().double().flatten().nan_to_num(0.0, 1.0, -1.0)  # masks have infinities
                order = torch.linspace(1, 2, len(exact), dtype=exact.dtype, device=exact.device)
                numbers = [float(len(exact)), (exact @ order).item(), exact.square().sum().item()]
                found[f"{name}.{key}" if name else key] = numbers
    return found


def other_constants(stored: Mapping[str, Sequence[float]], given: Mapping[str, Sequence[float]]) -> list[str]:
    """Returns the names of those `constants_of` two networks that both have, but that differ by more than rounding."""
    return [name for name in sorted(stored.keys() & given.keys()) if not _alike(stored[name], given[name])]


def _alike(first: Sequence[float], second: Sequence[float]) -> bool:
    largest = 2 * math.sqrt(first[0] * first[2])  # that the sum can be
    return (
        first[0] == second[0]
        and math.isclose(first[1], second[1], rel_tol=0, abs_tol=1e-4 * largest)
        and math.isclose(first[2], second[2], rel_tol=1e-4)
    )


def copied(network: Module) -> Module:
    """Returns a deep copy, also of a network that keeps tensors which were computed; those come without history."""
    return copy.deepcopy(network, without_history(network))


def keep_usual_layout(network: nn.Module) -> None:
    """Trains convolutions of single pixels with a stride and few channels in torch's usual layout, also among others.

    In channels_last, oneDNN computes the gradient of their weights outside of its memory where they take less than 16
    channels, which ends the process (torch 2.14, AVX-512). The stems of RepVGG and MobileOne have such.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or module.in_channels >= FEW_CHANNELS:
            continue
        if max(module.kernel_size) == 1 and max(module.stride) > 1:
            for parameter in module.parameters():
                old = parameter.data  # whose strides, of one pixel, pass for both layouts
                parameter.data = torch.empty_like(old, memory_format=torch.contiguous_format).copy_(old)
            if _in_usual_layout not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_in_usual_layout)


def _in_usual_layout(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not torch.is_grad_enabled() or not inputs or inputs[0].device.type != "cpu":
        return None
    return (inputs[0].contiguous(), *inputs[1:])


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
