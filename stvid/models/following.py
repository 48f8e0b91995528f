"""Finds which batch norm stands beside which convolution in a network, by following one forward pass.

Native models say it themselves (`stvid.models.base.VideoModel.norm_pairs`); the networks of other libraries, wrapped or
inflated, cannot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stvid.errors import StvidError

__all__ = ["follow_norms"]


class _Consumers(TorchDispatchMode):
    """Counts how many operations take each watched tensor; a norm counts as one, whatever it does inside."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # kept alive, so that no other tensor gets the same id
        self.uses: dict[int, int] = {}
        self.norm: nn.Module | None = None

    def watch(self, tensor: Tensor) -> None:
        """Starts counting the uses of a tensor."""
        self.watched[id(tensor)] = tensor
        self.uses[id(tensor)] = 0

    def use(self, value: Any) -> None:
        """Counts a use of every watched tensor in nested lists of arguments."""
        for leaf in tree_leaves(value):
            if id(leaf) in self.watched:
                self.uses[id(leaf)] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.norm is None:
            self.use((args, kwargs))
        return func(*args, **(kwargs or {}))


class _Record:
    """The convolutions and norms of a network, as one forward pass shows them.

    Attributes:
        consumers: Counts the uses of their outputs.
        makers: The module that made each output.
        runs: How often each module ran.
        inputs: The tensor that each module took, if a convolution or a norm made it.
    """

    def __init__(self) -> None:
        self.consumers = _Consumers()
        self.makers: dict[int, nn.Module] = {}
        self.runs: dict[nn.Module, int] = {}
        self.inputs: dict[nn.Module, Tensor | None] = {}

    def watch(self, module: nn.Module) -> list[Any]:
        """Hooks onto a convolution or a norm; returns the handles."""
        norm = isinstance(module, _BatchNorm)

        def before(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.runs[module] = self.runs.get(module, 0) + 1
            self.inputs[module] = self.consumers.watched.get(id(arguments[0]))
            if norm:
                self.consumers.use(arguments[0])
                self.consumers.norm = module

        def behind(_: nn.Module, arguments: Any, output: Any) -> None:
            if norm:
                self.consumers.norm = None
            self.makers[id(output)] = module
            self.consumers.watch(output)

        # Before hooks of others, which may replace the output.
        return [module.register_forward_pre_hook(before), module.register_forward_hook(behind, prepend=True)]

    def alone(self, module: nn.Module) -> nn.Module | None:
        """Returns the module whose output only this one takes; None if there is none, or either ran more than once."""
        tensor = self.inputs.get(module)
        maker = None if tensor is None else self.makers[id(tensor)]
        if maker is None or self.consumers.uses[id(tensor)] != 1:
            return None
        return maker if self.runs[module] == self.runs[maker] == 1 else None


def follow_norms(model: nn.Module, clip_shape: tuple[int, ...], clip: Tensor | None = None) -> list[tuple[str, str]]:
    """Returns which batch norm stands beside which convolution.

    Args:
        model: A model in evaluation mode that takes clips.
        clip_shape: (B, C, T, H, W) of a clip that the model takes. The pass runs with it on torch's meta device, which
            computes nothing.
        clip: A clip to run the pass with instead, on the model's own device.

    Returns:
        Pairs of names, (convolution, norm) or (norm, convolution): nothing else takes the tensor between the two, and
        both run once.

    Raises:
        StvidError: If the forward pass fails.
    """
    record = _Record()
    names = {module: name for name, module in model.named_modules()}
    layers = [part for part in names if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | _BatchNorm)]
    handles = [handle for layer in layers for handle in record.watch(layer)]
    try:
        with record.consumers:
            record.consumers.use(_run(model, clip_shape, clip))
    finally:
        for handle in handles:
            handle.remove()
    pairs = [(record.alone(layer), layer) for layer in layers]
    return [
        (names[first], names[second])
        for first, second in pairs
        if first is not None and isinstance(first, _BatchNorm) != isinstance(second, _BatchNorm)
    ]


def _run(model: nn.Module, clip_shape: tuple[int, ...], clip: Tensor | None) -> Any:
    try:
        with torch.no_grad():
            if clip is not None:
                return model(clip)
            dtype = next(value.dtype for value in model.parameters() if value.is_floating_point())
            state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            weights = {name: value.to("meta") for name, value in state.items()}
            return torch.func.functional_call(model, weights, torch.empty(clip_shape, dtype=dtype, device="meta"))
    except Exception as error:  # whatever a model's own code raises
        raise StvidError(f"{type(model).__name__} cannot be followed: {' '.join(str(error).split())[:200]}") from error
