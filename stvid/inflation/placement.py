"""Which layers of a 2D network see other frames, and how they get to: `add_layers`, which builds `InflatedModel`.

Each mode (``shift``, ``conv``, ``attention``) has a default that fits most families, by the blocks that `examine`
found, and takes a pattern or names instead.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.inflation.anatomy import Anatomy, examine
from stvid.inflation.options import InflationOptions
from stvid.inflation.sites import Site
from stvid.inflation.temporal import (
    ClipTime,
    JointTime,
    TemporalAttention,
    TemporalConv,
    TemporalFilter,
    TemporalPool,
    TemporalShift,
    TemporalTransformer,
    attach,
)

__all__ = ["Guest", "add_layers", "attention_places", "has_attention", "replace"]

# Convolutions of a block's shortcut, by the names that timm, torchvision and others give them.
SHORTCUT = re.compile(r"downsample|shortcut|skip|\bsc\b|identity|proj_sc")


@dataclass
class Guest:
    """A 2D network in which layers get to see other frames.

    Attributes:
        network: The network without its classifier; `add_layers` changes it in place.
        name: How messages call the network.
        anatomy: The parts that `examine` found in it.
        options: How frames see each other.
        time: Frames of the clips, for all layers.
        num_features: Channels that the classifier sees.
        temporal: Gets the layers with weights that are attached to layers of the network.
        inflated: Gets the names of the layers that see other frames.
    """

    network: nn.Module
    name: str
    anatomy: Anatomy
    options: InflationOptions
    time: ClipTime
    num_features: int
    temporal: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    inflated: list[str] = field(default_factory=list)


def has_attention(network: nn.Module, img_size: tuple[int, int]) -> bool:
    """Returns whether attention happens in a 2D network where it sees whole frames; runs the network."""
    return bool(attention_places(examine(network, img_size)))


def attention_places(anatomy: Anatomy) -> list[Site]:
    """Returns the blocks in which attention happens, and for attention elsewhere what is around it, in order.

    That is the attention layer itself, or if it sees windows, what is around it and sees whole frames, if there is
    such a module.
    """
    places: dict[str, Site] = {}
    for attention in anatomy.attention:
        block = next((block for block in anatomy.blocks if _is_within(attention.name, block.block)), None)
        name = attention.name
        while block is None and name:
            site = anatomy.sites.get(name)
            if site is not None and site.sees_frames:
                block = site
            name = name.rpartition(".")[0]
        if block is None and attention.windows and attention.of_image:
            block = attention
        if block is not None:
            heads = max(places[block.name].heads or 0 if block.name in places else 0, attention.heads or 0)
            places[block.name] = dataclasses.replace(block, heads=heads)
    order = list(anatomy.sites)
    return sorted(places.values(), key=lambda site: order.index(site.name))


def _is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another, under all names that this has."""
    old = network.get_submodule(name)
    for other, found in list(network.named_modules(remove_duplicate=False)):
        if found is old:
            parent, _, leaf = other.rpartition(".")
            setattr(network.get_submodule(parent), leaf, module)


def _at(guest: Guest, site: Site) -> nn.Module:
    return guest.network.get_submodule(site.name)


def _choose(guest: Guest, sites: Sequence[Site], what: str) -> list[Site]:
    """Returns the sites whose names were asked for; all if there was no wish."""
    layers = guest.options.layers
    if layers is None:
        return list(sites)
    if isinstance(layers, str):
        pattern = _compiled(layers, "layers")
        chosen = [site for site in sites if pattern.search(site.name)]
        if not chosen:
            raise ConfigError(f"layers {layers!r}: matches no {what} of {guest.name}{_examples(sites)}")
        return chosen
    if not isinstance(layers, Sequence):
        raise ConfigError(f"layers {layers!r}: must be a regular expression, or a list of names")
    by_name = {site.name: site for site in sites}
    for name in layers:
        if name not in by_name:
            raise ConfigError(f"layers: {guest.name} has no {what} {name!r}{_examples(sites)}")
    return [by_name[name] for name in layers]


def _first_layers(guest: Guest, sites: Sequence[Site]) -> list[Site]:
    """Returns the first layer in each block, shortcuts left out; without blocks all layers but the stem."""
    if not guest.anatomy.blocks:
        return [site for site in sites if not site.at_stem]
    first: dict[str, Site] = {}
    for site in sites:
        block = guest.anatomy.block_of(site.name)
        if block is not None and not SHORTCUT.search(site.name.removeprefix(block.block)):
            first.setdefault(block.name, site)
    return list(first.values())


def add_layers(guest: Guest) -> None:
    """Lets layers of the 2D network see other frames, as its options say.

    Raises:
        ConfigError: If no layer fits.
    """
    add = {"shift": _add_shifts, "conv": _add_convs, "attention": _add_attention, "head": _add_head}
    if guest.options.temporal != "none":
        add[guest.options.temporal](guest)


def _add_shifts(guest: Guest) -> None:
    """Puts shifts before the first layer of each block, or before the blocks (``in_place``)."""
    options = guest.options
    if options.shift_place == "in_place":
        seen = [block for block in guest.anatomy.blocks if block.channels >= 2]
        chosen = _choose(guest, seen, "block")
    else:
        seen = [site for site in guest.anatomy.layers if site.sees_frames and site.channels >= 2]
        chosen = _choose(guest, seen, "layer") if options.layers is not None else _shifted_layers(guest, seen)
    if not chosen:
        raise ConfigError(
            f"temporal shift: {guest.name} has no layer with two channels behind its stem (the first layer) that sees "
            f"whole frames{_instead(guest)}"
        )
    for site in chosen:
        shift = TemporalShift(
            guest.time,
            channels_first=site.channels_first,
            shift_div=options.shift_div,
            padding=options.padding,
            causal=options.causal,
        )
        attach(_at(guest, site), site, guest.time, before=shift)
        guest.inflated.append(site.name)


def _shifted_layers(guest: Guest, seen: Sequence[Site]) -> list[Site]:
    """Returns the first layer of each block, or the block where none of its layers sees whole frames.

    The stem is left out, that is what takes the image itself.
    """
    seen = [site for site in seen if not site.at_stem]
    chosen = _first_layers(guest, seen) or list(seen)
    have = {block.name for site in chosen if (block := guest.anatomy.block_of(site.name)) is not None}
    chosen += [block for block in guest.anatomy.blocks if block.name not in have and block.channels >= 2]
    chosen = list({site.name: site for site in chosen}.values())
    order = list(guest.anatomy.sites)
    return sorted(chosen, key=lambda site: order.index(site.name))


def _instead(guest: Guest) -> str:
    """Returns which modes work for a network that the chosen one does not fit."""
    modes = ["head"] if guest.options.temporal != "head" else []
    if guest.options.temporal != "attention" and attention_places(guest.anatomy):
        modes.insert(0, "attention")
    if guest.options.temporal != "conv" and any(_convolves(guest, site) for site in guest.anatomy.layers):
        modes.insert(0, "conv")
    return f"; take {' or '.join(modes)}"


def _convolves(guest: Guest, site: Site) -> bool:
    """Returns whether a layer is a convolution, or one of the user's own class that takes and gives maps."""
    if not site.sees_frames:
        return False
    if isinstance(_at(guest, site), nn.Conv2d):
        return True
    if isinstance(_at(guest, site), nn.Linear) or any(_is_within(site.name, at.name) for at in guest.anatomy.attention):
        return False
    return len(site.shape) == 4 and site.output is not None and len(site.output) == 4


def _add_convs(guest: Guest) -> None:
    """Gives convolutions kernels in time, or filters behind them, and strides."""
    options = guest.options
    seen = [site for site in guest.anatomy.layers if site.sees_frames and site.output is not None]
    # without any convolution the first linear layer is one: it embeds patches, with a stride that is its kernel
    convs = [site for site in seen if _convolves(guest, site)] or seen[:1]
    chosen = _choose(guest, convs, "convolution") if options.layers is not None else _default_convs(guest, convs)
    if not chosen:
        raise ConfigError(f"temporal conv: {guest.name} has no convolution that sees whole frames{_instead(guest)}")
    sizes = options.kernel_size if isinstance(options.kernel_size, Mapping) else {"": options.kernel_size}
    for option, patterns in (("kernel_size", sizes), ("temporal_strides", options.strides)):
        for pattern in patterns:
            _compiled(pattern, option)
    for pattern in sizes:
        if not any(re.search(pattern, site.name) for site in chosen):
            raise ConfigError(f"kernel_size {pattern!r}: matches no chosen convolution{_examples(chosen)}")
    for site in chosen:
        size = _looked_up(sizes, site.name, default=3)
        even = isinstance(size, int) and size % 2 == 0
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or (even and not options.causal):
            kind = "a positive whole" if options.causal else "an odd positive"
            raise ConfigError(f"kernel_size {size!r}: must be {kind} number of frames")
        _inflate_conv(guest, site, size, time_stride=_looked_up(options.strides, site.name, default=1))
    _add_pools(guest, chosen)


def _inflate_conv(guest: Guest, site: Site, kernel_size: int, *, time_stride: int) -> None:
    """Gives one convolution a kernel in time, or a filter behind it."""
    settings: dict[str, Any] = {
        "kernel_size": kernel_size,
        "init": guest.options.init,
        "padding": guest.options.padding,
        "time_stride": time_stride,
        "causal": guest.options.causal,
    }
    conv: Any = _at(guest, site)
    if TemporalConv.accepts(conv) and not guest.options.factorized and not site.read and site.batch_axis == 0:
        replace(guest.network, site.name, TemporalConv(conv, guest.time, **settings))
    else:
        width = site.output_channels
        groups = width if getattr(conv, "groups", 1) == width else 1
        behind = TemporalFilter(width, guest.time, groups=groups, channels_first=site.output_first, **settings)
        _attach(guest, site, behind, behind=behind)
    guest.inflated.append(site.name)


def _add_pools(guest: Guest, convs: Sequence[Site]) -> None:
    """Puts a maximum over frames behind the modules that get a stride in time and are no inflated convolution."""
    for pattern, stride in guest.options.strides.items():
        if any(re.search(pattern, site.name) for site in convs):
            continue
        pooled = [site for name, site in guest.anatomy.sites.items() if re.search(pattern, name)]
        if not pooled:
            raise ConfigError(f"temporal_strides {pattern!r}: matches no module of {guest.name}")
        for site in pooled:
            attach(_at(guest, site), site, guest.time, behind=TemporalPool(guest.time, time_stride=stride))


def _default_convs(guest: Guest, convs: Sequence[Site]) -> list[Site]:
    """Returns the network's first convolution and that of every second block of each stage."""
    chosen = list(convs[:1])
    first = _first_layers(guest, convs)
    if not guest.anatomy.blocks:
        return chosen + first[1::2]
    stages: dict[str, list[Site]] = {}
    for site in first:
        block = guest.anatomy.block_of(site.name)
        assert block is not None
        stages.setdefault(block.block.rpartition(".")[0], []).append(site)
    for stage in stages.values():
        chosen += [site for site in stage[::2] if site not in chosen]
    return chosen


def _add_attention(guest: Guest) -> None:
    """Puts attention over time before transformer blocks, or lets attention layers see all frames (``joint``)."""
    joint = guest.options.joint
    if joint:
        tokens = [site for site in guest.anatomy.attention if site.sees_frames and not site.channels_first]
        chosen = _choose(guest, tokens, "attention layer")
    else:
        chosen = _choose(guest, attention_places(guest.anatomy), "transformer block")
    if not chosen:
        where = "sees whole frames" if guest.anatomy.attention else "was seen (a softmax over places)"
        raise ConfigError(
            f"temporal attention: {guest.name} has no {'attention layer' if joint else 'transformer block'} in which "
            f"attention {where}{_instead(guest)}"
        )
    for site in chosen:
        if joint:
            both = JointTime(site.channels, guest.time)
            _attach(guest, site, both, before=both.join, behind=both.split)
        else:
            temporal = TemporalAttention(
                site.channels,
                guest.time,
                num_heads=math.gcd(site.heads or max(1, site.channels // 64), site.channels),
                channels_first=site.channels_first,
            )
            _attach(guest, site, temporal, before=temporal)
        guest.inflated.append(site.name)


def _add_head(guest: Guest) -> None:
    """Puts a transformer over the features of the frames before the classifier."""
    width = guest.num_features
    if guest.anatomy.logits and not guest.anatomy.classifiers:
        raise ConfigError(
            f"temporal head: the classifier of {guest.name} is no linear layer at its end, so there are no "
            "features that a transformer could take"
        )
    heads = guest.options.head_num_heads or math.gcd(max(1, width // 64), width)
    if width % heads:
        raise ConfigError(f"head_num_heads {heads}: does not divide the {width} features of a frame")
    depth = guest.options.head_depth
    transformer = TemporalTransformer(width, guest.time, depth=depth, num_heads=heads)
    guest.temporal["head"] = transformer.to(_type_of(guest.network, transformer.time_embed))
    guest.inflated.append("head")


def _attach(guest: Guest, site: Site, layer: nn.Module, **places: Callable[[Tensor], Tensor]) -> None:
    """Attaches a layer that has weights, and registers them under the site's name with dashes."""
    # "head" is the transformer over frames
    weight = next((value for value in guest.network.parameters() if value.is_floating_point()), None)
    guest.temporal["head-block" if site.name == "head" else site.name.replace(".", "-")] = (
        layer if weight is None else layer.to(_type_of(_at(guest, site), weight))
    )
    attach(_at(guest, site), site, guest.time, **places)


def _type_of(layer: nn.Module, otherwise: Tensor) -> Tensor:
    """Returns a weight of a layer in whose type, and on whose device, other layers beside it compute."""
    weights = [
        parameter
        for part in layer.modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
        for parameter in part.parameters()
        if parameter.is_floating_point()
    ]
    real = weights or [parameter for parameter in layer.parameters() if parameter.is_floating_point()]
    return real[0] if real else otherwise


def _compiled(pattern: str, option: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{option} {pattern!r}: is no regular expression ({error})") from error


def _looked_up(options: Mapping[str, int], name: str, *, default: int) -> int:
    """Returns the value of the first pattern that is found in a name."""
    return next((value for pattern, value in options.items() if re.search(pattern, name)), default)


def _examples(sites: Sequence[Site]) -> str:
    names = [site.name for site in sites[:6]]
    return f"; there are {', '.join(names)}{', ...' if len(sites) > 6 else ''}" if names else ""
