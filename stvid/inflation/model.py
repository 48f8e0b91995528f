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

With ``causal`` no frame sees a later one (``none``, ``shift`` and ``conv``): kernels end with the current frame, and
channels move on in time alone. Such a model runs over a stream; the logits are those of the mean of all frames so far.

Which layers these are is found in placement.py, what they become is in temporal.py. At the start the model computes for
a still video what the 2D network computes for its frame: `stvid.inflation.proof`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from stvid.errors import ConfigError, StvidError
from stvid.inflation.anatomy import Observed, examine, images_for, in_words, no_training
from stvid.inflation.guests import keep_usual_layout
from stvid.inflation.options import InflationOptions
from stvid.inflation.outputs import training_reader
from stvid.inflation.placement import Guest, add_layers, replace
from stvid.inflation.readout import Layout, find_read_out
from stvid.inflation.recomputation import Recomputed
from stvid.inflation.report import COPIED, InflationReport, RuleKind, TensorRule
from stvid.inflation.sources import ImageOrigin
from stvid.inflation.temporal import (
    ClipTime,
    JointTime,
    TemporalFilter,
    describe_kernels,
    kernels,
)
from stvid.models.base import FeatureInfo, VideoModel, leave
from stvid.models.blocks import Tap
from stvid.models.following import follow_norms
from stvid.models.heads import LinearHead
from stvid.models.kernels import channels_last
from stvid.models.streaming import StreamMemory, StreamState

__all__ = ["InflatedModel"]
_log = logging.getLogger(__name__)


class Rehearsal(Protocol):
    """Runs a model as soon as it is built, and compares it with what was seen of its 2D network.

    Attributes:
        seen: Gets what the 2D network does.
    """

    seen: Observed

    def __call__(self, model: InflatedModel) -> bool:
        """Returns whether it ran the model."""
        ...


class Taken(nn.Identity):
    """Stands where a classifier was, and answers what the network asks of it (``in_features``, ``weight.dtype``).

    Args:
        head: Where the classifier is now.
    """

    def __init__(self, head: LinearHead) -> None:
        super().__init__()
        self.__dict__["head"] = head  # not by `setattr`, which would make it a submodule of the network

    def __getattr__(self, name: str) -> Any:
        """Gives an attribute of the classifier."""
        if "head" not in self.__dict__ or name.startswith("__"):  # asked by `copy` and `pickle`
            raise AttributeError(name)
        return getattr(self.__dict__["head"].fc, name)


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
        new_head: Whether the network gets a new classifier, so that its features will do instead of logits.
        trial: Runs the model once it is built; where it does not, noise runs. It is called again where the layout has
            to change.

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
        reader: Where the logits are in what the network returns in evaluation mode.
        inflation: What became of every tensor, and the proof; None if the model was not made by `stvid.inflate`.

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
        new_head: bool = False,
        trial: Rehearsal | None = None,
    ) -> None:
        super().__init__()
        if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
            raise ConfigError(f"num_frames {num_frames!r}: must be a positive whole number")
        self.options = InflationOptions() if options is None else options
        self.streams = self.options.causal
        self.in_chans = in_chans
        self.num_frames = num_frames
        self.source_name = source_name
        self.time = ClipTime(num_frames)
        self.anatomy = examine(
            network,
            img_size,
            in_chans=in_chans,
            name=source_name,
            as_features=new_head,
            logits_at=self.options.logits,
            observed=None if trial is None else trial.seen,
        )
        self.num_classes = self.anatomy.num_classes
        self.reader = self.anatomy.reader
        self.inflation: InflationReport | None = None
        self.origin: ImageOrigin | None = None
        self.img_size = img_size
        self.network = network
        self._take_classifier()
        image = images_for(network, (1, in_chans, *img_size))
        self.read_out = find_read_out(network, self.anatomy, image, self.head_features)
        guest = Guest(network, source_name, self.anatomy, self.options, self.time, self.head_features)
        add_layers(guest)
        self.temporal, self.inflated = guest.temporal, guest.inflated
        self._lay_out(trial)
        self._describe()

    # --- surgery ------------------------------------------------------------------------------------------------------

    def _take_classifier(self) -> None:
        """Moves the modules that make the logits out of the network; several linear layers become one."""
        names = self.anatomy.classifiers
        if not names:
            self.head = LinearHead(self.anatomy.width, 0)
            return
        found: list[Any] = [self.network.get_submodule(name) for name in names]
        widths = [self.anatomy.sites[name].channels for name in names]
        self.head = LinearHead(sum(widths), 0).train(found[0].training)
        if len(found) == 1:
            self.head.fc = found[0]
            replace(self.network, names[0], Taken(self.head))
            return
        weights, biases = _merged_classifier([linear.state_dict() for linear in found])
        first = found[0].weight
        self.head.fc = fc = nn.Linear(
            sum(widths), self.num_classes, bias=biases is not None, device=first.device, dtype=first.dtype
        )
        fc.train(found[0].training)
        with torch.no_grad():
            fc.weight.copy_(weights)
            if biases is not None:
                fc.bias.copy_(biases)
        for index, name in enumerate(names):
            before, behind = sum(widths[:index]), sum(widths[index + 1 :])
            replace(self.network, name, nn.ConstantPad1d((before, behind), 0.0))

    def _lay_out(self, trial: Rehearsal | None) -> None:
        """Chooses the layout in memory: channels_last, if the network runs in it; `Tensor.view` often does not."""
        channels_last(self)
        keep_usual_layout(self.network)
        try:
            self._try(trial)
        except StvidError:
            raise
        except Exception as problem:  # whatever a network's own code raises
            self.time.channels_last = False
            for parameter in self.parameters():
                parameter.data = parameter.data.contiguous()
            try:
                self._try(trial)
            except Exception as error:
                raise self._cannot_run(error) from problem

    def _try(self, trial: Rehearsal | None) -> None:
        """Runs a clip; with it each layer learns how many frames are left of a clip where it is."""
        strided = bool(self.options.strides) or self.options.joint
        self.time.stride, self.time.recording = 1, strided
        try:
            with no_training(self):
                if trial is None or not trial(self):
                    self(self._noise(self.num_frames if strided else 2))
        finally:
            self.time.recording = False
            self.time.frames = self.num_frames

    def _cannot_run(self, error: Exception) -> ConfigError:
        hint = ""
        if self.options.strides or self.options.joint:
            hint = (
                "; leave strides in time out of residual branches, and joint attention out of layers with position "
                "biases"
            )
        return ConfigError(f"{self.source_name}: the inflated network cannot run ({in_words(error)}){hint}")

    def _noise(self, frames: int) -> Tensor:
        """Returns a clip of noise in the type that the network takes."""
        images = images_for(self.network, (frames, self.in_chans, *self.img_size))
        return images.transpose(0, 1).unsqueeze(0)

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

    # --- the model ----------------------------------------------------------------------------------------------------

    def _fold(self, clip: Tensor) -> Tensor:
        """Maps (B, C, T, H, W) to (B*T, C, H, W), and tells all layers how many frames there are."""
        self._check_clip(clip)
        self.time.clips, self.time.frames = clip.shape[0], clip.shape[2]
        return self.time.laid_out(clip.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2))

    def _unfold(self, frames: Tensor) -> Tensor:
        """Maps (B*T', ...) to (B, T', ...)."""
        return frames.unflatten(0, (-1, self.time.at_end()))

    @property
    def num_prefix_tokens(self) -> int:  # type: ignore[override]
        """Tokens in front of those of the grid: the class tokens and registers of every frame of the last clip."""
        return self.read_out.features.prefix * self.time.at_end()

    def _run(self, frames: Tensor) -> Tensor:
        """Runs the 2D network, whose classifier is out of it, and takes the features or logits from what it returns."""
        output = self.network(frames)
        if isinstance(output, Tensor) and self.reader.plain:
            return output
        if not self.training:
            return self.reader(output)
        classifiers = self.anatomy.classifiers
        width = self.head_features if classifiers else self.anatomy.width
        return training_reader(output, self.reader, width, several=len(classifiers) > 1)(output)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the 2D network over all frames, up to its pooling."""
        own: Any = self.network
        run = own.forward_features if self.read_out.splits else self._run
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
        if pre_logits and self.anatomy.logits and not self.anatomy.classifiers:
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
        return self._classify(self._run(self._fold(clip)))

    def step(self, frames: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Goes on with a stream; see `VideoModel.step`."""
        self.init_state(state.batch_size)  # says why not, if the model does not run over a stream
        folded = self._fold(frames)
        if len(frames) != state.batch_size:
            raise ValueError(
                f"the state is for {state.batch_size} streams side by side, the frames are of {len(frames)}"
            )
        memory = StreamMemory(state)
        with self.time.streaming(memory):
            vectors = self._unfold(self._run(folded))
        wide = vectors.float() if vectors.dtype in (torch.bfloat16, torch.float16) else vectors
        total = wide.sum(1)
        past = memory.recall(total.shape)
        total = total if past is None else total + past[0]
        memory.keep(total)
        new = memory.after(frames.shape[2])
        return self.head((total / new.frames).to(vectors.dtype)), new

    def norm_pairs(self, clip: Tensor | None = None) -> list[tuple[str, str]]:
        """Returns which batch norm stands beside which convolution, found by following one forward pass.

        On torch's meta device, which computes nothing, or where the network does not run there, on its own.
        """
        shape = (2, self.in_chans, self.num_frames, *self.img_size)
        if clip is not None:
            return follow_norms(self, shape, clip)
        try:
            return follow_norms(self, shape)
        except StvidError:  # such as a tensor that is no buffer and stays on the CPU
            return follow_norms(self, shape, self._noise(2))

    def get_classifier(self) -> nn.Module:
        """Returns the module that makes the logits; an identity, if no single one does."""
        if self.anatomy.classifiers or not self.anatomy.logits:
            return super().get_classifier()
        return self.network.get_submodule(self.anatomy.logits[0])

    def reset_classifier(self, num_classes: int, *, head: Literal["default", "attentive"] = "default") -> None:
        """Replaces the classifier by a freshly initialised one; 0 classes returns what it would see.

        A network whose logits no layer makes (none at all, or a function of prototypes) gets one on top.
        """
        if head != "default":
            raise ConfigError(f"head {head!r}: an inflated network keeps the pooling of {self.source_name}")
        if self.anatomy.classifiers or not self.anatomy.logits:
            weight = images_for(self.network, (1, self.in_chans, 1, 1))
            super().reset_classifier(num_classes)
            self.head.to(weight.device, weight.dtype)
            return
        if not num_classes:
            raise ConfigError(f"{self.source_name}: its classifier is within the network and cannot be left out")
        before = {name: self.network.get_submodule(name) for name in self.anatomy.logits}
        plain = all(isinstance(old, nn.Conv2d | nn.Linear) for old in before.values())
        for name, old in before.items() if plain else ():
            replace(self.network, name, _another(old, num_classes))
        self.num_classes = num_classes
        self.head = LinearHead(num_classes, 0)
        if not plain or not self._gives(num_classes):  # such as when something behind the layer counts on its width
            for name, old in before.items():
                replace(self.network, name, old)
            self.anatomy.logits = []
            weight = images_for(self.network, (1, self.in_chans, 1, 1))
            self.head = LinearHead(self.anatomy.width, num_classes).to(weight.device, weight.dtype)
        self.recipe = {**self.recipe, "num_classes": num_classes}

    def _gives(self, num_classes: int) -> bool:
        """Returns whether the model runs and gives as many logits."""
        try:
            with no_training(self):
                return self(self._noise(1)).shape == (1, num_classes)
        except Exception as error:  # whatever a network's own code raises
            _log.debug("%s: with %d classes: %s", self.source_name, num_classes, in_words(error))
            return False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches the recomputation of the network's blocks, and of the transformer over frames, on or off."""
        self.grad_checkpointing = enable
        for name in self._recomputable():
            block = self.network.get_submodule(name)
            if enable and not isinstance(block, Recomputed):
                replace(self.network, name, Recomputed(block, self.time))
            elif not enable and isinstance(block, Recomputed):
                replace(self.network, name, block.block)

    def _recomputable(self) -> list[str]:
        """Returns the names of the blocks, and of the members of those that are lists and do not run themselves."""
        names: list[str] = []
        for site in self.anatomy.blocks:
            if site.name == site.block:
                names.append(site.name)
            else:
                inside = [name for name in self.anatomy.sites if name.startswith(f"{site.block}.")]
                names += [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
        return names

    def no_weight_decay(self) -> set[str]:
        """Returns the network's own choice, and the tables of times and distances."""
        own = getattr(self.network, "no_weight_decay", None)
        names = {f"network.{name}" for name in own()} if own is not None else set()
        return names | {name for name, _ in self.named_parameters() if name.endswith(("time_embed", "time_bias"))}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: what is before the blocks, every block with what is attached in it, the rest."""
        groups = []
        for block in self.anatomy.blocks:
            dashed = re.escape(block.block.replace(".", "-"))
            groups.append(rf"^network\.{re.escape(block.block)}\.|^temporal\.{dashed}[-.]")
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

        names = self.anatomy.logits
        moved = self.anatomy.classifiers[0] if len(self.anatomy.classifiers) == 1 else None
        merged = [name for name in self.anatomy.classifiers if f"{name}.weight" in state] if moved is None else []
        for key, value in state.items():
            shape = str(tuple(value.shape))
            in_head = any(key.startswith(f"{name}.") for name in names)
            if in_head and new_head:
                classes = f" of {value.shape[0]} classes" if value.dim() else ""
                book(key, "", "dropped", f"dropped: a classifier{classes}", None, shape)
            elif in_head and moved is not None:
                book(key, f"head.fc.{key.removeprefix(f'{moved}.')}", "copied", COPIED, value, shape)
            elif in_head and merged:
                continue
            else:
                target = f"network.{key}"
                if target in own and own[target].dim() == value.dim() + 1 == 5:
                    frames = own[target].shape[2]
                    made: dict[str, Any] = {"init": self.options.init, "causal": self.options.causal}
                    kernel = kernels(value, frames, **made)
                    book(key, target, "derived", describe_kernels(frames, **made), kernel, shape)
                else:
                    book(key, target, "copied", COPIED, value, shape)
        if merged and not new_head:
            weights, biases = _merged_classifier(
                [
                    {part: state[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in state}
                    for name in merged
                ]
            )
            for part, joined, how in (("weight", weights, "side by side"), ("bias", biases, "their mean")):
                if joined is not None:
                    sources = [f"{name}.{part}" for name in merged]
                    shapes = " + ".join(str(tuple(state[source].shape)) for source in sources)
                    book(" + ".join(sources), f"head.fc.{part}", "derived", how, joined, shapes)
        for target, value in own.items():
            if target in inflated or not (target.startswith("temporal.") or (new_head and target in self.head_keys())):
                continue
            on_top = " on top of the network" if not self.anatomy.logits else ""
            kind = type(self.get_classifier()).__name__
            reason = self._start_of(target) if target.startswith("temporal.") else f"a new classifier{on_top} ({kind})"
            book("", target, "initialised", f"initialised: {reason}", value, "")
        return inflated, rules

    def head_keys(self) -> set[str]:
        """Returns the names of the classifier's tensors."""
        if self.anatomy.classifiers or not self.anatomy.logits:
            return {f"head.fc.{key}" for key in self.get_classifier().state_dict()}
        own = self.network.state_dict()
        return {f"network.{key}" for key in own if any(key.startswith(f"{name}.") for name in self.anatomy.logits)}

    def _start_of(self, key: str) -> str:
        """Says how a layer starts that the 2D network does not have."""
        layer = self.temporal[key.split(".")[1]]
        if isinstance(layer, TemporalFilter):
            return "the identity in time" if self.options.init == "center" else "the mean of the frames"
        if isinstance(layer, JointTime):
            return "times, zero"
        return "attention over time, which adds nothing at first"


def _another(old: Any, num_classes: int) -> nn.Module:
    """Returns a fresh layer like a classifier, for another number of classes."""
    settings: dict[str, Any] = {"bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}
    new: nn.Module = (
        nn.Conv2d(old.in_channels, num_classes, (1, 1), **settings)
        if isinstance(old, nn.Conv2d)
        else nn.Linear(old.in_features, num_classes, **settings)
    )
    return new.train(old.training)


def _merged_classifier(parts: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of one layer for the mean of several, whose inputs come side by side and so averaged."""
    weight = torch.cat([part["weight"] for part in parts], dim=1)
    biases = [part["bias"] for part in parts if "bias" in part]
    return weight, torch.stack(biases).sum(0) / len(parts) if biases else None
