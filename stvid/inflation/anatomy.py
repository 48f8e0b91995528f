"""The layers, blocks and classifier of a 2D network, found by running it once before it is inflated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stvid.errors import ConfigError

__all__ = ["Anatomy", "Site", "examine", "find_blocks", "no_training"]

IMAGES = 2  # that the network is run on; a layer sees whole frames if its batch is as large


@dataclass(frozen=True)
class Site:
    """A layer or block that ran, with its first input.

    Attributes:
        name: Dotted name in the network.
        shape: Shape of the first input.
        channels_first: Whether its channels are the input's axis 1; else they are the last.
    """

    name: str
    shape: tuple[int, ...]
    channels_first: bool

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.shape[1 if self.channels_first else -1]

    @property
    def sees_frames(self) -> bool:
        """Whether the input has one entry per frame, and more than one place in it."""
        places = self.shape[2:] if self.channels_first else self.shape[1:-1]
        return self.shape[0] == IMAGES and torch.Size(places).numel() > 1 and len(self.shape) > 2


@dataclass
class Anatomy:
    """The parts of a 2D network, as `examine` found them.

    Attributes:
        layers: Convolutions and linear layers in the order in which they ran, without the classifier.
        sites: All modules by name, in the order in which they ran.
        blocks: The repeated units of the network (`find_blocks`) in the order in which they ran. One that does not take
            whole frames (windows, patches) is represented by the next larger module that does.
        classifiers: Names of the layers whose outputs, averaged, are the logits; empty if the classifier has another
            form.
        logits: Names of all layers that make one output per class, in the order in which they ran.
        num_classes: Logits.
    """

    layers: list[Site] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    blocks: list[Site] = field(default_factory=list)
    classifiers: list[str] = field(default_factory=list)
    logits: list[str] = field(default_factory=list)
    num_classes: int = 0

    def block_of(self, name: str) -> Site | None:
        """Returns the block that a layer is in."""
        return next((block for block in self.blocks if name.startswith(f"{block.name}.")), None)

    def behind_blocks(self) -> list[str]:
        """Returns the names of the modules that ran after the last block, such as a final norm."""
        names = list(self.sites)
        inside = [index for index, name in enumerate(names) if self.block_of(name) is not None]
        return names[inside[-1] + 1 :] if inside else []


def find_blocks(network: nn.Module) -> list[str]:
    """Returns the names of the repeated units of a network, such as its residual or transformer blocks.

    That is each module beneath a list of modules that holds at least two convolutions or linear layers, is no mere list
    itself, and does not contain a list of such modules of one class (then it is a stage).
    """
    found: list[str] = []

    def visit(name: str, module: nn.Module) -> None:
        if _is_unit(module) and not _has_repeats(module):
            found.append(name)
            return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    for name, child in network.named_children():
        visit(name, child)
    return found


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _is_weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _is_unit(module: nn.Module) -> bool:
    return not _is_list(module) and sum(map(_is_weighted, module.modules())) >= 2


def _has_repeats(module: nn.Module) -> bool:
    for part in module.modules():
        kinds = Counter(type(child) for child in part.children() if _is_unit(child))
        if any(count >= 2 for count in kinds.values()):
            return True
    return False


@contextmanager
def no_training(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def examine(network: nn.Module, img_size: tuple[int, int], *, in_chans: int = 3, name: str = "the network") -> Anatomy:
    """Runs a 2D network once on noise and notes what its layers see.

    Layers that could be classifiers give noise as their output in this run, since the classifiers of untrained networks
    are often zero, and the logits could not be told apart.

    Args:
        network: Takes (N, in_chans, H, W) and returns logits (N, classes).
        img_size: (height, width) in pixels.
        in_chans: Channels of an image.
        name: How messages call the network.

    Raises:
        ConfigError: If the network cannot be run like this, or does not return logits.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ConfigError(f"{name}: has no parameters to inflate")
    device, dtype = parameter.device, parameter.dtype
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, in_chans, *img_size, generator=generator).to(device, dtype)
    with no_training(network):
        num_classes = _count_classes(network, images, name)
        sites: dict[str, Site] = {}
        outputs: dict[str, Tensor] = {}

        def note(site: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() >= 2 and site not in sites:
                sites[site] = Site(site, tuple(inputs[0].shape), _channels_first(module, inputs[0].shape))

        def make_noise(site: str, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor) or output.shape != (IMAGES, num_classes):
                return None
            outputs[site] = torch.randn(output.shape, generator=generator).to(output)
            return outputs[site]

        with ExitStack() as hooks:
            for site, module in network.named_modules():
                if not site:
                    continue
                handle = module.register_forward_pre_hook(lambda module, inputs, site=site: note(site, module, inputs))
                hooks.callback(handle.remove)
                if isinstance(module, nn.Linear) and module.out_features == num_classes:
                    handle = module.register_forward_hook(
                        lambda module, inputs, output, site=site: make_noise(site, output)
                    )
                    hooks.callback(handle.remove)
            logits = _run(network, images, name)
    layers = [site for site in sites.values() if _is_weighted(network.get_submodule(site.name))]
    anatomy = Anatomy(sites=sites, num_classes=num_classes)
    anatomy.blocks = _blocks_that_ran(network, sites)
    anatomy.classifiers = _averaged(outputs, logits)
    made = [site.name for site in layers if _makes_logits(network.get_submodule(site.name), num_classes)]
    last = set(anatomy.behind_blocks())  # VOLO classifies its patches too, and adds the largest of their logits
    anatomy.logits = anatomy.classifiers or [name for name in made if name in last or name in outputs] or made[-1:]
    anatomy.layers = [site for site in layers if site.name not in anatomy.logits]
    return anatomy


def _makes_logits(module: nn.Module, num_classes: int) -> bool:
    return num_classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))


def _run(network: nn.Module, images: Tensor, name: str) -> Tensor:
    try:
        logits = network(images)
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(f"{name}: does not take images {tuple(images.shape)} ({message})") from error
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"{name}: returns a {type(logits).__name__} for a batch of images, not logits (images, classes); detection "
            "and segmentation networks cannot be inflated"
        )
    if logits.dim() != 2 or logits.shape[0] != len(images):
        raise ConfigError(
            f"{name}: returns {tuple(logits.shape)} for {len(images)} images, not logits (images, classes)"
        )
    return logits


def _count_classes(network: nn.Module, images: Tensor, name: str) -> int:
    known = getattr(network, "num_classes", None)
    return known if isinstance(known, int) and known > 0 else _run(network, images, name).shape[1]


def _averaged(outputs: dict[str, Tensor], logits: Tensor) -> list[str]:
    """Returns the layers whose mean output the logits are."""
    names = list(outputs)
    if not names:
        return []
    for chosen in (names, names[-1:]):
        mean = torch.stack([outputs[name] for name in chosen]).mean(0)
        if logits.is_meta or torch.allclose(mean, logits):
            return chosen
    return []


def _channels_first(module: nn.Module, shape: torch.Size) -> bool:
    """Says which axis of an input holds the channels, by the first layer in a module that tells."""
    if len(shape) < 4:
        return False
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm):
            return True
        if isinstance(part, nn.Linear):  # an attention pool takes a map of channels apart before its first layer
            return part.in_features == shape[1] != shape[-1]
        if isinstance(part, nn.LayerNorm):  # timm's LayerNorm2d derives from it
            return part.normalized_shape[0] == shape[1] and not (
                part.normalized_shape[0] == shape[-1] and type(part) is nn.LayerNorm
            )
    return True


def _blocks_that_ran(network: nn.Module, sites: dict[str, Site]) -> list[Site]:
    blocks: dict[str, Site] = {}
    found = find_blocks(network)
    for name in found:
        while name and not (name in sites and sites[name].sees_frames and not _is_list(network.get_submodule(name))):
            name = name.rpartition(".")[0]
        holds_all = len(found) > 1 and all(block.startswith(f"{name}.") for block in found)
        if name and not holds_all:  # such as the encoder of an `EncoderClassifier`
            blocks[name] = sites[name]
    order = list(sites)
    return sorted(blocks.values(), key=lambda block: order.index(block.name))
