"""The layers, blocks and classifier of a 2D network, found by watching it run before it is inflated.

Two runs, on batches of two and of three images, show on which axis each layer has the images, also where tokens come
first, or where windows are folded into the batch. Layers are told by what they hold and do, not by their class's name.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.inflation.outputs import Reader, Wish, find_reader, tensors_of
from stvid.inflation.watching import Call, Record, has_own_weights, watched

__all__ = ["MIXED", "Anatomy", "Observed", "Site", "examine", "find_blocks", "images_for", "in_words", "no_training"]

IMAGES = 2  # in the first batch
MORE = 3  # in the second, of which the last are those of the first, where a single image does not do
MIXED = 1e-4  # how much what an image gives may change, relatively, with the other images of its batch


@dataclass(frozen=True)
class Site:
    """A layer or block that ran, with its first tensor.

    Attributes:
        name: Dotted name in the network.
        shape: Shape of its first tensor, with the images on the first axis if it is known where they are.
        channels_first: Whether its channels are the tensor's axis 1, images first; else they are the last.
        batch_axis: The axis of the images, where it has one entry for each image, in all calls; else None.
        argument: Position or keyword of the tensor.
        output: Shape of what it returns, images first; None if that is no tensor with the images on the same axis.
        output_first: Whether the channels of the output are its axis 1.
        block: Name of the block that the site stands for; its own name, or that of the list that it is in.
        at_stem: Whether it takes the image, or what was made of it without any layer.
        heads: Heads of the attention that happens in it; None if there is no attention, 0 if their number is unknown.
        read: Whether others use its weights, or read their shape.
        windows: How many windows of each image follow each other on the first axis, where that has no images; else 0.
        of_image: Whether the tensor is made of the image, unlike learned queries that are repeated for each.
    """

    name: str
    shape: tuple[int, ...]
    channels_first: bool
    batch_axis: int | None = 0
    argument: int | str = 0
    output: tuple[int, ...] | None = None
    output_first: bool = True
    block: str = ""
    at_stem: bool = False
    heads: int | None = None
    read: bool = False
    windows: int = 0
    of_image: bool = True

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.shape[1 if self.channels_first else -1]

    @property
    def output_channels(self) -> int:
        """Channels of the output."""
        assert self.output is not None
        return self.output[1 if self.output_first else -1]

    @property
    def sees_frames(self) -> bool:
        """Whether the input is made of the frames, with one entry for each, and more than one place in it."""
        places = self.shape[2:] if self.channels_first else self.shape[1:-1]
        several = len(self.shape) > 2 and torch.Size(places).numel() > 1
        return self.batch_axis is not None and several and self.of_image


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


def find_blocks(network: nn.Module, parallel: Sequence[str] = ()) -> list[str]:
    """Returns the names of the repeated units of a network, such as its residual or transformer blocks.

    That is each module beneath a list of modules that holds at least two layers with weights and does not contain
    repeated units itself (then it is a stage). A list counts if it is one of several in a list whose members have the
    same sequence of classes, such as the pairs of attention and MLP in many transformers.

    Args:
        network: Any module.
        parallel: Names of lists whose members take the same input, so that they are branches and no repeated units.
    """
    found: list[str] = []
    branches = {id(network.get_submodule(name)) for name in parallel}

    def visit(name: str, module: nn.Module, in_list: bool) -> None:
        if (in_list or _is_unit(module)) and not _has_repeats(module, branches):
            found.append(name)
            return
        repeated = _repeated_lists(module, branches)
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child, id(child) in repeated)

    repeated = _repeated_lists(network, branches)
    for name, child in network.named_children():
        visit(name, child, id(child) in repeated)
    return found


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _is_weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) or has_own_weights(module)


def _count_layers(module: nn.Module) -> int:
    """Counts layers with weights; one that has weights itself and smaller layers inside, as a gate, counts once."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return 1
    below = sum(map(_count_layers, module.children()))
    return max(1, below) if has_own_weights(module) else below


def _is_unit(module: nn.Module) -> bool:
    return not _is_list(module) and _count_layers(module) >= 2


def _signature(module: nn.Module) -> Any:
    """Returns the class of a module, or the sequence of the classes of a list's members."""
    return tuple(map(_signature, module.children())) if _is_list(module) else type(module)


def _repeated_lists(parent: nn.Module, branches: set[int]) -> set[int]:
    """Returns the ids of those lists in a list that hold at least two layers and repeat each other.

    A list with a single unit in it is a stage of one block.
    """
    if not _is_list(parent) or id(parent) in branches:
        return set()
    lists = [
        child
        for child in parent.children()
        if _is_list(child) and _count_layers(child) >= 2 and sum(map(_is_unit, child.children())) != 1
    ]
    kinds = Counter(map(_signature, lists))
    return {id(child) for child in lists if kinds[_signature(child)] >= 2}


def _has_repeats(module: nn.Module, branches: set[int]) -> bool:
    for part in module.modules():
        kinds = Counter(type(child) for child in _flattened(part) if _is_unit(child))
        if any(count >= 2 for count in kinds.values()) or _repeated_lists(part, branches):
            return True
    return False


def _flattened(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the children of a module, and of lists among them their members: stages of one block each."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from _flattened(child)
        else:
            yield child


def _parallel_lists(network: nn.Module, record: Record) -> list[str]:
    """Returns the names of the lists whose members ran side by side on one tensor."""
    found = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        taken = [_first_taken(f"{name}.{child}" if name else child, part, record) for child, part in _members(module)]
        taken = [number for number in taken if number is not None]
        if len(taken) >= 2 and len(set(taken)) < len(taken):
            found.append(name)
    return found


def _members(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(module.named_children())


def _first_taken(name: str, module: nn.Module, record: Record) -> int | None:
    """Returns the number of the tensor that a module took, or the first member of a list that did not run itself."""
    if name in record.calls:
        return record.calls[name][0].took
    for child, part in _members(module) if _is_list(module) else []:
        if (number := _first_taken(f"{name}.{child}", part, record)) is not None:
            return number
    return None


def _blocks_that_ran(network: nn.Module, sites: Mapping[str, Site], record: Record) -> list[Site]:
    blocks: dict[str, Site] = {}
    found = find_blocks(network, _parallel_lists(network, record))
    for block in found:
        if _is_list(network.get_submodule(block)):
            member = _first_that_sees(network, block, sites)
            if member is not None:
                blocks[block] = replace(sites[member], block=block)
                continue
        name = block
        while name and not (name in sites and sites[name].sees_frames and not _is_list(network.get_submodule(name))):
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
    return next((other for other in below if not _is_list(network.get_submodule(other))), None)


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
    """Runs a 2D network on noise, on two images and on one, and notes what its layers see.

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
    images = more[-IMAGES:].clone()
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
        again, noise = _run_again(network, more, name, candidates, anatomy.width, record)
        classified = reader(again.output)
    anatomy.sites = _sites(network, record, again, record.behind([record.image]) if record.image in reached else None)
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
        inside = [block] if not _is_list(network.get_submodule(block)) else _members_of_lists(network, block)
        found.update(*(_parents(name) for name in inside), inside)
    return found


def _members_of_lists(network: nn.Module, name: str) -> list[str]:
    """Returns a module, or if it is a list the modules in it and in lists in it."""
    module = network.get_submodule(name)
    if not _is_list(module):
        return [name]
    return [part for child, _ in _members(module) for part in _members_of_lists(network, f"{name}.{child}")]


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
    """Returns whether the images that both runs end with gave the same."""
    if first is None or second is None or first.is_meta:
        return False
    same = min(len(first), len(second))
    return (first[-same:] - second[-same:]).abs().max().item() <= MIXED * first.abs().max().item()


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
    network: nn.Module, images: Tensor, name: str, candidates: Sequence[str], width: int, record: Record
) -> tuple[Record, dict[str, Tensor]]:
    """Runs a network on the last image alone, or where it then does other things than before, on more images.

    What could be a classifier gives noise.

    Returns:
        What it did, and that noise.
    """
    try:
        again, noise = _run_with_noise(network, images[-1:].clone(), name, candidates, width)
    except ConfigError:  # it does not take one image
        return _run_with_noise(network, images, name, candidates, width)
    if _ranks(again) == _ranks(record):
        return again, noise
    return _run_with_noise(network, images, name, candidates, width)


def _ranks(record: Record) -> dict[str, list[tuple[Any, ...]]]:
    """Returns for all calls of modules of how many axes the tensors were: fewer where axes of one entry are dropped."""
    return {
        name: [
            ({place: len(shape) for place, shape in call.shapes.items()}, call.output and len(call.output))
            for call in calls
        ]
        for name, calls in record.calls.items()
    }


def _run_with_noise(
    network: nn.Module, images: Tensor, name: str, candidates: Sequence[str], width: int
) -> tuple[Record, dict[str, Tensor]]:
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


# --- sites ------------------------------------------------------------------------------------------------------------


def _sites(network: nn.Module, record: Record, again: Record, made: set[int] | None) -> dict[str, Site]:
    """Puts the two runs together; `made` are the tensors that are made of the image, None if that is not known."""
    sites = {}
    read = record.used_elsewhere | record.read_elsewhere
    heads: dict[str, int] = {}
    for attending in record.attending:
        for name in attending.inside:
            heads[name] = max(attending.heads, heads.get(name, 0))
    for name, calls in record.calls.items():
        first = calls[0]
        if first.argument is None or len(first.shape) < 2:
            continue
        module = network.get_submodule(name)
        axis = _common_axis(calls, again.calls.get(name, []), again.batch)
        shape = _images_first(first.shape, axis)
        output, output_first = None, True
        out_axis = _output_axis(calls, again.calls.get(name, []), again.batch)
        if axis is not None and axis == out_axis and first.output is not None:
            output = _images_first(first.output, axis)
            output_first = _channels_of_output(module, output)
        sites[name] = Site(
            name,
            shape,
            _channels_first(module, shape),
            batch_axis=axis,
            argument=first.argument,
            output=output,
            output_first=output_first,
            block=name,
            at_stem=all(call.at_stem for call in calls),
            heads=heads.get(name),
            read=name in read,
            windows=_windows(first, again.calls.get(name, []), again.batch) if len(calls) == 1 and axis is None else 0,
            of_image=made is None or any(call.took in made for call in calls),
        )
    return sites


def _images_first(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else (shape[axis], *shape[:axis], *shape[axis + 1 :])


def _axis_of_images(first: Sequence[int] | None, second: Sequence[int] | None, batch: int) -> int | None:
    """Returns the axis on which a tensor has one entry for each image, judged by its shapes in both runs."""
    if first is None or second is None or len(first) != len(second):
        return None
    changing = [axis for axis, (before, after) in enumerate(zip(first, second, strict=True)) if before != after]
    fits = len(changing) == 1 and (first[changing[0]], second[changing[0]]) == (IMAGES, batch)
    return changing[0] if fits else None


def _common_axis(calls: Sequence[Call], again: Sequence[Call], batch: int) -> int | None:
    """Returns the axis of the images that all calls of a module have in common, in the same argument."""
    if len(calls) != len(again):
        return None
    axes = {
        _axis_of_images(first.shape, None if first.argument is None else second.shapes.get(first.argument), batch)
        for first, second in zip(calls, again, strict=True)
    }
    same = len({(call.argument, len(call.shape)) for call in calls}) == 1
    return axes.pop() if len(axes) == 1 and same else None


def _windows(first: Call, again: Sequence[Call], batch: int) -> int:
    """Returns how many windows of one image follow each other on the first axis, before those of the next; 0 if none.

    Both runs end with the same images, so that they have the same entries last.
    """
    if len(again) != 1 or not first.means or first.shape[1:] != again[0].shape[1:]:
        return 0
    count = len(first.means) // IMAGES
    means, more = torch.tensor(first.means), torch.tensor(again[0].means)
    if len(more) != batch * count or torch.allclose(means[:count], means[count:]):
        return 0
    same = min(batch, IMAGES) * count
    return count if torch.allclose(means[-same:], more[-same:], rtol=1e-3, atol=1e-5) else 0


def _output_axis(calls: Sequence[Call], again: Sequence[Call], batch: int) -> int | None:
    if len(calls) != len(again):
        return None
    axes = {_axis_of_images(first.output, second.output, batch) for first, second in zip(calls, again, strict=True)}
    return axes.pop() if len(axes) == 1 else None


def _channels_first(module: nn.Module, shape: Sequence[int]) -> bool:
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
        if has_own_weights(part):
            sizes = {size for own in part.parameters(recurse=False) for size in own.shape}
            return shape[1] in sizes or shape[-1] not in sizes
    return True


def _channels_of_output(module: nn.Module, shape: Sequence[int]) -> bool:
    """Says which axis of an output holds the channels."""
    if isinstance(module, nn.Linear) or len(shape) < 4:
        return False
    if isinstance(module, nn.Conv2d):
        return True
    return _channels_first(module, shape)


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
