"""The layers, blocks and classifier of a 2D network, found by watching it run before it is inflated.

Two runs, on batches of two and of three images, show on which axis each layer has the images, also where tokens come
first, or where windows are folded into the batch. Layers are told by what they hold and do, not by their class's name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.inflation.blocks import find_blocks, is_list, parallel_lists
from stvid.inflation.outputs import Reader, Wish, find_reader, tensors_of
from stvid.inflation.sites import IMAGES, MORE, SAME, Site, find_sites
from stvid.inflation.watching import Call, Record, has_own_weights, watched

__all__ = ["MIXED", "Anatomy", "Observed", "examine", "images_for", "in_words", "no_training"]

MIXED = 1e-4  # how much what an image gives may change, relatively, with the other images of its batch


@dataclass
class Anatomy:
    """The parts of a 2D network, as `examine` found them.

    Attributes:
        layers: Layers with weights in the order in which they ran, without the classifier, and without those that the
            logits do not depend on.
        sites: All modules by name, in the order in which they ran.
        blocks: The repeated units of the network (`find_blocks`) in the order in which they ran. One that does not take
            whole frames (windows, patches) is represented by the next larger module that does, a list by its first
            member.
        attention: The modules in which attention happens, or what stands for them, in the order in which they ran.
        classifiers: Names of the modules whose outputs, averaged, are the logits; empty if the classifier has another
            form.
        logits: Names of all layers that make one output per class, in the order in which they ran; empty if no layer
            does, as in a network without classifier.
        num_classes: Logits; 0 if the network says that it has no classifier.
        width: Channels of what the network returns.
        reader: Where that is in the network's output.
        last_map: Name of the module that made the last map with several places, and the shape of that; None if no
            module returned one.
        notes: Remarks for the report.
    """

    layers: list[Site] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    blocks: list[Site] = field(default_factory=list)
    attention: list[Site] = field(default_factory=list)
    classifiers: list[str] = field(default_factory=list)
    logits: list[str] = field(default_factory=list)
    num_classes: int = 0
    width: int = 0
    reader: Reader = field(default_factory=Reader)
    last_map: tuple[str, tuple[int, ...]] | None = None
    notes: list[str] = field(default_factory=list)

    def block_of(self, name: str) -> Site | None:
        """Returns the block that a layer is in."""
        return next((block for block in self.blocks if name.startswith(f"{block.block}.")), None)

    def behind_blocks(self) -> list[str]:
        """Returns the names of the modules that ran after the last block, such as a final norm."""
        names = list(self.sites)
        inside = [index for index, name in enumerate(names) if self.block_of(name) is not None]
        return names[inside[-1] + 1 :] if inside else []


@dataclass
class Observed:
    """The first run of a 2D network, for all that is compared with it; `examine` fills it in.

    Attributes:
        images: Two images, as they were given.
        logits: (2, classes).
        blocks: The output of each block that gives its images on the first axis, by its name.
        overwrites: Whether the network changed the images.
        folds: Whether the second run, in which the images stood elsewhere in a larger batch, showed that the logits of
            an image depend on that image alone; False if it did not show in what the classifier sees.
    """

    images: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    blocks: dict[str, Tensor] = field(default_factory=dict)
    overwrites: bool = False
    folds: bool = False


# --- blocks -----------------------------------------------------------------------------------------------------------


def _blocks_that_ran(network: nn.Module, sites: Mapping[str, Site], record: Record) -> list[Site]:
    blocks: dict[str, Site] = {}
    found = find_blocks(network, parallel_lists(network, record))
    for block in found:
        if is_list(network.get_submodule(block)):
            member = _first_that_sees(network, block, sites)
            if member is not None:
                blocks[block] = replace(sites[member], block=block)
                continue
        name = block
        while name and not (name in sites and sites[name].sees_frames and not is_list(network.get_submodule(name))):
            name = name.rpartition(".")[0]
        holds_all = len(found) > 1 and all(other.startswith(f"{name}.") for other in found)
        if name and not holds_all:  # such as the encoder of an `EncoderClassifier`
            blocks[name] = replace(sites[name], block=name)
    order = list(sites)
    # What stands for a unit that sees windows can hold other blocks; it is then a stage.
    inner = [
        block
        for block in blocks.values()
        if not any(other.startswith(f"{block.block}.") for other in blocks if other != block.block)
    ]
    return sorted(inner, key=lambda block: order.index(block.name))


def _first_that_sees(network: nn.Module, name: str, sites: Mapping[str, Site]) -> str | None:
    """Returns a list that runs and sees frames, or the first of its members that does."""
    if name in sites:
        return name if sites[name].sees_frames else None
    below = [other for other in sites if other.startswith(f"{name}.") and sites[other].sees_frames]
    return next((other for other in below if not is_list(network.get_submodule(other))), None)


# --- the run ----------------------------------------------------------------------------------------------------------


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


def in_words(error: BaseException) -> str:
    """Returns an error of a network's own code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def images_for(network: nn.Module, shape: tuple[int, int, int, int]) -> Tensor:
    """Returns noise on the device and in the type of a network's first convolution or linear layer."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    weights = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    real = [value for value in [*weights, *network.parameters()] if value.is_floating_point()]
    if not real:
        return images
    return images.to(real[0].device, real[0].dtype if weights else torch.float32)


def examine(
    network: nn.Module,
    img_size: tuple[int, int],
    *,
    in_chans: int = 3,
    name: str = "the network",
    as_features: bool = False,
    logits_at: int | str | Sequence[int | str] | None = None,
    observed: Observed | None = None,
) -> Anatomy:
    """Runs a 2D network on noise, on two images and on three, and notes what its layers see.

    Modules that could be classifiers give noise as their output in the second run, since the classifiers of untrained
    networks are often zero, and the logits could not be told apart.

    Args:
        network: Takes (N, in_chans, H, W) and returns logits (N, classes), alone or among other things.
        img_size: (height, width) in pixels.
        in_chans: Channels of an image.
        name: How messages call the network.
        as_features: Whether the network may return maps or tokens, since it gets a new classifier.
        logits_at: Which of the network's outputs the logits are; None finds them.
        observed: Gets what the first run shows; None keeps nothing.

    Raises:
        ConfigError: If the network cannot be run like this, or does not return logits.
    """
    if next(network.parameters(), None) is None:
        raise ConfigError(f"{name}: has no parameters to inflate")
    more = images_for(network, (MORE, in_chans, *img_size))
    images = more[list(SAME)]
    given = images.clone()
    declared = getattr(network, "num_classes", None)
    declared = declared if isinstance(declared, int) and not isinstance(declared, bool) and declared >= 0 else None
    with no_training(network):
        record = _run(network, given, name, keep=_compared(network) if observed is not None else ())
        depth = functools.partial(_layers_before, network, record)
        wish = Wish(declared, as_features=as_features, path=logits_at, depth=depth)
        reader = find_reader(record.output, IMAGES, wish=wish, name=name)
        logits = reader(record.output)
        anatomy = Anatomy(width=logits.shape[1], reader=reader)
        anatomy.num_classes = 0 if declared == 0 or (as_features and reader.features) else anatomy.width
        reached = record.before(record.numbers[id(tensor)] for tensor in _read(reader, record.output))
        candidates = _could_classify(network, record, reached, anatomy.width)
        again, noise = _run_again(network, more, name, candidates, anatomy.width)
        classified = reader(again.output)
    anatomy.sites = find_sites(
        network, record, again, record.behind([record.image]) if record.image in reached else None
    )
    dead = _dead(record, reached)
    anatomy.blocks = [block for block in _blocks_that_ran(network, anatomy.sites, record) if block.name not in dead]
    anatomy.attention = [site for site in _find_attention(network, anatomy, record) if site.name not in dead]
    made_by = _averaged(noise, classified) if anatomy.num_classes else []
    anatomy.classifiers = made_by if _can_be_taken(network, record, made_by) else []
    if anatomy.num_classes:
        anatomy.logits = made_by or _makers(network, anatomy, record, dead, declared)
    anatomy.layers = [
        site for site in _layers(network, anatomy.sites) if site.name not in anatomy.logits and site.name not in dead
    ]
    anatomy.last_map = _last_map(record)
    if observed is not None:
        observed.images, observed.logits = images, logits
        observed.overwrites = not torch.equal(given, images)
        observed.blocks = _outputs_of_blocks(anatomy, record)
        seen = [(record.calls[site][0].vector, again.calls[site][0].vector) for site in made_by]
        if not noise:
            seen = [(logits, classified)]
        observed.folds = not observed.overwrites and bool(seen) and all(_alike(*both) for both in seen)
    if not reader.plain:
        anatomy.notes.append(f"the network returns a {type(record.output).__name__}; taken from it: {reader}")
    return anatomy


def _compared(network: nn.Module) -> set[str]:
    """Returns the names of the modules that could stand for blocks, whose outputs are compared in the proof."""
    found: set[str] = set()
    for block in find_blocks(network):
        inside = [block] if not is_list(network.get_submodule(block)) else _members_of_lists(network, block)
        found.update(*(_parents(name) for name in inside), inside)
    return found


def _members_of_lists(network: nn.Module, name: str) -> list[str]:
    """Returns a module, or if it is a list the modules in it and in lists in it."""
    module = network.get_submodule(name)
    if not is_list(module):
        return [name]
    return [part for child, _ in module.named_children() for part in _members_of_lists(network, f"{name}.{child}")]


def _outputs_of_blocks(anatomy: Anatomy, record: Record) -> dict[str, Tensor]:
    """Returns what the blocks gave that have the images on the first axis, and no logits inside."""
    within = {parent for name in anatomy.logits for parent in _parents(name)}  # the model has those elsewhere
    blocks = {block.name for block in anatomy.blocks if block.batch_axis == 0 and block.name not in within}
    return {name: output for name, output in record.kept.items() if name in blocks and len(output) == IMAGES}


def _last_map(record: Record) -> tuple[str, tuple[int, ...]] | None:
    """Returns the module that made the last map with several places, and its shape; None if there is no such map.

    Behind the pooling, maps have one place.
    """
    maps = [
        (call.order, name, call.output)
        for name, calls in record.calls.items()
        for call in calls
        if call.whole and call.output is not None and len(call.output) == 4 and sorted(call.output[1:])[1] > 1
    ]
    _, name, shape = max(maps, default=(0, "", ()))
    return (name, shape) if shape and shape[0] == IMAGES else None


def _alike(first: Tensor | None, second: Tensor | None) -> bool:
    """Returns whether the images of the first run gave the same in the second, where they have changed places."""
    if first is None or second is None or first.is_meta or len(second) != MORE:
        return False
    return (first - second[list(SAME)]).abs().max().item() <= MIXED * first.abs().max().item()


def _layers_before(network: nn.Module, record: Record, tensor: Tensor) -> int:
    """Returns how many layers with weights lead to a tensor of the output."""
    reached = record.before([record.numbers[id(tensor)]])
    return sum(
        has_own_weights(network.get_submodule(name)) and any(reached.intersection(call.gave) for call in calls)
        for name, calls in record.calls.items()
    )


def _read(reader: Reader, output: Any) -> list[Tensor]:
    found = tensors_of(output)
    return [found[path] for path in reader.paths]


def _run(network: nn.Module, images: Tensor, name: str, **options: Any) -> Record:
    try:
        return watched(network, images, **options)
    except Exception as error:  # whatever a network's own code raises
        raise ConfigError(f"{name}: does not take images {tuple(images.shape)} ({in_words(error)})") from error


def _run_again(
    network: nn.Module, images: Tensor, name: str, candidates: Sequence[str], width: int
) -> tuple[Record, dict[str, Tensor]]:
    """Runs a network on more images, with noise as the output of what could be a classifier; returns that noise."""
    generator = torch.Generator().manual_seed(0)
    noise: dict[str, Tensor] = {}

    def make_noise(site: str, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.shape != (len(images), width):
            return None
        noise[site] = torch.randn(output.shape, generator=generator).to(output)
        return noise[site]

    with ExitStack() as hooks:
        for site in candidates:
            module = network.get_submodule(site)
            handle = module.register_forward_hook(lambda module, inputs, output, site=site: make_noise(site, output))
            hooks.callback(handle.remove)
        record = _run(network, images, name, functions=False)
    return record, noise


# --- layers -----------------------------------------------------------------------------------------------------------


def _layers(network: nn.Module, sites: Mapping[str, Site]) -> list[Site]:
    """Returns convolutions, linear layers, and layers of the user's own that have weights and contain none of these."""
    whole = [name for name, site in sites.items() if isinstance(network.get_submodule(name), nn.Conv2d | nn.Linear)]
    seeing = {name for name in whole if sites[name].sees_frames}
    own = [
        name
        for name, site in sites.items()
        if name not in whole and site.sees_frames and has_own_weights(network.get_submodule(name))
    ]
    parents = {parent for name in (*seeing, *own) for parent in _parents(name)}
    inner = {name for name in whole if any(parent in own and parent not in parents for parent in _parents(name))}
    chosen = {*whole, *(name for name in own if name not in parents)} - inner
    return [site for name, site in sites.items() if name in chosen]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _dead(record: Record, reached: set[int]) -> set[str]:
    """Returns the modules that ran, but that the logits do not depend on; none if that could not be followed."""
    if record.image not in reached:
        return set()
    return {name for name, calls in record.calls.items() if not any(reached.intersection(call.gave) for call in calls)}


# --- attention --------------------------------------------------------------------------------------------------------


def _named_heads(module: nn.Module) -> int | None:
    """Returns the number of heads that a module says it has."""
    heads = getattr(module, "num_heads", None)
    return heads if isinstance(heads, int) and not isinstance(heads, bool) and heads > 0 else None


def _find_attention(network: nn.Module, anatomy: Anatomy, record: Record) -> list[Site]:
    """Returns the modules in which attention happens, by the softmax that was seen or the heads that they name."""
    found: dict[str, int] = {}
    for attending in record.attending:
        inside = [name for name in attending.inside if next(network.get_submodule(name).parameters(), None) is not None]
        if inside:
            found[inside[-1]] = max(attending.heads, found.get(inside[-1], 0))
    for name in anatomy.sites:
        module = network.get_submodule(name)
        named = _named_heads(module)
        if named is not None and not any(_named_heads(part) for part in module.modules() if part is not module):
            found[name] = named
    return [replace(site, heads=found[name]) for name, site in anatomy.sites.items() if name in found]


# --- the classifier ---------------------------------------------------------------------------------------------------


def _could_classify(network: nn.Module, record: Record, reached: set[int], width: int) -> list[str]:
    """Returns the modules that have weights themselves, make one vector of logits, and that the logits depend on."""
    found = []
    for name, calls in record.calls.items():
        call = calls[0]
        fits = len(calls) == 1 and call.alone and len(call.shape) == 2 and call.shape[0] == IMAGES
        if fits and call.output == (IMAGES, width) and reached.intersection(call.gave):
            module = network.get_submodule(name)
            if isinstance(module, nn.Linear) or has_own_weights(module):
                found.append(name)
    inner = {parent for name in found for parent in _parents(name)}
    return [name for name in found if name not in inner]


def _averaged(outputs: Mapping[str, Tensor], logits: Tensor) -> list[str]:
    """Returns the modules whose mean output the logits are."""
    names = list(outputs)
    if not names:
        return []
    for chosen in ([names] if len(names) > 1 else []) + [[name] for name in reversed(names)]:
        mean = torch.stack([outputs[name] for name in chosen]).mean(0)
        if logits.is_meta or torch.allclose(mean, logits):
            return chosen
    return []


def _can_be_taken(network: nn.Module, record: Record, names: Sequence[str]) -> bool:
    """Returns whether classifiers can be moved out of the network.

    They have to stay where the network computes with their weights elsewhere. Several become one layer, so they must be
    plain linear layers.
    """
    if any(name in record.used_elsewhere for name in names):
        return False
    found = [network.get_submodule(name) for name in names]
    return len(found) < 2 or all(
        type(part) is nn.Linear and not (part._forward_hooks or part._forward_pre_hooks or part._modules)
        for part in found
    )


def _makers(network: nn.Module, anatomy: Anatomy, record: Record, dead: set[str], declared: int | None) -> list[str]:
    """Returns the layers within the network that make one output per class, with nothing that has weights behind them.

    A last convolution that makes features looks the same. It counts if the network says that it has as many classes, or
    if it sees each place alone, as the classifiers of networks without linear layers do.
    """
    said = declared == anatomy.width
    found = []
    for name, calls in record.calls.items():
        module: Any = network.get_submodule(name)
        width = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
        if name in dead or not isinstance(module, nn.Conv2d | nn.Linear) or width != anatomy.width:
            continue
        alone = isinstance(module, nn.Linear) or tuple(module.kernel_size) == (1, 1)
        if (said or alone) and not _weights_behind(network, record, name, calls):
            found.append(name)
    return found


def _weights_behind(network: nn.Module, record: Record, name: str, calls: Sequence[Call]) -> bool:
    made = record.behind(number for call in calls for number in call.gave)
    for other, later in record.calls.items():
        if other == name or name.startswith(f"{other}."):
            continue
        if any(value is not None for value in network.get_submodule(other)._parameters.values()) and any(
            made.intersection(call.inputs) for call in later
        ):
            return True
    return False
