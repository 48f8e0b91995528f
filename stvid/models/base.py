"""The base class of every model: the methods that training, evaluation and checkpoint loading rely on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stvid.errors import StvidError
from stvid.models.blocks import init_transformer_weights, run_blocks
from stvid.protocol import Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

    from stvid.inference import FuseReport

__all__ = ["StagedModel", "VideoModel"]


class VideoModel(nn.Module):
    """Base class of the models: the methods that training, evaluation and checkpoint loading rely on.

    A family's class sets `num_classes` and `num_features`, keeps its classifier in the attribute `head` and
    implements `forward_features` and `forward`.

    Attributes:
        num_classes: Number of logits.
        num_features: Channels that the classifier sees.
        default_protocol: The published protocol at this model's frames and size; training replaces it by its own.
        task: What the logits mean: ``multiclass`` (softmax) or ``multilabel`` (sigmoid). It is saved with the weights.
        recipe: The arguments of `create_model` that make this model again.
        grad_checkpointing: Whether activations are recomputed in the backward pass.
        fused: The `stvid.inference.FuseReport` of a model that `stvid.fuse` made, else None.
        inference_only: Why the model cannot be trained or saved; empty if it can.
    """

    num_classes: int
    num_features: int
    fused: FuseReport | None = None
    inference_only: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.default_protocol = Protocol()
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

    def forward_features(self, clip: Tensor) -> Tensor:
        """Returns the features before pooling, (B, num_features, T', H', W') or (B, tokens, num_features)."""
        raise TypeError(f"{type(self).__name__} does not implement forward_features")

    def get_classifier(self) -> nn.Module:
        """Returns the layer that makes the logits."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a freshly initialised one; 0 classes returns the pooled features."""
        old = self.get_classifier()
        device = next(self.parameters()).device
        dtype = next(self.parameters()).dtype
        self.num_classes = num_classes
        self.head = (
            nn.Linear(self.num_features, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        )
        init_transformer_weights(self.head)
        self.head.train(old.training)
        self.recipe = {**self.recipe, "num_classes": num_classes}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches the recomputation of activations on or off."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Returns names of parameters that are not decayed, besides the biases and norms that never are."""
        return set()

    def group_matcher(self) -> dict[str, Any]:
        """Returns regular expressions of the layer groups, from the input on, for layer-wise learning rates.

        The keys are those of timm: ``stem``, one expression or a list, and ``blocks``, a list of (expression, order)
        in which a group of parentheses captures the number of a block.
        """
        raise TypeError(f"{type(self).__name__} does not define layer groups: optim.layer_decay must be 1")

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

        `stvid.load_model` builds the model with them when it is given a name and a checkpoint of others.

        Args:
            state: As for `convert_checkpoint`.
        """
        return {}

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Returns a position table of a checkpoint at this model's frames and size.

        Args:
            key: One of this model's own keys, whose shape differs from the checkpoint's.
            table: The checkpoint's tensor.
            built: The `recipe` that is stored with the weights; empty for published formats.

        Returns:
            The resized table; None if the key is no table or the table's own grid is unknown.
        """
        return None

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Sets what comes with weights but is no tensor, such as an epsilon; called after they were loaded.

        Args:
            format_name: What `convert_checkpoint` recognised.
            hyperparameters: Those stored with a checkpoint of stvid; empty for other formats.
        """

    def plain_blocks(self) -> tuple[Sequence[nn.Module], int] | None:
        """Returns the `Block`s in which each token sees all others of its sequence, for `stvid.merge_tokens`.

        Returns:
            The blocks, and how many tokens in front of the sequence (class tokens) are not patches; None if the model
            has no such blocks, or needs the tokens in between.
        """
        return None

    def _check_clip(self, clip: Tensor, *, channels: int = 3, minimum: tuple[int, int, int] = (1, 1, 1)) -> None:
        """Raises ValueError unless the clip is (B, channels, T, H, W) and no smaller than `minimum` (T, H, W)."""
        if clip.dim() != 5 or clip.shape[1] != channels:
            raise ValueError(
                f"{type(self).__name__} takes a clip of shape (B, {channels}, T, H, W), not {tuple(clip.shape)}"
            )
        if clip.shape[2] < minimum[0] or clip.shape[3] < minimum[1] or clip.shape[4] < minimum[2]:
            raise ValueError(
                f"{type(self).__name__} takes clips of at least {minimum[0]} frames of {minimum[1]}x{minimum[2]} "
                f"pixels, not {clip.shape[2]} of {clip.shape[3]}x{clip.shape[4]}"
            )


class StagedModel(VideoModel):
    """What the video ResNets share: four stages of residual blocks after a stem.

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

    def run_stages(self, x: Tensor, *layers: nn.Sequential) -> Tensor:
        """Applies all stages, or the given ones."""
        for layer in layers or (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run_blocks(layer, x, recompute=self.grad_checkpointing)
        return x

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every block in order."""
        return {"stem": r"^(?:stem|conv1|bn1)\.", "blocks": [(r"^layer(\d)\.(\d+)", None)]}
