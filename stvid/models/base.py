"""The contract of all models of stvid: each answers the same questions, so that tools ask instead of guessing.

    logits   = model(clip)                     # forward_head(forward_features(clip))
    features = model.forward_features(clip)    # maps (B, C, T', H', W') or tokens (B, prefix + t*h*w, C)
    vector   = model.forward_head(features, pre_logits=True)
    last, stages = model.forward_intermediates(clip, indices=[-2, -1])
    model.feature_info[-1].channels, model.token_grid(clip.shape), model.num_prefix_tokens

A family's class implements `encode` and sets a few attributes; the rest is here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stvid.errors import ConfigError, StvidError
from stvid.models.blocks import Tap, run_blocks
from stvid.models.heads import AttentivePoolHead, Head
from stvid.models.streaming import StreamState
from stvid.models.weights import Weights
from stvid.protocol import Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FeatureInfo", "FuseReport", "StagedModel", "VideoModel", "leave"]

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class FeatureInfo:
    """One intermediate result of a model.

    It can be read as a mapping with timm's keys, too: ``info["num_chs"]``, ``info["reduction"]``, ``info["module"]``.

    Attributes:
        module: Name of the module after which it is taken.
        channels: Its channels.
        reduction: By how much it is smaller than the clip in time, height and width.
    """

    module: str
    channels: int
    reduction: Grid

    def __getitem__(self, key: str) -> Any:
        return getattr(self, {"num_chs": "channels"}.get(key, key))


@dataclass(frozen=True)
class FuseReport:
    """Lists the norms that `stvid.fuse` folded into convolutions, and those that it kept.

    Attributes:
        fused: Name of each norm that is gone, with the name of the convolution that does its work.
        kept: Name of each batch norm that stays, with the reason.
    """

    fused: Mapping[str, str]
    kept: Mapping[str, str]

    def __str__(self) -> str:
        text = f"{len(self.fused)} of {len(self.fused) + len(self.kept)} batch norms folded into their convolutions"
        reasons = dict.fromkeys(self.kept.values())
        for reason in reasons:
            names = [name for name, why in self.kept.items() if why == reason]
            text += f"; {len(names)} kept, {reason} ({names[0]}{', ...' if len(names) > 1 else ''})"
        return text


def leave(index: int, x: Tensor) -> Tensor:
    """Takes an intermediate result as it is: the tap of callers who want none."""
    return x


class VideoModel(nn.Module):
    """Base class of the models.

    A family's class sets `num_classes`, `num_features`, `in_chans`, `head` and `feature_info`, and implements `encode`.
    A model that gives tokens implements `token_grid` and sets `gives_maps` and `num_prefix_tokens`, too. A model that
    can run over a stream sets `streams` and implements `step`. All arguments of the class are keywords with defaults,
    among them `num_classes`, `num_frames`, `img_size` (height, width) and `in_chans`. ``docs/add_a_model.md`` walks
    through a whole family.

    Attributes:
        num_classes: Number of logits.
        num_features: Channels of the features.
        in_chans: Channels of the clip.
        head: Turns features into logits; a module of `stvid.models.heads`.
        feature_info: Describes each result of `forward_intermediates`, in the order in which they are computed. It has
            at least two entries, of which the last is the features.
        gives_maps: Whether the features are maps; else they are tokens.
        num_prefix_tokens: Tokens in front of those of the grid (class tokens).
        block_prefix_tokens: Tokens in front of each sequence that `mergeable_blocks` see, which are not merged.
        names_attention: Whether all attention of the model goes through `attend` and names the axes that it goes over.
        takes_mask: Whether `forward_features` takes a mask.
        takes_texts: Whether the classes are texts, which `set_classes` changes.
        streams: Whether the model sees no later frame, so that it runs over a stream: `init_state`, `step`.
        joins_clips: Whether the clips of a video are classified together, as published: the head sees the tokens of all
            clips of a crop at once, instead of the scores of the clips being averaged. The features are tokens then.
        default_protocol: The published protocol at this model's frames and size; training replaces it by its own.
        weights: The published file that its weights are from, if they are from one whose name is known.
        measured: What its weights were measured at: ``metrics`` by names such as ``top1@4x3``, ``videos`` (how many),
            ``dataset``; empty if nothing was measured. It is saved with the weights.
        task: What the logits mean: ``multiclass`` (softmax) or ``multilabel`` (sigmoid). It is saved with the weights.
        recipe: The arguments of `create_model` that make this model again.
        grad_checkpointing: Whether activations are recomputed in the backward pass.
        fused: The report of a model that `stvid.fuse` made, else None.
        inference_only: Why the model cannot be trained or saved; empty if it can.
    """

    num_classes: int
    num_features: int
    in_chans: int
    head: nn.Module
    feature_info: list[FeatureInfo]
    gives_maps: bool = True
    num_prefix_tokens: int = 0
    block_prefix_tokens: int = 1
    names_attention: bool = True
    takes_mask: bool = False
    takes_texts: bool = False
    streams: bool = False
    joins_clips: bool = False
    fused: FuseReport | None = None
    inference_only: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.default_protocol = Protocol()
        self.weights: Weights | None = None
        self.measured: Mapping[str, Any] = {}
        self.task: str = "multiclass"
        self.recipe: dict[str, Any] = {}
        self.grad_checkpointing = False

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode.

        Raises:
            StvidError: If the model is for inference only.
        """
        if mode and self.inference_only:
            raise StvidError(
                f"{type(self).__name__} cannot be trained: {self.inference_only}; train the model it was made from"
            )
        return super().train(mode)

    # --- from a clip to logits ----------------------------------------------------------------------------------------

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Computes the features, and shows each intermediate result to `tap`.

        Args:
            clip: (B, in_chans, T, H, W).
            tap: A function that is called once for each entry of `feature_info`, in order, with its place and the
                result there; the model goes on with what it returns. The last call has the features themselves.

        Returns:
            The features, as `forward_features` returns them.

        Raises:
            ValueError: If the clip has a shape that the model does not take.
        """
        raise TypeError(f"{type(self).__name__} does not implement encode")

    def forward(self, clip: Tensor) -> Tensor:
        """Returns logits (B, num_classes) of clips (B, in_chans, T, H, W), or pooled features without a classifier."""
        return self.forward_head(self.forward_features(clip))

    def forward_features(self, clip: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Returns the features before pooling; the shapes stand in the docstring of the family's class.

        Args:
            clip: (B, in_chans, T, H, W).
            mask: bool (B, t*h*w) over the cells of `mask_grid`, True where a cell is left out, as masked pretraining
                does; all clips of a batch leave out the same number. None keeps all.

        Returns:
            Maps (B, num_features, T', H', W'), or tokens (B, num_prefix_tokens + t*h*w, num_features), the cells of the
            grid in the order of time, height, width.

        Raises:
            ValueError: If the clip has a shape that the model does not take, or the mask does not fit it.
            StvidError: If there is a mask and the model takes none.
        """
        if mask is None:
            return self.encode(clip, leave)
        if not self.takes_mask:
            raise StvidError(f"{type(self).__name__} takes no mask: its blocks need the whole grid of tokens")
        return self.encode_visible(clip, ~mask)

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Computes the features of some tokens alone; models with `takes_mask` implement it.

        Args:
            clip: (B, in_chans, T, H, W).
            visible: bool (B, t*h*w), True for the tokens that are kept, the same number in each clip.

        Returns:
            (B, num_prefix_tokens + kept tokens, num_features).
        """
        raise TypeError(f"{type(self).__name__} does not implement encode_visible")

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Returns the logits (B, num_classes) of features, or with `pre_logits` the input of the classifier."""
        return self.head(features, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        clip: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        output: Literal["NCTHW", "NLC"] = "NCTHW",
        intermediates_only: bool = False,
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        """Returns the features, and the intermediate results on the way to them; the interface is timm's.

        Args:
            clip: (B, in_chans, T, H, W).
            indices: Places in `feature_info`; negative ones count from the end. A single number takes that many of the
                last results, None takes all. The last result is the features themselves, after the last norm.
            output: ``NCTHW`` gives maps (B, C, t, h, w), ``NLC`` tokens (B, t*h*w, C); neither has prefix tokens.
            intermediates_only: Leave the features out of the answer.

        Returns:
            The features, as `forward_features` returns them, and the list of intermediate results; or the list alone.

        Raises:
            ValueError: If an index does not exist, the output is unknown, or the model does not take such clips.
        """
        if output not in ("NCTHW", "NLC"):
            raise ValueError(f"output {output!r}: choose NCTHW or NLC")
        wanted = self._places(indices)
        found: dict[int, Tensor] = {}

        def tap(index: int, x: Tensor) -> Tensor:
            if index in wanted:
                found[index] = x
            return x

        features = self.encode(clip, tap)
        maps = [self.to_map(found[place], place, (clip.shape[2], clip.shape[3], clip.shape[4])) for place in wanted]
        results = maps if output == "NCTHW" else [each.flatten(2).transpose(1, 2) for each in maps]
        return results if intermediates_only else (features, results)

    def _places(self, indices: int | Sequence[int] | None) -> list[int]:
        number = len(self.feature_info)
        if indices is None:
            return list(range(number))
        if isinstance(indices, int):
            if not 1 <= indices <= number:
                raise ValueError(f"indices {indices}: {type(self).__name__} has {number} intermediate results")
            return list(range(number - indices, number))
        for index in indices:
            if not -number <= index < number:
                raise ValueError(f"index {index}: {type(self).__name__} has {number} intermediate results")
        return [index % number for index in indices]

    def to_map(self, x: Tensor, place: int, clip_size: Grid) -> Tensor:
        """Returns an intermediate result as a map.

        Args:
            x: The result, as `encode` shows it to its tap.
            place: Its place in `feature_info`.
            clip_size: (T, H, W) of the clip.

        Returns:
            (B, C, t, h, w).
        """
        if x.dim() == 5:
            return x
        tokens = x[:, self.num_prefix_tokens :]
        return tokens.transpose(1, 2).unflatten(2, self.token_grid(clip_size))

    def token_grid(self, clip_shape: Sequence[int]) -> Grid:
        """Returns the cells (t, h, w) of the features of a clip.

        Args:
            clip_shape: (B, C, T, H, W), or its last three.
        """
        reduction = self.feature_info[-1].reduction
        time, height, width = (-(-size // step) for size, step in zip(clip_shape[-3:], reduction, strict=True))
        return time, height, width

    def mask_grid(self, clip_shape: Sequence[int]) -> Grid:
        """Returns the cells (t, h, w) that a mask leaves out: those of the features, or larger ones.

        Args:
            clip_shape: (B, C, T, H, W), or its last three.
        """
        return self.token_grid(clip_shape)

    # --- frame by frame -----------------------------------------------------------------------------------------------

    def init_state(self, batch_size: int = 1) -> StreamState:
        """Returns the state at the start of a stream, for `step`.

        Args:
            batch_size: Streams that run side by side.

        Raises:
            StvidError: If the model does not run over a stream (`streams`).
        """
        if not self.streams:
            raise StvidError(
                f"{type(self).__name__} does not run over a stream, since it was built to see later frames too; "
                "networks that can do without are built with causal=True"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: a state is for one stream at least")
        return StreamState(batch_size)

    def step(self, frames: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Goes on with a stream; models with `streams` implement it.

        However a video is cut into chunks, the logits after the last one are those of `forward` for the whole of it.

        Args:
            frames: The next frames (B, in_chans, T, H, W), one or more, all of the size of the first ones.
            state: From `init_state`, or from the step before. It stays as it is.

        Returns:
            The logits (B, num_classes) of all that has passed so far, and the new state. Gradients flow back through
            the state; `StreamState.detach` cuts them off.

        Raises:
            ValueError: If the frames have a shape that the model does not take, or another number of streams.
            StvidError: If the model does not run over a stream, or the state is of another model.
        """
        self.init_state(state.batch_size)  # says why not, if the model does not run over a stream
        raise TypeError(f"{type(self).__name__} does not implement step")

    def speed_up_steps(self) -> str:
        """Prepares `step` for inference on a CPU, in a copy whose weights stay as they are; `stvid.optimize` calls it.

        Returns:
            A line that says what was done; empty if nothing was.
        """
        return ""

    # --- what training and tools ask ----------------------------------------------------------------------------------

    @property
    def head_features(self) -> int:
        """Channels that the classifier sees: those of ``forward_head(features, pre_logits=True)``."""
        return self.head.num_features if isinstance(self.head, Head) else self.num_features

    def get_classifier(self) -> nn.Module:
        """Returns the layer that makes the logits."""
        return self.head.classifier if isinstance(self.head, Head) else self.head

    def reset_classifier(self, num_classes: int, *, head: Literal["default", "attentive"] = "default") -> None:
        """Replaces the classifier by a freshly initialised one.

        Args:
            num_classes: Number of logits; 0 returns what the classifier would see.
            head: ``attentive`` replaces the whole head by one that pools by attention (`AttentivePoolHead`).

        Raises:
            ValueError: If there is no such head.
        """
        if head == "attentive":
            first = next(self.parameters())
            heads = max(1, self.num_features // 64)
            while self.num_features % heads:
                heads -= 1
            self.head = AttentivePoolHead(self.num_features, num_classes, num_heads=heads).to(first)
            self.head.train(self.training)
        elif head != "default":
            raise ValueError(f"head {head!r}: choose default or attentive")
        elif isinstance(self.head, Head):
            self.head.reset(num_classes)
        else:
            raise TypeError(f"{type(self).__name__} has a head of its own and must implement reset_classifier")
        self.num_classes = num_classes
        self.recipe = {**self.recipe, "num_classes": num_classes, **({"head": head} if head != "default" else {})}

    def set_classes(self, names: Sequence[str]) -> None:
        """Makes texts the classes of the model; only models with `takes_texts` can.

        Args:
            names: A text for each class, such as "opening a door".

        Raises:
            ConfigError: If the model does not take texts, or the texts are not usable.
        """
        raise ConfigError(
            f"classes: {self.recipe.get('name', type(self).__name__)} does not take texts as classes; X-CLIP does, "
            "built with text=True (xclip_b16, xclip_b32, xclip_l14)"
        )

    def stages(self) -> dict[str, nn.Module]:
        """Returns the modules whose outputs `forward_intermediates` gives, by name, in the order of computation."""
        return {info.module: self.get_submodule(info.module) for info in self.feature_info}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches the recomputation of activations on or off."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Returns names of parameters that are not decayed, besides the biases and norms that never are."""
        return set()

    def group_matcher(self) -> dict[str, Any]:
        """Returns regular expressions of the layer groups, from the input on, for layer-wise learning rates.

        The mapping is timm's. Each entry is a name, such as ``stem`` or ``blocks``, with one expression, or with a list
        of pairs (expression, order). The groups come in the order of the entries, and within an entry in that of the
        numbers that the parentheses of an expression capture. The order of a pair is None, or a tuple of numbers that
        are added behind those captured: ``(99999,)`` puts a last norm behind all blocks. What matches no expression,
        such as the classifier, is the last group.
        """
        raise TypeError(f"{type(self).__name__} does not define layer groups: optim.layer_decay must be 1")

    def mergeable_blocks(self) -> dict[str, nn.Module]:
        """Returns the blocks in which each token sees all others of its sequence, by name, for `stvid.merge_tokens`.

        Empty if the model has no such blocks, or needs the tokens in between.
        """
        return {}

    def norm_pairs(self, clip: Tensor | None = None) -> list[tuple[str, str]]:
        """Returns which batch norm stands beside which convolution, for `stvid.fuse`.

        Args:
            clip: A clip to run a network of another library with, which shows where its norms stand; native models
                know without.

        Returns:
            Pairs of names in the order of computation: (convolution, norm) or (norm, convolution). Nothing else sees
            the tensor between the two, and both run once. Layers of an `nn.Sequential` that follow each other are found
            by themselves; other modules name theirs in a class attribute ``norm_neighbours``, a tuple of pairs of
            the names of children, such as ``(("conv1", "norm1"), ("conv2", "norm2"))``.
        """
        return list(_pairs_within(self))

    def merge_branches(self) -> dict[str, str]:
        """Merges layers, in place, that are one layer in evaluation mode, such as convolutions that are added up.

        `stvid.fuse` calls it on its copy, before it asks for `norm_pairs`; the outputs stay the same.

        Returns:
            The name of each batch norm that is gone, with the name of the layer that does its work. Empty if the model
            has no such layers.
        """
        return {}

    # --- published weights --------------------------------------------------------------------------------------------

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns a published state into this model's keys and shapes.

        Args:
            state: Flat mapping without wrappers.

        Returns:
            The name of the recognised format, and the state in this model's own keys.
        """
        return "stvid", dict(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the hyperparameters, other than the variant's own, that a published state needs.

        `stvid.load_model` builds the model with them when it is given a name and a checkpoint that stvid did not write.

        Args:
            state: As for `convert_checkpoint`.
        """
        return {}

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Returns a position table of a checkpoint at this model's frames and size.

        Args:
            key: One of this model's own keys, whose shape differs from the checkpoint's.
            table: The checkpoint's tensor.
            built: The `recipe` that is stored with the weights, with ``num_frames`` and ``img_size`` (height, width);
                empty for published formats.

        Returns:
            The resized table; None if the key is no table or the table's own grid is unknown.
        """
        return None

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes over settings that come with weights but are no tensors, such as an epsilon; called after loading.

        Args:
            format_name: The format that `convert_checkpoint` recognised.
            hyperparameters: The hyperparameters in a checkpoint of stvid; empty for other formats.
        """

    def _check_clip(self, clip: Tensor, *, minimum: Grid = (1, 1, 1)) -> None:
        """Raises ValueError unless the clip is (B, in_chans, T, H, W) and no smaller than `minimum` (T, H, W)."""
        if clip.dim() != 5 or clip.shape[1] != self.in_chans:
            raise ValueError(
                f"{type(self).__name__} takes a clip of shape (B, {self.in_chans}, T, H, W), not {tuple(clip.shape)}"
            )
        if clip.shape[2] < minimum[0] or clip.shape[3] < minimum[1] or clip.shape[4] < minimum[2]:
            raise ValueError(
                f"{type(self).__name__} takes clips of at least {minimum[0]} frames of {minimum[1]}x{minimum[2]} "
                f"pixels, not {clip.shape[2]} of {clip.shape[3]}x{clip.shape[4]}"
            )


def _pairs_within(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        neighbours = list(getattr(type(module), "norm_neighbours", ()))
        if isinstance(module, nn.Sequential):
            neighbours += itertools.pairwise(module._modules)
        for before, behind in neighbours:
            first, second = _end_of(module, before, last=True), _end_of(module, behind, last=False)
            kinds = [isinstance(part, _BatchNorm) for _, part in (first, second)]
            convs = [isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for _, part in (first, second)]
            if sum(kinds) == 1 and sum(convs) == 1:
                yield prefix + first[0], prefix + second[0]


def _end_of(parent: nn.Module, name: str, *, last: bool) -> tuple[str, nn.Module | None]:
    """Returns the first or last layer of a child, going into nested sequences; None if there is no such child."""
    module: nn.Module | None = parent
    for part in name.split("."):
        module = getattr(module, part, None)
    while isinstance(module, nn.Sequential) and len(module):
        key = list(module._modules)[-1 if last else 0]
        name, module = f"{name}.{key}", module._modules[key]
    return name, module


class StagedModel(VideoModel):
    """Base class of the video ResNets: four stages of residual blocks after a stem.

    Attributes:
        layer1: The blocks of the first stage; `layer2` to `layer4` hold the others.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def build_stages(self, depth: Sequence[int], make_block: Callable[[int, int], nn.Module]) -> None:
        """Makes the stages.

        Args:
            depth: Blocks of each stage.
            make_block: Called with the numbers of the stage and of the block in it, both from 0, in order.

        Raises:
            ValueError: If there are not four stages.
        """
        if len(depth) != 4:
            raise ValueError(f"{type(self).__name__} has four stages: depth {tuple(depth)} needs four numbers")
        for stage, blocks in enumerate(depth):
            self.add_module(f"layer{stage + 1}", nn.Sequential(*(make_block(stage, block) for block in range(blocks))))

    def describe_stages(self, channels: int, reductions: Sequence[Grid]) -> None:
        """Sets `feature_info`: one entry for each stage.

        Args:
            channels: Channels of the first stage; each later one has twice as many.
            reductions: By how much each stage is smaller than the clip in time, height and width.
        """
        self.feature_info = [
            FeatureInfo(f"layer{stage + 1}", channels * 2**stage, reduction)
            for stage, reduction in enumerate(reductions)
        ]

    def run_stage(self, number: int, x: Tensor, tap: Tap) -> Tensor:
        """Applies stage 1, 2, 3 or 4."""
        layer: nn.Sequential = getattr(self, f"layer{number}")
        return tap(number - 1, run_blocks(layer, x, recompute=self.grad_checkpointing))

    def run_stages(self, x: Tensor, tap: Tap) -> Tensor:
        """Applies all stages."""
        for number in (1, 2, 3, 4):
            x = self.run_stage(number, x, tap)
        return x

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every block in order."""
        return {"stem": r"^(?:stem|conv1|bn1)\.", "blocks": [(r"^layer(\d)\.(\d+)", None)]}
