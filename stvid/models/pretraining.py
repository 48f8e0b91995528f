"""Masked autoencoders: an encoder sees a part of a clip, and a decoder predicts the pixels of the rest.

    model = create_autoencoder("videomae_vit_b")
    masks = model.draw_masks(clip.shape, np.random.default_rng(0))
    prediction = model(clip, masks.mask)                      # (B, predicted patches, values)
    loss = model.loss(prediction, clip, masks)
    model.encoder                                             # what is left for the fine-tuning

The encoder is the class of a family, as `stvid.create_model` builds it, without a head. What its decoder is, how pixels
make a target, and what the authors' files are called, the family's file says in a subclass of `MaskedAutoencoder`,
which ``FAMILY.autoencoder`` names. Everything else is here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap
from stvid.models.heads import LinearHead
from stvid.models.masking import MASKS, Masking, running_cell_mask
from stvid.models.registry import autoencoder_class, autoencoders, build_model, model_info

if TYPE_CHECKING:
    from stvid.models.base import Grid

__all__ = [
    "MaskedAutoencoder",
    "Masks",
    "Pictures",
    "create_autoencoder",
    "empty_token",
    "encoder_alone",
    "patch_values",
]

ENCODER = "encoder."
_NORM = "encoder_norm."


class Masks(NamedTuple):
    """The masks of a batch.

    Attributes:
        mask: bool (B, cells of `VideoModel.mask_grid`), True where the encoder does not see a cell.
        decoder_mask: bool (B, patches), True where the decoder predicts nothing; None predicts all that is hidden.
    """

    mask: Tensor
    decoder_mask: Tensor | None = None

    def of_clip(self, number: int) -> Masks:
        """Returns the masks of one clip, as a batch of one."""
        skipped = None if self.decoder_mask is None else self.decoder_mask[number : number + 1]
        return Masks(self.mask[number : number + 1], skipped)

    def to(self, device: torch.device) -> Masks:
        """Returns the masks on a device."""
        skipped = None if self.decoder_mask is None else self.decoder_mask.to(device, non_blocking=True)
        return Masks(self.mask.to(device, non_blocking=True), skipped)


@dataclass(frozen=True)
class Pictures:
    """A clip as it is, as the encoder sees it, and as the decoder completes it; normalised (B, C, T, H, W) each.

    Attributes:
        original: The clip, at the frames that the decoder predicts and without pixels that fill no patch.
        masked: The same with the mean colour where the encoder does not see it.
        completed: The same with the predicted patches in their places. A target that is normalised in each patch is
            turned back with the true mean and spread of the patch, as the authors' pictures are.
    """

    original: Tensor
    masked: Tensor
    completed: Tensor


class MaskedAutoencoder(VideoModel):
    """Base class of the models of the masked pretraining. As a `VideoModel` it gives its encoder's features.

    A subclass implements `predict` and `statistics`, and sets `patch_size`.

    Args:
        encoder: A model of the family; its head is taken away.
        normalize_target: Whether the target is normalised in each patch.

    Attributes:
        masking: How the authors choose what is hidden.
        mask_ratio: Which share they hide.
        takes_decoder_mask: Whether the decoder can leave patches out.
        encoder_options: Arguments of the encoder's class that the pretraining sets.
        patch_size: Frames, height and width in pixels of a predicted patch.
        frame_step: One frame in so many is predicted.
        encoder: The encoder.
        decoder_options: Arguments of the decoder, with which `create_autoencoder` makes the model again.
    """

    gives_maps = False
    takes_mask = True
    masking: ClassVar[Masking] = "tube"
    mask_ratio: ClassVar[float] = 0.9
    takes_decoder_mask: ClassVar[bool] = False
    encoder_options: ClassVar[Mapping[str, Any]] = {}
    patch_size: Grid
    frame_step: int = 1
    encoder: VideoModel

    def __init__(self, encoder: VideoModel, *, normalize_target: bool = True) -> None:
        super().__init__()
        encoder.head = LinearHead(encoder.num_features, 0)  # the mean of the tokens, without weights
        self.encoder = encoder
        self.normalize_target = normalize_target
        self.num_classes = 0
        self.num_features = encoder.num_features
        self.in_chans = encoder.in_chans
        self.default_protocol = encoder.default_protocol
        self.head = LinearHead(encoder.num_features, 0)
        self.feature_info = [
            FeatureInfo(f"{ENCODER}{info.module}", info.channels, info.reduction) for info in encoder.feature_info
        ]
        self.decoder_options: dict[str, Any] = {}

    # --- as a model that gives features -------------------------------------------------------------------------------

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Computes the encoder's features of a whole clip."""
        return self.encoder.encode(clip, tap)

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Computes the encoder's features of the visible cells."""
        return self.encoder.encode_visible(clip, visible)

    def to_map(self, x: Tensor, place: int, clip_size: Grid) -> Tensor:
        """Returns an intermediate result as a map."""
        return self.encoder.to_map(x, place, clip_size)

    def token_grid(self, clip_shape: Sequence[int]) -> Grid:
        """Returns the cells of the encoder's features."""
        return self.encoder.token_grid(clip_shape)

    def mask_grid(self, clip_shape: Sequence[int]) -> Grid:
        """Returns the cells that a mask hides."""
        return self.encoder.mask_grid(clip_shape)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches the recomputation of activations on or off, in encoder and decoder."""
        super().set_grad_checkpointing(enable)
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Returns the encoder's parameters that are not decayed, and the token that stands for what is hidden."""
        return {f"{ENCODER}{name}" for name in self.encoder.no_weight_decay()} | {"mask_token"}

    # --- the pretraining ----------------------------------------------------------------------------------------------

    def forward(self, clip: Tensor, mask: Tensor | None = None, decoder_mask: Tensor | None = None) -> Tensor:
        """Returns the predicted patches.

        Args:
            clip: (B, in_chans, T, H, W).
            mask: bool (B, cells of `mask_grid`), True where a cell is hidden from the encoder; each clip hides as many.
                None returns the pooled features of the whole clip, (B, num_features).
            decoder_mask: bool (B, patches), True where the decoder predicts nothing, whether the encoder saw it or not;
                each clip leaves out as many. None predicts exactly what is hidden.

        Returns:
            (B, predicted patches, values), the patches in the order of time, height, width, and the values of each in
            that of time, height, width, channel.

        Raises:
            ValueError: If the model does not take such clips, or a mask does not fit.
        """
        if mask is None:
            return super().forward(clip)
        if decoder_mask is not None and not self.takes_decoder_mask:
            raise ValueError(f"{type(self).__name__}: the decoder predicts all that is hidden, so it takes no mask")
        return self.predict(clip, mask, decoder_mask)

    def predict(self, clip: Tensor, mask: Tensor, decoder_mask: Tensor | None) -> Tensor:
        """Returns the predicted patches; a subclass implements it. The arguments are those of `forward`."""
        raise TypeError(f"{type(self).__name__} does not implement predict")

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what normalises the target of each patch: its mean, and what it is divided by.

        Args:
            patches: The pixels of each patch, (B, patches, pixels, channels).

        Returns:
            Two tensors that spread to the shape of the patches.
        """
        raise TypeError(f"{type(self).__name__} does not implement statistics")

    def target_pixels(self, clip: Tensor) -> Tensor:
        """Returns the pixels that are to be predicted, of a normalised clip; the same unless a subclass changes it."""
        return clip

    def input_pixels(self, pixels: Tensor) -> Tensor:
        """Undoes `target_pixels`."""
        return pixels

    def patch_grid(self, clip_shape: Sequence[int]) -> Grid:
        """Returns the patches (t, h, w) of a clip (B, C, T, H, W)."""
        frames = -(-clip_shape[-3] // self.frame_step)
        time, height, width = self.patch_size
        return frames // time, clip_shape[-2] // height, clip_shape[-1] // width

    def draw_masks(
        self,
        clip_shape: Sequence[int],
        generator: np.random.Generator,
        *,
        masking: Masking | None = None,
        mask_ratio: float | None = None,
        decoder_mask_ratio: float = 0.0,
    ) -> Masks:
        """Draws the masks of a batch.

        Args:
            clip_shape: (B, C, T, H, W).
            generator: Source of all choices.
            masking: How hidden cells are chosen; None takes the authors' way.
            mask_ratio: Share that is hidden; None takes the authors'.
            decoder_mask_ratio: Share of the patches that the decoder leaves out, in running cells; 0 leaves out none
                but those that the encoder sees.

        Raises:
            ConfigError: If a share leaves nothing or everything, or the decoder cannot leave patches out.
        """
        kind = self.masking if masking is None else masking
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        try:
            mask = MASKS[kind](clip_shape[0], self.mask_grid(clip_shape), ratio, generator)
        except ValueError as error:
            raise ConfigError(f"autoencoder.mask_ratio: {error}") from error
        if not decoder_mask_ratio:
            return Masks(mask)
        if not self.takes_decoder_mask:
            name = self.recipe.get("name", type(self).__name__)
            raise ConfigError(
                f"autoencoder.decoder_mask_ratio: the decoder of {name} predicts all that is hidden; set it to 0"
            )
        try:
            skipped = running_cell_mask(clip_shape[0], self.patch_grid(clip_shape), decoder_mask_ratio, generator)
        except ValueError as error:
            raise ConfigError(f"autoencoder.decoder_mask_ratio: {error}") from error
        return Masks(mask, skipped)

    def hidden_patches(self, clip_shape: Sequence[int], mask: Tensor) -> Tensor:
        """Returns which patches the encoder does not see, bool (B, patches); a masked cell may hold several."""
        cells, patches = self.mask_grid(clip_shape), self.patch_grid(clip_shape)
        shown = mask.view(-1, *cells)
        for axis, (few, many) in enumerate(zip(cells, patches, strict=True), start=1):
            shown = shown.repeat_interleave(many // few, axis)
        return shown.flatten(1)

    def cut_patches(self, clip: Tensor) -> Tensor:
        """Cuts the frames that are predicted into patches; (B, C, T, H, W) to (B, patches, pixels, C)."""
        frames = clip[:, :, :: self.frame_step]
        time, height, width = self.patch_grid(clip.shape)
        frames = frames[:, :, : time * self.patch_size[0], : height * self.patch_size[1], : width * self.patch_size[2]]
        pattern = "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw) c"
        return rearrange(frames, pattern, pt=self.patch_size[0], ph=self.patch_size[1], pw=self.patch_size[2])

    def target(self, clip: Tensor) -> Tensor:
        """Returns what is to be predicted of each patch of a normalised clip, (B, patches, values)."""
        patches = self.cut_patches(self.target_pixels(clip))
        if self.normalize_target:
            mean, scale = self.statistics(patches)
            patches = (patches - mean) / scale
        return patches.flatten(2)

    def loss(self, prediction: Tensor, clip: Tensor, masks: Masks) -> Tensor:
        """Returns the mean squared error over the patches that are predicted and that the encoder did not see.

        Args:
            prediction: From `forward`.
            clip: The clip, normalised.
            masks: Those that the prediction was made with.
        """
        errors, counted = self._errors(prediction, clip, masks)
        return (errors * counted).sum() / counted.sum()

    def clip_losses(self, prediction: Tensor, clip: Tensor, masks: Masks) -> Tensor:
        """Returns the loss of each clip, (B,); the arguments are those of `loss`."""
        errors, counted = self._errors(prediction, clip, masks)
        return (errors * counted).sum(1) / counted.sum(1)

    def _errors(self, prediction: Tensor, clip: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Returns the error of each predicted patch, and 1 where it counts, else 0; both (B, predicted patches)."""
        hidden, predicted = self._hidden_and_predicted(clip.shape, masks)
        with torch.no_grad():
            target = _picked(self.target(clip), predicted)
        errors = (prediction.to(target.dtype) - target).square().mean(2)
        return errors, _picked(hidden.unsqueeze(2), predicted).squeeze(2).to(errors.dtype)

    def _hidden_and_predicted(self, clip_shape: Sequence[int], masks: Masks) -> tuple[Tensor, Tensor]:
        hidden = self.hidden_patches(clip_shape, masks.mask)
        return hidden, hidden if masks.decoder_mask is None else ~masks.decoder_mask

    @torch.no_grad()
    def pictures(self, clip: Tensor, masks: Masks) -> Pictures:
        """Runs the model, and returns what it saw and how it completes the clip.

        Args:
            clip: The clip, normalised.
            masks: From `draw_masks`.
        """
        prediction = self(clip, masks.mask, masks.decoder_mask)
        hidden, predicted = self._hidden_and_predicted(clip.shape, masks)
        seen = self.cut_patches(clip).masked_fill(hidden[:, :, None, None], 0.0)
        pixels = self.cut_patches(self.target_pixels(clip))
        values = prediction.to(pixels.dtype).unflatten(2, pixels.shape[2:])
        if self.normalize_target:
            mean, scale = (_picked(each.expand_as(pixels), predicted) for each in self.statistics(pixels))
            values = values * scale + mean
        completed = self._joined(seen, clip.shape)
        drawn = torch.zeros_like(pixels)
        drawn[predicted] = values.flatten(0, 1)
        drawn = self.input_pixels(self._joined(drawn, clip.shape))
        taken = self._joined((predicted & hidden)[:, :, None, None].expand_as(pixels), clip.shape)
        return Pictures(
            self._joined(self.cut_patches(clip), clip.shape), completed, torch.where(taken, drawn, completed)
        )

    def _joined(self, patches: Tensor, clip_shape: Sequence[int]) -> Tensor:
        """Undoes `cut_patches`."""
        time, height, width = self.patch_grid(clip_shape)
        sizes = {"t": time, "h": height, "w": width, "pt": self.patch_size[0], "ph": self.patch_size[1]}
        return rearrange(patches, "b (t h w) (pt ph pw) c -> b c (t pt) (h ph) (w pw)", **sizes)

    # --- published weights --------------------------------------------------------------------------------------------

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the encoder's tables of positions."""
        inner = key.removeprefix(ENCODER)
        return None if inner == key else self.encoder.resize_table(inner, table, built)

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes over the encoder's settings that come with weights."""
        self.encoder.recipe = self.recipe
        self.encoder.adopt_format(format_name, hyperparameters)
        self.recipe = self.encoder.recipe


def _picked(values: Tensor, chosen: Tensor) -> Tensor:
    """Returns the chosen rows of each clip; (B, N, ...) and bool (B, N) to (B, chosen, ...)."""
    return values[chosen].view(len(values), -1, *values.shape[2:])


def encoder_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns the encoder in the state of an autoencoder of stvid; None if the state is something else.

    Args:
        state: Keys as `MaskedAutoencoder` has them.
    """
    if not any(key.startswith(_NORM) for key in state) or not any(key.startswith(ENCODER) for key in state):
        return None
    return {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}


def create_autoencoder(
    name: str,
    *,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    normalize_target: bool = True,
    decoder_options: Mapping[str, Any] | None = None,
    **hyperparameters: Any,
) -> MaskedAutoencoder:
    """Builds the model of a masked pretraining.

    Args:
        name: The encoder, one of `stvid.models.registry.autoencoders`.
        num_frames: Frames of a clip; None takes the model's own.
        img_size: Side of the square input in pixels, or (height, width); None takes the model's own.
        normalize_target: Whether the target is normalised in each patch.
        decoder_options: ``decoder_depth``, ``decoder_embed_dim``, ``decoder_num_heads``; what is left out is the
            authors'.
        **hyperparameters: Further arguments of the encoder's class.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
        ConfigError: If the model cannot be pretrained in this way, or an argument of the decoder is unknown.
        ValueError: If it cannot be built at these frames or this size.
        TypeError: If the encoder has no such argument; the message names it.
    """
    kind = None if "/" in name else autoencoder_class(name)
    if kind is None:
        raise ConfigError(
            f"{name} cannot be pretrained as a masked autoencoder; these can: {', '.join(autoencoders())}"
        )
    info = model_info(name)
    encoder = build_model(
        info,
        num_classes=0,
        num_frames=num_frames,
        img_size=img_size,
        hyperparameters={**kind.encoder_options, **hyperparameters},
    )
    options = {**info.decoder, **{key: value for key, value in (decoder_options or {}).items() if value is not None}}
    model: MaskedAutoencoder = kind(encoder, normalize_target=normalize_target, **options)
    model.decoder_options = options
    model.recipe = {**encoder.recipe, "hyperparameters": hyperparameters}
    return model


def patch_values(patch_size: Sequence[int], in_chans: int) -> int:
    """Returns how many values a patch has."""
    return math.prod(patch_size) * in_chans


def empty_token(dim: int) -> nn.Parameter:
    """Returns a token that stands for what is hidden, drawn from a normal of 0.02; (1, 1, dim)."""
    token = nn.Parameter(torch.zeros(1, 1, dim))
    nn.init.trunc_normal_(token, std=0.02)
    return token
