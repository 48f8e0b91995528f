"""Freezing: parameters that get no gradient, and modules that are kept in evaluation mode."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stvid.errors import ConfigError, nearest
from stvid.models.base import VideoModel

__all__ = ["backbone_parameters", "freeze", "keep_frozen_still"]


def freeze(model: VideoModel, modules: Sequence[str]) -> None:
    """Excludes the parameters from training whose names begin with one of these module names.

    Raises:
        ConfigError: If there is no such module, or nothing is left to train.
    """
    for module in modules:
        parameters = [parameter for name, parameter in model.named_parameters() if f"{name}.".startswith(f"{module}.")]
        if not parameters:
            if any(name == module for name, _ in model.named_modules()):
                raise ConfigError(f"model.frozen: {module!r} of {type(model).__name__} has no parameters; leave it out")
            hint = nearest(module, [name for name, _ in model.named_modules() if name])
            raise ConfigError(f"model.frozen: {module!r} is not a module of {type(model).__name__}{hint}")
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("model.frozen: nothing is left to train")


def _head_modules(model: VideoModel) -> list[nn.Module]:
    """Returns the modules that make the head: the whole head, and the classifier, which may lie within the network."""
    return [module for module in (model.head, model.get_classifier()) if next(module.parameters(), None) is not None]


def backbone_parameters(model: VideoModel) -> list[nn.Parameter]:
    """Returns the parameters outside the head that are trained."""
    head = {id(parameter) for module in _head_modules(model) for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in head]


def keep_frozen_still(model: VideoModel, *, head_only: bool = False) -> None:
    """Puts what is frozen into evaluation mode, in a model that is in training mode.

    These are the modules all of whose parameters are frozen, with everything in them: batch norms keep their
    statistics, dropout and stochastic depth drop nothing. If nothing outside the head is trained, these are all modules
    outside the head, so that the features of a clip are always the same.

    Args:
        model: The model, in training mode.
        head_only: Whether the head alone is trained at the moment, whatever the parameters say.
    """
    if head_only or not backbone_parameters(model):
        model.eval()
        for module in _head_modules(model):
            module.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
