"""Which layers of a 2D network see other frames, and how they get to: what `InflatedModel` is built with.

Each way (``shift``, ``conv``, ``attention``) has a default that fits most families, by the blocks that `examine` found,
and takes a pattern or names instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.inflation.anatomy import Site, find_blocks
from stvid.inflation.temporal import (
    JointTime,
    Padding,
    TemporalAttention,
    TemporalConv,
    TemporalFilter,
    TemporalPool,
    TemporalShift,
    attach,
)

if TYPE_CHECKING:
    from stvid.inflation.model import InflatedModel

__all__ = ["add_attention", "add_convs", "add_shifts", "has_attention", "replace"]

# Convolutions of a block's shortcut, by the names that timm, torchvision and others give them.
SHORTCUT = re.compile(r"downsample|shortcut|skip|\bsc\b|identity|proj_sc")


def has_attention(network: nn.Module) -> bool:
    """Returns whether blocks of a network have attention layers, known by their number of heads."""
    return any(_most_heads(network.get_submodule(name)) for name in find_blocks(network))


def replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another, under all names that this has."""
    old = network.get_submodule(name)
    for other, found in list(network.named_modules(remove_duplicate=False)):
        if found is old:
            parent, _, leaf = other.rpartition(".")
            setattr(network.get_submodule(parent), leaf, module)


def _at(model: InflatedModel, site: Site) -> nn.Module:
    return model.network.get_submodule(site.name)


def _choose(model: InflatedModel, sites: Sequence[Site], layers: str | Sequence[str] | None, what: str) -> list[Site]:
    """Returns the sites whose names were asked for."""
    if layers is None:
        return list(sites)
    if isinstance(layers, str):
        pattern = _compiled(layers, "layers")
        chosen = [site for site in sites if pattern.search(site.name)]
        if not chosen:
            raise ConfigError(f"layers {layers!r}: matches no {what} of {model.source_name}{_examples(sites)}")
        return chosen
    if not isinstance(layers, Sequence):
        raise ConfigError(f"layers {layers!r}: must be a regular expression, or a list of names")
    by_name = {site.name: site for site in sites}
    for name in layers:
        if name not in by_name:
            raise ConfigError(f"layers: {model.source_name} has no {what} {name!r}{_examples(sites)}")
    return [by_name[name] for name in layers]


def _first_layers(model: InflatedModel, sites: Sequence[Site]) -> list[Site]:
    """Returns the first layer in each block, shortcuts left out; without blocks all layers but the first."""
    if not model.anatomy.blocks:
        return list(sites[1:])
    first: dict[str, Site] = {}
    for site in sites:
        block = model.anatomy.block_of(site.name)
        if block is not None and not SHORTCUT.search(site.name.removeprefix(block.name)):
            first.setdefault(block.name, site)
    return list(first.values())


def add_shifts(
    model: InflatedModel, layers: str | Sequence[str] | None, *, shift_div: int, padding: Padding, in_place: bool
) -> None:
    """Puts shifts before the first layer of each block, or before the blocks (``in_place``); see `InflatedModel`.

    Raises:
        ConfigError: If no layer fits, as for all functions here.
    """
    seen = [site for site in model.anatomy.layers if site.sees_frames and site.channels >= shift_div]
    if in_place:
        seen = [block for block in model.anatomy.blocks if block.channels >= shift_div]
        chosen = _choose(model, seen, layers, "block")
    else:
        chosen = _choose(model, seen, layers, "layer") if layers is not None else _first_layers(model, seen)
    if not chosen:
        raise ConfigError(f"temporal shift: {model.source_name} has no layer that sees whole frames behind its stem")
    for site in chosen:
        shift = TemporalShift(model.time, channels_first=site.channels_first, shift_div=shift_div, padding=padding)
        attach(_at(model, site), before=shift)
        model.inflated.append(site.name)


def add_convs(
    model: InflatedModel,
    layers: str | Sequence[str] | None,
    kernel_size: int | Mapping[str, int],
    *,
    padding: Padding,
    strides: Mapping[str, int],
    factorized: bool,
) -> None:
    """Gives convolutions kernels in time, or filters behind them, and strides; see `InflatedModel`."""
    seen = [site for site in model.anatomy.layers if site.sees_frames]
    # without any convolution the first linear layer is one: it embeds patches, with a stride that is its kernel
    convs = [site for site in seen if isinstance(_at(model, site), nn.Conv2d)] or seen[:1]
    chosen = _choose(model, convs, layers, "convolution") if layers is not None else _default_convs(model, convs)
    if not chosen:
        raise ConfigError(
            f"temporal conv: {model.source_name} has no convolution that sees whole frames; take shift, attention "
            "or head"
        )
    sizes = kernel_size if isinstance(kernel_size, Mapping) else {"": kernel_size}
    for option, patterns in (("kernel_size", sizes), ("temporal_strides", strides)):
        for pattern in patterns:
            _compiled(pattern, option)
    for pattern in sizes:
        if not any(re.search(pattern, site.name) for site in chosen):
            raise ConfigError(f"kernel_size {pattern!r}: matches no chosen convolution{_examples(chosen)}")
    used: set[str] = set()
    for site in chosen:
        size = _looked_up(sizes, site.name, default=3)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0:
            raise ConfigError(f"kernel_size {size!r}: must be an odd positive number of frames")
        stride = _looked_up(strides, site.name, default=1)
        used.update(pattern for pattern in strides if re.search(pattern, site.name))
        options: dict[str, Any] = {
            "kernel_size": size,
            "init": model.init,
            "padding": padding,
            "time_stride": stride,
        }
        conv: Any = _at(model, site)
        if TemporalConv.accepts(conv) and not factorized:
            replace(model.network, site.name, TemporalConv(conv, model.time, **options))
        else:
            width = conv.out_channels if site.channels_first else conv.out_features
            groups = width if getattr(conv, "groups", 1) == width else 1
            behind = TemporalFilter(width, model.time, groups=groups, channels_first=site.channels_first, **options)
            _attach(model, site, behind, behind=behind)
        model.inflated.append(site.name)
    for pattern, stride in strides.items():
        if pattern in used:
            continue
        pooled = [site for name, site in model.anatomy.sites.items() if re.search(pattern, name)]
        if not pooled:
            raise ConfigError(f"temporal_strides {pattern!r}: matches no module of {model.source_name}")
        for site in pooled:
            attach(_at(model, site), behind=TemporalPool(model.time, time_stride=stride))


def _default_convs(model: InflatedModel, convs: Sequence[Site]) -> list[Site]:
    """Returns the network's first convolution and that of every second block of each stage."""
    chosen = list(convs[:1])
    first = _first_layers(model, convs)
    if not model.anatomy.blocks:
        return chosen + first[1::2]
    stages: dict[str, list[Site]] = {}
    for site in first:
        block = model.anatomy.block_of(site.name)
        assert block is not None
        stages.setdefault(block.name.rpartition(".")[0], []).append(site)
    for stage in stages.values():
        chosen += [site for site in stage[::2] if site not in chosen]
    return chosen


def add_attention(model: InflatedModel, layers: str | Sequence[str] | None, *, joint: bool) -> None:
    """Puts attention over time before transformer blocks, or lets attention layers see all frames (``joint``)."""
    if joint:
        seen = [site for site in model.anatomy.sites.values() if site.sees_frames and not site.channels_first]
        tokens = [site for site in seen if _heads(_at(model, site)) and not _most_heads(_at(model, site), below=True)]
        chosen = _choose(model, tokens, layers, "attention layer")
    else:
        blocks = [block for block in model.anatomy.blocks if _most_heads(_at(model, block))]
        chosen = _choose(model, blocks, layers, "transformer block")
    if not chosen:
        raise ConfigError(
            f"temporal attention: {model.source_name} has no {'attention layer' if joint else 'transformer block'} "
            "that sees whole frames; take conv, shift or head"
        )
    for site in chosen:
        if joint:
            both = JointTime(site.channels, model.time)
            _attach(model, site, both, before=both.join, behind=both.split)
        else:
            temporal = TemporalAttention(
                site.channels,
                model.time,
                num_heads=math.gcd(_most_heads(_at(model, site)), site.channels),
                channels_first=site.channels_first,
            )
            _attach(model, site, temporal, before=temporal)
        model.inflated.append(site.name)


def _attach(model: InflatedModel, site: Site, layer: nn.Module, **places: Callable[[Tensor], Tensor]) -> None:
    """Attaches a layer that has weights, and registers them under the site's name with dashes."""
    # "head" is the transformer over frames
    model.temporal["head-block" if site.name == "head" else site.name.replace(".", "-")] = layer.to(
        next(model.network.parameters())
    )
    attach(_at(model, site), **places)


def _heads(module: nn.Module) -> int:
    """Returns the number of heads of an attention layer, 0 for anything else."""
    heads = getattr(module, "num_heads", 0)
    return heads if isinstance(heads, int) and not isinstance(heads, bool) else 0


def _most_heads(module: nn.Module, *, below: bool = False) -> int:
    """Returns the largest number of heads in a module, or in what is below it."""
    return max((_heads(part) for part in module.modules() if not (below and part is module)), default=0)


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
