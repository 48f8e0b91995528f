"""The model that an image network becomes.

The 2D network stays what it is and runs on all frames of a batch at once, (B*T, C, H, W). Single layers of it get to
see other frames; which and how is the choice of `temporal`:

- ``none``: no layer; the mean over the frames (TSN, Wang et al. 2016, arXiv:1608.00859).
- ``shift``: a part of the channels moves one frame on, and as many one back, in front of the first layer of each block
  (TSM). It has no parameters.
- ``conv``: convolutions get kernels in time (I3D). By default the first convolution of the network and that of every
  second block (Wang et al. 2018, arXiv:1711.07971, section 4.1: "one kernel for every 2 residual blocks").
- ``attention``: attention over time in front of each transformer block, or over time and space together in its
  attention layer (TimeSformer's ``divided_space_time`` and ``joint_space_time``).
- ``head``: a transformer over the frames' features (VTN).

At the start the model computes for a still video what the 2D network computes for its frame: `stvid.inflation.proof`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stvid.errors import ConfigError
from stvid.inflation.anatomy import Site, examine, find_blocks, no_training
from stvid.inflation.report import COPIED, TensorRule
from stvid.inflation.sources import ImageOrigin
from stvid.inflation.temporal import (
    ClipTime,
    Init,
    JointTime,
    Padding,
    TemporalAttention,
    TemporalConv,
    TemporalFilter,
    TemporalPool,
    TemporalShift,
    TemporalTransformer,
    attach,
    speed_up,
    taps,
)
from stvid.models.layers import VideoModel, _batch_norms, _recompute_contexts

__all__ = ["InflatedModel", "Temporal", "describe_taps", "has_attention"]

Temporal = Literal["none", "shift", "conv", "attention", "head"]
AttentionType = Literal["divided_space_time", "joint_space_time"]
ShiftPlace = Literal["residual", "in_place"]
# Convolutions of a block's shortcut, by the names that timm, torchvision and others give them.
SHORTCUT = re.compile(r"downsample|shortcut|skip|\bsc\b|identity|proj_sc")
# Which options belong to which mode.
MODE_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "shift": ("layers", "padding", "shift_div", "shift_place"),
    "conv": ("layers", "padding", "kernel_size", "init", "temporal_strides", "factorized"),
    "attention": ("layers", "attention_type"),
    "head": ("head_depth", "head_num_heads"),
}


class InflatedModel(VideoModel):
    """A 2D network that sees frames.

    Args:
        network: The 2D network, (N, in_chans, H, W) to logits (N, classes). It is changed in place and becomes a part
            of the model.
        num_frames: Frames of a clip, which the tables of times are made for; other clips are taken.
        img_size: (height, width) in pixels.
        in_chans: Channels of the clip.
        temporal: How frames see each other; see above.
        layers: Regular expression that is searched in the names of the layers (with ``attention`` and ``in_place``: of
            the blocks), or their names; None takes the mode's default.
        kernel_size: Frames that a kernel sees, odd; or a mapping from patterns of names to it.
        init: ``center`` or ``average``; see `stvid.inflation.temporal.taps`.
        padding: What is beyond the ends of a clip, ``replicate`` or ``zeros``. With ``zeros``, which I3D and TSM use,
            a shift, and a kernel that starts as an average, change the first and last frames of a still video.
        temporal_strides: Mapping from patterns of names to a step in time: convolutions that are inflated take it;
            behind any other module the maximum over so many frames is taken.
        factorized: Whether the 2D convolutions stay and a convolution over time, which starts as the identity, follows
            each (R(2+1)D). That is always done behind convolutions of classes that do more than convolve, such as those
            that standardise their weights.
        shift_div: One part in so many of the channels moves each way.
        shift_place: ``residual`` shifts what the first layer of a block sees, ``in_place`` what the block sees.
        attention_type: ``divided_space_time`` or ``joint_space_time``.
        head_depth: Blocks of the transformer over frames.
        head_num_heads: Its heads; None takes one for every 64 channels.
        source_name: What the 2D network is called in messages.

    Attributes:
        network: The 2D network without its classifier.
        temporal: Layers with weights that were attached to layers of it.
        head: The classifier; the identity if it could not be taken out of the network, and frames' logits are averaged.
        anatomy: What was found in the 2D network.
        inflated: Names of the layers that see other frames.
        origin: Where the 2D network is from; None for a module of the user's.

    Raises:
        ConfigError: If the network is no image classifier, or the options do not fit it.
    """

    network: nn.Module
    num_frames: int

    def __init__(
        self,
        network: nn.Module,
        *,
        num_frames: int,
        img_size: tuple[int, int],
        in_chans: int = 3,
        temporal: Temporal = "conv",
        layers: str | Sequence[str] | None = None,
        kernel_size: int | Mapping[str, int] = 3,
        init: Init = "center",
        padding: Padding = "replicate",
        temporal_strides: Mapping[str, int] | None = None,
        factorized: bool = False,
        shift_div: int = 8,
        shift_place: ShiftPlace = "residual",
        attention_type: AttentionType = "divided_space_time",
        head_depth: int = 3,
        head_num_heads: int | None = None,
        source_name: str = "the network",
    ) -> None:
        super().__init__()
        if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
            raise ConfigError(f"num_frames {num_frames!r}: must be a positive whole number")
        for option, value, choices in (
            ("temporal", temporal, Temporal),
            ("init", init, Init),
            ("padding", padding, Padding),
            ("shift_place", shift_place, ShiftPlace),
            ("attention_type", attention_type, AttentionType),
        ):
            if value not in get_args(choices):
                raise ConfigError(f"{option} {value!r}: choose one of {', '.join(get_args(choices))}")
        given = {
            "layers": layers is not None,
            "kernel_size": kernel_size != 3,
            "init": init != "center",
            "padding": padding != "replicate",
            "temporal_strides": bool(temporal_strides),
            "factorized": factorized,
            "shift_div": shift_div != 8,
            "shift_place": shift_place != "residual",
            "attention_type": attention_type != "divided_space_time",
            "head_depth": head_depth != 3,
            "head_num_heads": head_num_heads is not None,
        }
        for option, is_given in given.items():
            if is_given and option not in MODE_OPTIONS[temporal]:
                modes = [mode for mode, options in MODE_OPTIONS.items() if option in options]
                raise ConfigError(f"{option} has no meaning with temporal={temporal}, only with {', '.join(modes)}")
        if shift_div < 2:
            raise ConfigError(f"shift_div {shift_div}: must be at least 2")

        self.in_chans = in_chans
        self.num_frames = num_frames
        self.source_name = source_name
        self.init: Init = init
        self.time = ClipTime(num_frames)
        self.anatomy = examine(network, img_size, in_chans=in_chans, name=source_name)
        self.num_classes = self.anatomy.num_classes
        self.inflated: list[str] = []
        self.shifts = temporal == "shift"
        self.origin: ImageOrigin | None = None
        self.img_size = img_size
        self.network = network
        self.temporal = nn.ModuleDict()
        self._take_classifier()
        if temporal == "shift":
            self._add_shifts(layers, shift_div=shift_div, padding=padding, in_place=shift_place == "in_place")
        elif temporal == "conv":
            self._add_convs(
                layers, kernel_size, padding=padding, strides=dict(temporal_strides or {}), factorized=factorized
            )
        elif temporal == "attention":
            self._add_attention(layers, joint=attention_type == "joint_space_time")
        elif temporal == "head":
            if not self.anatomy.classifiers:
                raise ConfigError(
                    f"temporal head: the classifier of {source_name} is no linear layer at its end, so there are no "
                    "features that a transformer could take"
                )
            heads = head_num_heads or max(1, self.num_features // 64)
            self.temporal["head"] = TemporalTransformer(
                self.num_features, self.time, depth=head_depth, num_heads=math.gcd(heads, self.num_features)
            )
            self.inflated.append("head")
        speed_up(self)
        if temporal_strides or attention_type == "joint_space_time":
            self._find_strides(img_size)

    # --- surgery ------------------------------------------------------------------------------------------------------

    def _take_classifier(self) -> None:
        """Moves the linear layers that make the logits out of the network, as one layer."""
        names = self.anatomy.classifiers
        if not names:
            self.num_features = self.num_classes
            self.head: nn.Linear | nn.Identity = nn.Identity()
            return
        found = [self.network.get_submodule(name) for name in names]
        widths = [int(linear.in_features) for linear in found]  # type: ignore[arg-type]
        self.num_features = sum(widths)
        weights, biases = _merged_classifier([linear.state_dict() for linear in found])
        first = next(found[0].parameters())
        head = nn.Linear(
            self.num_features, self.num_classes, bias=biases is not None, device=first.device, dtype=first.dtype
        )
        with torch.no_grad():
            head.weight.copy_(weights)
            if biases is not None:
                head.bias.copy_(biases)
        self.head = head.train(found[0].training)
        for index, name in enumerate(names):
            if len(names) == 1:
                _replace(self.network, name, nn.Identity())
            else:
                before, behind = sum(widths[:index]), sum(widths[index + 1 :])
                _replace(self.network, name, nn.ConstantPad1d((before, behind), 0.0))

    def _at(self, site: Site) -> nn.Module:
        return self.network.get_submodule(site.name)

    def _choose(self, sites: Sequence[Site], layers: str | Sequence[str] | None, what: str) -> list[Site]:
        """Returns the sites whose names were asked for."""
        if layers is None:
            return list(sites)
        if isinstance(layers, str):
            pattern = _compiled(layers, "layers")
            chosen = [site for site in sites if pattern.search(site.name)]
            if not chosen:
                raise ConfigError(f"layers {layers!r}: matches no {what} of {self.source_name}{_examples(sites)}")
            return chosen
        by_name = {site.name: site for site in sites}
        for name in layers:
            if name not in by_name:
                raise ConfigError(f"layers: {self.source_name} has no {what} {name!r}{_examples(sites)}")
        return [by_name[name] for name in layers]

    def _first_layers(self, sites: Sequence[Site]) -> list[Site]:
        """Returns the first layer in each block, shortcuts left out; without blocks all layers but the first."""
        if not self.anatomy.blocks:
            return list(sites[1:])
        first: dict[str, Site] = {}
        for site in sites:
            block = self.anatomy.block_of(site.name)
            if block is not None and not SHORTCUT.search(site.name.removeprefix(block.name)):
                first.setdefault(block.name, site)
        return list(first.values())

    def _add_shifts(
        self, layers: str | Sequence[str] | None, *, shift_div: int, padding: Padding, in_place: bool
    ) -> None:
        seen = [site for site in self.anatomy.layers if site.sees_frames and site.channels >= shift_div]
        if in_place:
            seen = [block for block in self.anatomy.blocks if block.channels >= shift_div]
            chosen = self._choose(seen, layers, "block")
        else:
            chosen = self._choose(seen, layers, "layer") if layers is not None else self._first_layers(seen)
        if not chosen:
            raise ConfigError(f"temporal shift: {self.source_name} has no layer that sees whole frames behind its stem")
        for site in chosen:
            shift = TemporalShift(self.time, channels_first=site.channels_first, shift_div=shift_div, padding=padding)
            attach(self._at(site), before=shift)
            self.inflated.append(site.name)

    def _add_convs(
        self,
        layers: str | Sequence[str] | None,
        kernel_size: int | Mapping[str, int],
        *,
        padding: Padding,
        strides: dict[str, int],
        factorized: bool,
    ) -> None:
        seen = [site for site in self.anatomy.layers if site.sees_frames]
        # without any convolution the first linear layer is one: it embeds patches, with a stride that is its kernel
        convs = [site for site in seen if isinstance(self._at(site), nn.Conv2d)] or seen[:1]
        chosen = self._choose(convs, layers, "convolution") if layers is not None else self._default_convs(convs)
        if not chosen:
            raise ConfigError(
                f"temporal conv: {self.source_name} has no convolution that sees whole frames; take shift, attention "
                "or head"
            )
        sizes = kernel_size if isinstance(kernel_size, Mapping) else {"": kernel_size}
        for option, patterns in (("kernel_size", sizes), ("temporal_strides", strides)):
            for pattern in patterns:
                _compiled(pattern, option)
        used: set[str] = set()
        for site in chosen:
            size = _looked_up(sizes, site.name, default=3)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0:
                raise ConfigError(f"kernel_size {size!r}: must be an odd positive number of frames")
            stride = _looked_up(strides, site.name, default=1)
            used.update(pattern for pattern in strides if re.search(pattern, site.name))
            options: dict[str, Any] = {
                "kernel_size": size,
                "init": self.init,
                "padding": padding,
                "time_stride": stride,
            }
            conv: Any = self._at(site)
            if TemporalConv.accepts(conv) and not factorized:
                _replace(self.network, site.name, TemporalConv(conv, self.time, **options))
            else:
                width = conv.out_channels if site.channels_first else conv.out_features
                groups = width if getattr(conv, "groups", 1) == width else 1
                behind = TemporalFilter(width, self.time, groups=groups, channels_first=site.channels_first, **options)
                self._attach(site, behind, behind=behind)
            self.inflated.append(site.name)
        for pattern, stride in strides.items():
            if pattern in used:
                continue
            pooled = [site for name, site in self.anatomy.sites.items() if re.search(pattern, name)]
            if not pooled:
                raise ConfigError(f"temporal_strides {pattern!r}: matches no module of {self.source_name}")
            for site in pooled:
                attach(self._at(site), behind=TemporalPool(self.time, time_stride=stride))

    def _default_convs(self, convs: Sequence[Site]) -> list[Site]:
        """Returns the network's first convolution and that of every second block of each stage."""
        chosen = list(convs[:1])
        first = self._first_layers(convs)
        if not self.anatomy.blocks:
            return chosen + first[1::2]
        stages: dict[str, list[Site]] = {}
        for site in first:
            block = self.anatomy.block_of(site.name)
            assert block is not None
            stages.setdefault(block.name.rpartition(".")[0], []).append(site)
        for stage in stages.values():
            chosen += [site for site in stage[::2] if site not in chosen]
        return chosen

    def _add_attention(self, layers: str | Sequence[str] | None, *, joint: bool) -> None:
        if joint:
            seen = [site for site in self.anatomy.sites.values() if site.sees_frames and not site.channels_first]
            tokens = [site for site in seen if _heads(self._at(site)) and not _most_heads(self._at(site), below=True)]
            chosen = self._choose(tokens, layers, "attention layer")
        else:
            blocks = [block for block in self.anatomy.blocks if _most_heads(self._at(block))]
            chosen = self._choose(blocks, layers, "transformer block")
        if not chosen:
            raise ConfigError(
                f"temporal attention: {self.source_name} has no {'attention layer' if joint else 'transformer block'} "
                "that sees whole frames; take conv, shift or head"
            )
        for site in chosen:
            if joint:
                both = JointTime(site.channels, self.time)
                self._attach(site, both, before=both.join, behind=both.split)
            else:
                temporal = TemporalAttention(
                    site.channels,
                    self.time,
                    num_heads=math.gcd(_most_heads(self._at(site)), site.channels),
                    channels_first=site.channels_first,
                )
                self._attach(site, temporal, before=temporal)
            self.inflated.append(site.name)

    def _attach(self, site: Site, layer: nn.Module, **places: Callable[[Tensor], Tensor]) -> None:
        """Attaches a layer that has weights, and registers them under the site's name with dashes."""
        self.temporal[site.name.replace(".", "-")] = layer.to(next(self.network.parameters()))
        attach(self._at(site), **places)

    def _find_strides(self, img_size: tuple[int, int]) -> None:
        """Runs one clip, so that each layer knows how many frames are left of a clip where it is."""
        parameter = next(self.network.parameters())
        clip = torch.zeros(
            1, self.in_chans, self.time.frames, *img_size, device=parameter.device, dtype=parameter.dtype
        )
        self.time.recording = True
        try:
            with no_training(self):
                self(clip)
        except RuntimeError as error:
            message = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{self.source_name}: the inflated network cannot run ({message}); leave strides in time out of "
                "residual branches, and joint attention out of layers with position biases"
            ) from error
        finally:
            self.time.recording = False

    # --- the model ----------------------------------------------------------------------------------------------------

    def _fold(self, clip: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B*T, C, H, W) in channels_last, and tells all layers how many frames there are."""
        self._check_clip(clip, channels=self.in_chans)
        self.time.frames = clip.shape[2]
        return clip.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)

    def _unfold(self, frames: Tensor) -> Tensor:
        """(B*T', ...) to (B, T', ...)."""
        return frames.unflatten(0, (-1, self.time.at_end()))

    def forward_features(self, clip: Tensor) -> Tensor:
        """Returns the features before pooling.

        Args:
            clip: (B, in_chans, T, H, W).

        Returns:
            (B, C, T', H', W'), or (B, T' * tokens, C) where the network's own are tokens. Of a network without
            `forward_features` (torchvision's, the user's) what its classifier sees of each frame, (B, C, T', 1, 1).

        Raises:
            ValueError: If the clip has another shape.
        """
        own = getattr(self.network, "forward_features", None)
        x = self._unfold(self.network(self._fold(clip)) if own is None else own(self._fold(clip)))
        if x.dim() == 3:
            return x.transpose(1, 2)[..., None, None]
        if x.dim() == 4:
            return x.flatten(1, 2)
        return x.movedim(-1, 1) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else x.transpose(1, 2)

    def forward(self, clip: Tensor) -> Tensor:
        """Returns logits (B, num_classes)."""
        features = self._unfold(self.network(self._fold(clip)))
        return self.head(self.temporal["head"](features) if "head" in self.temporal else features.mean(1))

    def get_classifier(self) -> nn.Module:
        """Returns the layer that makes the logits."""
        return self.head if self.anatomy.classifiers else self.network.get_submodule(self.anatomy.logits[0])

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a freshly initialised one; 0 classes returns the pooled features."""
        if self.anatomy.classifiers:
            super().reset_classifier(num_classes)
            return
        if not num_classes:
            raise ConfigError(f"{self.source_name}: its classifier is within the network and cannot be left out")
        for name in self.anatomy.logits:
            old: Any = self.network.get_submodule(name)
            settings: dict[str, Any] = {
                "bias": old.bias is not None,
                "device": old.weight.device,
                "dtype": old.weight.dtype,
            }
            new: Any = (
                nn.Conv2d(old.in_channels, num_classes, (1, 1), **settings)
                if isinstance(old, nn.Conv2d)
                else nn.Linear(old.in_features, num_classes, **settings)
            )
            _replace(self.network, name, new.train(old.training))
        self.num_classes = self.num_features = num_classes
        self.recipe = {**self.recipe, "num_classes": num_classes}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches the recomputation of the network's blocks, and of attention over time, on or off."""
        self.grad_checkpointing = enable
        blocks = [self.network.get_submodule(block.name) for block in self.anatomy.blocks]
        for block in [*blocks, *self.temporal.values()]:
            block.__dict__.pop("forward", None)
            if enable and not isinstance(block, JointTime):
                block.forward = partial(_recomputed, block, self.time)

    def no_weight_decay(self) -> set[str]:
        """Returns the network's own choice, and the tables of times."""
        own = getattr(self.network, "no_weight_decay", None)
        names = {f"network.{name}" for name in own()} if own is not None else set()
        return names | {name for name, _ in self.named_parameters() if name.endswith("time_embed")}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: what is before the blocks, every block with what is attached in it, the rest."""
        groups = []
        for block in self.anatomy.blocks:
            dashed = re.escape(block.name.replace(".", "-"))
            groups.append(rf"^network\.{re.escape(block.name)}\.|^temporal\.{dashed}[-.]")
        last = "|".join(re.escape(name) for name in self.anatomy.behind_blocks())
        if last:
            groups.append(rf"^network\.(?:{last})\.")
        groups.append(r"^temporal\.head\.")
        return {
            "stem": rf"^(?!{'|'.join(group.replace('^', '') for group in groups)}|head\.)",
            "blocks": [(group, (order,)) for order, group in enumerate(groups)],
        }

    # --- weights ------------------------------------------------------------------------------------------------------

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises weights of the 2D network besides the model's own, and inflates them."""
        if not state or any(key.startswith("network.") for key in state):
            return "stvid", dict(state)
        if self.origin is not None:
            classes = self.anatomy.num_classes
            network = self.origin.build(num_classes=classes, img_size=self.img_size)
            state, _ = self.origin.fit_state(network, state, name="checkpoint")
        inflated, _ = self.transfer(state)
        return f"2D weights of {self.source_name}", inflated

    def transfer(
        self, state: Mapping[str, Tensor], *, new_head: bool = False
    ) -> tuple[dict[str, Tensor], list[TensorRule]]:
        """Turns a state of the 2D network into one of this model.

        Args:
            state: In the keys of the 2D network.
            new_head: Whether the classifier stays as it is, since its classes are others.

        Returns:
            The state, in which weights of layers that the 2D network lacks are those that the model has now, and a rule
            for every tensor of either side. A key that has no place is kept, for the caller to complain about.
        """
        own = self.state_dict()
        inflated: dict[str, Tensor] = {}
        rules: list[TensorRule] = []

        def book(source: str, target: str, rule: str, value: Tensor | None, source_shape: str) -> None:
            shape = () if value is None else tuple(value.shape)
            rules.append(TensorRule(source, target, rule, source_shape, shape))
            if value is not None:
                inflated[target] = value

        classifier = [name for name in self.anatomy.classifiers if f"{name}.weight" in state]
        head_keys = {f"{name}.{part}": part for name in self.anatomy.logits for part in ("weight", "bias")}
        for key, value in state.items():
            shape = str(tuple(value.shape))
            if key in head_keys and new_head:
                book(key, "", f"dropped: a classifier of {value.shape[0]} classes", None, shape)
            elif key in head_keys and classifier:
                continue
            else:
                target = f"network.{key}"
                if target in own and own[target].dim() == value.dim() + 1 == 5:
                    frames = own[target].shape[2]
                    book(key, target, describe_taps(frames, self.init), taps(value, frames, init=self.init), shape)
                else:
                    book(key, target, COPIED, value, shape)
        if classifier and not new_head:
            weights, biases = _merged_classifier(
                [
                    {part: state[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in state}
                    for name in classifier
                ]
            )
            for part, merged, how in (("weight", weights, "side by side"), ("bias", biases, "their mean")):
                if merged is not None:
                    sources = [f"{name}.{part}" for name in classifier]
                    shapes = " + ".join(str(tuple(state[source].shape)) for source in sources)
                    rule = COPIED if len(classifier) == 1 else how
                    book(" + ".join(sources), f"head.{part}", rule, merged, shapes)
        for target, value in own.items():
            if target in inflated or not (target.startswith("temporal.") or (new_head and target in self.head_keys())):
                continue
            reason = "a new classifier" if not target.startswith("temporal.") else self._start_of(target)
            book("", target, f"initialised: {reason}", value, "")
        return inflated, rules

    def head_keys(self) -> set[str]:
        """Returns the names of the classifier's tensors."""
        if self.anatomy.classifiers:
            return {"head.weight", "head.bias"}
        return {f"network.{name}.{part}" for name in self.anatomy.logits for part in ("weight", "bias")}

    def _start_of(self, key: str) -> str:
        """Says how a layer starts that the 2D network does not have."""
        layer = self.temporal[key.split(".")[1]]
        if isinstance(layer, TemporalFilter):
            return "the identity in time" if self.init == "center" else "the mean of the frames"
        if isinstance(layer, JointTime):
            return "times, zero"
        return "attention over time, which adds nothing at first"


def describe_taps(frames: int, init: Init) -> str:
    """Returns the rule of `taps` in words."""
    if frames == 1:
        return f"{COPIED}, with an axis of one frame"
    if init == "average":
        return f"repeated {frames} times in time, divided by {frames}"
    return f"in the central one of {frames} frames, zeros elsewhere"


def _merged_classifier(parts: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of one layer for the mean of several, whose inputs come side by side and so averaged."""
    weight = torch.cat([part["weight"] for part in parts], dim=1)
    biases = [part["bias"] for part in parts if "bias" in part]
    return weight, torch.stack(biases).sum(0) / len(parts) if biases else None


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another, under all names that this has."""
    old = network.get_submodule(name)
    for other, found in list(network.named_modules(remove_duplicate=False)):
        if found is old:
            parent, _, leaf = other.rpartition(".")
            setattr(network.get_submodule(parent), leaf, module)


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


def has_attention(network: nn.Module) -> bool:
    """Returns whether blocks of a network have attention layers, known by their number of heads."""
    return any(_most_heads(network.get_submodule(name)) for name in find_blocks(network))


def _examples(sites: Sequence[Site]) -> str:
    names = [site.name for site in sites[:6]]
    return f"; there are {', '.join(names)}{', ...' if len(sites) > 6 else ''}" if names else ""


@contextmanager
def _with_frames(time: ClipTime, frames: int) -> Iterator[None]:
    before, time.frames = time.frames, frames
    try:
        yield
    finally:
        time.frames = before


def _recomputed(block: nn.Module, time: ClipTime, *args: Any, **kwargs: Any) -> Any:
    """The forward of a block whose activations are computed again in the backward pass."""
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    frames, norms = time.frames, _batch_norms(block)  # another clip may come through before the backward pass

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        first, again = _recompute_contexts(norms)
        return first, _both(_with_frames(time, frames), again)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield
