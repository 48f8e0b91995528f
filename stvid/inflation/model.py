"""The model that an image network becomes.

The 2D network stays what it is and runs on all frames of a batch at once, (B*T, C, H, W). Single layers of it get to
see other frames; which and how is said by `InflationOptions`, first of all by its mode `temporal`:

- ``none``: no layer; the mean over the frames (TSN, Wang et al. 2016, arXiv:1608.00859).
- ``shift``: a part of the channels moves one frame on, and as many one back, in front of the first layer of each block
  (TSM). It has no parameters.
- ``conv``: convolutions get kernels in time (I3D). By default the first convolution of the network and that of every
  second block (Wang et al. 2018, arXiv:1711.07971, section 4.1: "one kernel for every 2 residual blocks").
- ``attention``: attention over time in front of each transformer block, or over time and space together in its
  attention layer (TimeSformer's ``divided_space_time`` and ``joint_space_time``).
- ``head``: a transformer over the frames' features (VTN).

Which layers these are is found in placement.py, what they become is in temporal.py. At the start the model computes for
a still video what the 2D network computes for its frame: `stvid.inflation.proof`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.inflation.anatomy import examine, no_training
from stvid.inflation.options import InflationOptions
from stvid.inflation.placement import Guest, add_layers, replace
from stvid.inflation.readout import Layout, find_read_out
from stvid.inflation.recomputation import Recomputed
from stvid.inflation.report import COPIED, RuleKind, TensorRule
from stvid.inflation.sources import ImageOrigin
from stvid.inflation.temporal import (
    ClipTime,
    JointTime,
    TemporalFilter,
    describe_taps,
)
from stvid.models.base import FeatureInfo, VideoModel, leave
from stvid.models.blocks import Tap, taps
from stvid.models.following import follow_norms
from stvid.models.heads import LinearHead
from stvid.models.kernels import channels_last

__all__ = ["InflatedModel"]


class InflatedModel(VideoModel):
    """A 2D network that sees frames.

    Args:
        network: The 2D network, (N, in_chans, H, W) to logits (N, classes). It is changed in place and becomes a part
            of the model.
        options: How frames see each other; None takes the defaults.
        num_frames: Frames of a clip, which the tables of times are made for; other clips are taken.
        img_size: (height, width) in pixels.
        in_chans: Channels of the clip.
        source_name: The name of the 2D network in messages.

    Attributes:
        network: The 2D network without its classifier.
        options: How frames see each other.
        temporal: Layers with weights that were attached to layers of it.
        head: The classifier; if it could not be taken out of the network, the logits of the frames are averaged.
        read_out: Where the features are. Maps (B, C, T', H', W') where the network gives maps of a frame; tokens
            (B, T' * prefix + T' * H' * W', C), class tokens first, where it gives tokens; else what the classifier sees
            of each frame, (B, C, T', 1, 1).
        anatomy: The parts that were found in the 2D network.
        inflated: Names of the layers that see other frames.
        origin: Where the 2D network is from; None for a module of the user's.

    Raises:
        ConfigError: If the network is no image classifier, or the options do not fit it.
    """

    network: nn.Module
    num_frames: int
    names_attention = False  # the network's own attention is not stvid's

    def __init__(
        self,
        network: nn.Module,
        options: InflationOptions | None = None,
        *,
        num_frames: int,
        img_size: tuple[int, int],
        in_chans: int = 3,
        source_name: str = "the network",
    ) -> None:
        super().__init__()
        if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
            raise ConfigError(f"num_frames {num_frames!r}: must be a positive whole number")
        self.options = InflationOptions() if options is None else options
        self.in_chans = in_chans
        self.num_frames = num_frames
        self.source_name = source_name
        self.time = ClipTime(num_frames)
        self.anatomy = examine(network, img_size, in_chans=in_chans, name=source_name)
        self.num_classes = self.anatomy.num_classes
        self.origin: ImageOrigin | None = None
        self.img_size = img_size
        self.network = network
        self._take_classifier()
        parameter = next(network.parameters())
        images = torch.randn(2, in_chans, *img_size, generator=torch.Generator().manual_seed(0)).to(parameter)
        self.read_out = find_read_out(network, self.anatomy, images)
        guest = Guest(network, source_name, self.anatomy, self.options, self.time, self.head_features)
        add_layers(guest)
        self.temporal, self.inflated = guest.temporal, guest.inflated
        channels_last(self)
        if self.options.strides or self.options.joint:
            self._find_strides(img_size)
        self._describe()

    # --- surgery ------------------------------------------------------------------------------------------------------

    def _take_classifier(self) -> None:
        """Moves the linear layers that make the logits out of the network, as one layer."""
        names = self.anatomy.classifiers
        if not names:
            self.head = LinearHead(self.num_classes, 0)
            return
        found = [self.network.get_submodule(name) for name in names]
        widths = [int(linear.in_features) for linear in found]  # type: ignore[arg-type]
        weights, biases = _merged_classifier([linear.state_dict() for linear in found])
        first = next(found[0].parameters())
        head = LinearHead(sum(widths), self.num_classes)
        fc = nn.Linear(sum(widths), self.num_classes, bias=biases is not None, device=first.device, dtype=first.dtype)
        with torch.no_grad():
            fc.weight.copy_(weights)
            if biases is not None:
                fc.bias.copy_(biases)
        head.fc = fc
        self.head = head.train(found[0].training)
        for index, name in enumerate(names):
            if len(names) == 1:
                replace(self.network, name, nn.Identity())
            else:
                before, behind = sum(widths[:index]), sum(widths[index + 1 :])
                replace(self.network, name, nn.ConstantPad1d((before, behind), 0.0))

    def _describe(self) -> None:
        """Sets what the model says of its features."""
        time = self.num_frames // self.time.at_end()
        features = self.read_out.features
        self.gives_maps = features.kind != "tokens"
        self.num_features = features.channels
        last = FeatureInfo("network", features.channels, self._reduction(time, features))
        self.feature_info = [last]
        if self.read_out.watched is not None and self.read_out.map is not None:
            name, found = f"network.{self.read_out.watched[0]}", self.read_out.map
            self.feature_info.insert(0, FeatureInfo(name, found.channels, self._reduction(time, found)))

    def _reduction(self, time: int, layout: Layout) -> tuple[int, int, int]:
        height, width = (max(1, side // cells) for side, cells in zip(self.img_size, layout.grid, strict=True))
        return time, height, width

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
        """Maps (B, C, T, H, W) to (B*T, C, H, W) in channels_last, and tells all layers how many frames there are."""
        self._check_clip(clip)
        self.time.frames = clip.shape[2]
        return clip.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)

    def _unfold(self, frames: Tensor) -> Tensor:
        """Maps (B*T', ...) to (B, T', ...)."""
        return frames.unflatten(0, (-1, self.time.at_end()))

    @property
    def num_prefix_tokens(self) -> int:  # type: ignore[override]
        """Tokens in front of those of the grid: the class tokens and registers of every frame of the last clip."""
        return self.read_out.features.prefix * self.time.at_end()

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the 2D network over all frames, up to its pooling."""
        own: Any = self.network
        run = own.forward_features if self.read_out.splits else own
        frames = self._fold(clip)
        if len(self.feature_info) > 1 and tap is not leave:
            with self.read_out.watching(self.network, lambda maps: tap(0, maps), clip.shape[0]):
                x = run(frames)
        else:
            x = run(frames)
        layout = self.read_out.features
        if layout.kind == "tokens":
            parts = self._unfold(x).tensor_split((layout.prefix,), dim=2)
            features = torch.cat([part.flatten(1, 2) for part in parts], dim=1)
        else:
            features = layout.to_map(x, clip.shape[0])
        return tap(len(self.feature_info) - 1, features)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Returns logits of features, or what the classifier sees: the mean over the frames.

        Raises:
            ConfigError: If that is asked for, but the classifier could not be taken out of the network.
        """
        if pre_logits and not self.anatomy.classifiers:
            raise ConfigError(
                f"{self.source_name}: its classifier is within the network, so no features come before it"
            )
        layout, times = self.read_out.features, self.time.at_end()
        if layout.kind == "tokens":
            first, rest = features.split((layout.prefix * times, features.shape[1] - layout.prefix * times), dim=1)
            by_frame = (part.unflatten(1, (times, -1)) for part in (first, rest))
            frames = torch.cat(tuple(by_frame), dim=2).flatten(0, 1)
        else:
            frames = layout.from_map(features, features)
        own: Any = self.network
        return self._classify(own.forward_head(frames) if self.read_out.splits else frames, pre_logits)

    def _classify(self, frames: Tensor, pre_logits: bool = False) -> Tensor:
        """Joins the vectors of the frames, (B*T', C), and classifies."""
        vectors = self._unfold(frames)
        if "head" in self.temporal:
            pooled = self.temporal["head"](vectors, recompute=self.grad_checkpointing)
        else:
            pooled = vectors.mean(1)
        return self.head(pooled, pre_logits=pre_logits)

    def forward(self, clip: Tensor) -> Tensor:
        """Returns logits (B, num_classes), as `forward_head` of `forward_features` does, with fewer copies."""
        return self._classify(self.network(self._fold(clip)))

    def norm_pairs(self, clip: Tensor | None = None) -> list[tuple[str, str]]:
        """Returns which batch norm stands beside which convolution, found by following one forward pass."""
        return follow_norms(self, (2, self.in_chans, self.num_frames, *self.img_size), clip)

    def get_classifier(self) -> nn.Module:
        """Returns the layer that makes the logits."""
        if self.anatomy.classifiers:
            return super().get_classifier()
        return self.network.get_submodule(self.anatomy.logits[0])

    def reset_classifier(self, num_classes: int, *, head: Literal["default", "attentive"] = "default") -> None:
        """Replaces the classifier by a freshly initialised one; 0 classes returns what it would see."""
        if head != "default":
            raise ConfigError(f"head {head!r}: an inflated network keeps the pooling of {self.source_name}")
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
            replace(self.network, name, new.train(old.training))
        self.num_classes = num_classes
        self.head = LinearHead(num_classes, 0)
        self.recipe = {**self.recipe, "num_classes": num_classes}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches the recomputation of the network's blocks, and of the transformer over frames, on or off."""
        self.grad_checkpointing = enable
        for site in self.anatomy.blocks:
            block = self.network.get_submodule(site.name)
            if enable and not isinstance(block, Recomputed):
                replace(self.network, site.name, Recomputed(block, self.time))
            elif not enable and isinstance(block, Recomputed):
                replace(self.network, site.name, block.block)

    def no_weight_decay(self) -> set[str]:
        """Returns the network's own choice, and the tables of times and distances."""
        own = getattr(self.network, "no_weight_decay", None)
        names = {f"network.{name}" for name in own()} if own is not None else set()
        return names | {name for name, _ in self.named_parameters() if name.endswith(("time_embed", "time_bias"))}

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

        def book(source: str, target: str, kind: RuleKind, rule: str, value: Tensor | None, source_shape: str) -> None:
            shape = () if value is None else tuple(value.shape)
            rules.append(TensorRule(source, target, kind, rule, source_shape, shape))
            if value is not None:
                inflated[target] = value

        classifier = [name for name in self.anatomy.classifiers if f"{name}.weight" in state]
        head_keys = {f"{name}.{part}": part for name in self.anatomy.logits for part in ("weight", "bias")}
        for key, value in state.items():
            shape = str(tuple(value.shape))
            if key in head_keys and new_head:
                book(key, "", "dropped", f"dropped: a classifier of {value.shape[0]} classes", None, shape)
            elif key in head_keys and classifier:
                continue
            else:
                target = f"network.{key}"
                if target in own and own[target].dim() == value.dim() + 1 == 5:
                    frames = own[target].shape[2]
                    kernel = taps(value, frames, init=self.options.init)
                    book(key, target, "derived", describe_taps(frames, self.options.init), kernel, shape)
                else:
                    book(key, target, "copied", COPIED, value, shape)
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
                    kind: RuleKind = "copied" if len(classifier) == 1 else "derived"
                    rule = COPIED if len(classifier) == 1 else how
                    book(" + ".join(sources), f"head.fc.{part}", kind, rule, merged, shapes)
        for target, value in own.items():
            if target in inflated or not (target.startswith("temporal.") or (new_head and target in self.head_keys())):
                continue
            reason = "a new classifier" if not target.startswith("temporal.") else self._start_of(target)
            book("", target, "initialised", f"initialised: {reason}", value, "")
        return inflated, rules

    def head_keys(self) -> set[str]:
        """Returns the names of the classifier's tensors."""
        if self.anatomy.classifiers:
            return {"head.fc.weight", "head.fc.bias"}
        return {f"network.{name}.{part}" for name in self.anatomy.logits for part in ("weight", "bias")}

    def _start_of(self, key: str) -> str:
        """Says how a layer starts that the 2D network does not have."""
        layer = self.temporal[key.split(".")[1]]
        if isinstance(layer, TemporalFilter):
            return "the identity in time" if self.options.init == "center" else "the mean of the frames"
        if isinstance(layer, JointTime):
            return "times, zero"
        return "attention over time, which adds nothing at first"


def _merged_classifier(parts: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of one layer for the mean of several, whose inputs come side by side and so averaged."""
    weight = torch.cat([part["weight"] for part in parts], dim=1)
    biases = [part["bias"] for part in parts if "bias" in part]
    return weight, torch.stack(biases).sum(0) / len(parts) if biases else None
