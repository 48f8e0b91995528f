"""The steps of a masked pretraining: what Lightning runs for `stvid pretrain`.

Everything else is that of a training: videos, clips, schedules, checkpoints, and the exact continuation. Which cells
are hidden in a training step follows from seed, epoch, batch and rank; a validation hides the same in every epoch.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from einops import rearrange
from torch import Tensor

from stvid.config import TrainConfig
from stvid.data.dataset import EvalSample
from stvid.data.transforms import model_input, shown_pixels
from stvid.engine.means import gathered
from stvid.engine.sharding import whole_weights
from stvid.engine.task import VideoTask
from stvid.errors import ConfigError
from stvid.look.drawing import Row, Tile, contact_sheet, save_picture
from stvid.models.pretraining import MaskedAutoencoder, Masks
from stvid.models.registry import autoencoders

__all__ = ["PretrainTask", "check_pretraining"]

PICTURE = "reconstruction.png"
_MASKS = 2  # the stream of random numbers of a batch that its masks are drawn from


def check_pretraining(config: TrainConfig) -> None:
    """Refuses settings that need labels or a classifier, which a pretraining has not.

    Args:
        config: The whole run.

    Raises:
        ConfigError: Names the key, and the value that it must have.
    """
    name = config.model.name
    if name not in autoencoders():
        raise ConfigError(
            f"model.name: {name} cannot be pretrained as a masked autoencoder; these can: {', '.join(autoencoders())}"
        )
    without: list[tuple[str, Any, Any, str]] = [
        ("augment.mixup", config.augment.mixup, 0.0, "it mixes labels"),
        ("augment.cutmix", config.augment.cutmix, 0.0, "it mixes labels"),
        ("augment.label_smoothing", config.augment.label_smoothing, 0.0, "there are no labels"),
        ("data.balance", config.data.balance, "none", "there are no classes"),
        ("data.class_names", config.data.class_names, None, "there are no classes"),
        ("optim.frozen_epochs", config.optim.frozen_epochs, 0, "there is no head"),
        ("optim.layer_decay", config.optim.layer_decay, 1.0, "encoder and decoder learn from the start"),
    ]
    for key, value, needed, why in without:
        if value != needed:
            shown = "null" if needed is None else f"{needed:g}" if isinstance(needed, float) else needed
            raise ConfigError(f"{key}: {value} has no meaning in a pretraining, {why}; set it to {shown}")


class PretrainTask(VideoTask):
    """Hides most of each clip and learns to predict it; the arguments are those of `VideoTask`.

    The model is a `MaskedAutoencoder`. A checkpoint describes its encoder, as one without a classifier, so that every
    command that takes features reads it; the decoder's arguments stand beside it, under ``pretraining``.
    """

    def __init__(self, model: Any, config: TrainConfig, **options: Any) -> None:
        super().__init__(model, config, **options)
        self._losses: dict[int, float] = {}
        self._unreadable: dict[int, tuple[str, str]] = {}
        self._tiles: dict[int, Row] = {}

    @property
    def autoencoder(self) -> MaskedAutoencoder:
        """The model."""
        return cast("MaskedAutoencoder", self.model)

    def headline(self) -> str:
        """Returns what is trained, in a line for people."""
        encoder = sum(parameter.numel() for parameter in self.autoencoder.encoder.parameters()) / 1e6
        settings = self.config.autoencoder
        ratio = self.autoencoder.mask_ratio if settings.mask_ratio is None else settings.mask_ratio
        return (
            f"{self.config.model.name}, {self._count()} parameters ({encoder:.2f} M of the encoder), "
            f"{ratio:.0%} of a clip hidden ({settings.masking or self.autoencoder.masking})"
        )

    def _draw_masks(self, clips: Tensor, generator: np.random.Generator) -> Masks:
        settings = self.config.autoencoder
        return self.autoencoder.draw_masks(
            clips.shape,
            generator,
            masking=settings.masking,
            mask_ratio=settings.mask_ratio,
            decoder_mask_ratio=settings.decoder_mask_ratio,
        ).to(clips.device)

    def loss_of(self, clips: Tensor, labels: Tensor, batch_idx: int) -> Tensor:
        """Returns the loss of normalised clips (B, C, T, H, W), whatever their labels."""
        masks = self._draw_masks(clips, self._generator(batch_idx, stream=_MASKS))
        return self.autoencoder.loss(self(clips, *masks), clips, masks)

    # --- validation ---------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Starts counting; sharded weights are gathered once for all videos."""
        self._gathered.enter_context(whole_weights(self.model))
        self._losses, self._unreadable, self._tiles = {}, {}, {}

    def validation_step(self, batch: list[EvalSample], batch_idx: int) -> None:
        """Notes the mean loss over the views of each video, and draws the first ones."""
        for sample in batch:
            path = self._val_paths(sample.index)
            if sample.clips is None:
                self._unreadable[sample.index] = (path, str(sample.error))
                continue
            generator = np.random.default_rng([self.config.seed, sample.index])
            losses = []
            for views in sample.clips.split(self.config.data.val_batch_size or self.config.data.batch_size):
                clips = model_input(views.to(self.device), self.protocol)
                masks = self._draw_masks(clips, generator)
                losses += self.autoencoder.clip_losses(self(clips, *masks), clips, masks).tolist()
                if len(losses) == len(views) and sample.index < self.config.autoencoder.pictures:
                    self._tiles[sample.index] = self._drawn(clips[:1], masks.of_clip(0), path)
            self._losses[sample.index] = float(np.mean(losses))

    def _drawn(self, clip: Tensor, masks: Masks, path: str) -> Row:
        """Returns the frames of a clip, as they are, as the encoder sees them, and completed."""
        pictures = self.autoencoder.pictures(clip, masks)
        tiles = []
        for frames in (pictures.original, pictures.masked, pictures.completed):
            shown = rearrange(shown_pixels(frames[0].float().cpu(), self.protocol), "c t h w -> t h w c").numpy()
            tiles += [Tile(frame) for frame in shown]
        return Row(f"{path}: original, what the encoder sees, and what the decoder completes", tuple(tiles))

    def on_validation_epoch_end(self) -> None:
        """Merges the ranks and logs the mean loss; a validation that was cut short logs nothing."""
        self._gathered.close()
        cut = any(gathered(self._stop_requested()))
        losses = {index: loss for part in gathered(self._losses) for index, loss in part.items()}
        failures = {index: failure for part in gathered(self._unreadable) for index, failure in part.items()}
        rows = {index: row for part in gathered(self._tiles) for index, row in part.items()}
        if cut:
            return
        self._say_unreadable([failures[index] for index in sorted(failures)])
        values = {"val_failed": float(len(failures))}
        if losses:
            values["val_loss"] = float(np.mean([losses[index] for index in sorted(losses)]))
        self.validated = values
        self.log_dict(values, prog_bar=False, sync_dist=False)
        if rows and self.trainer.is_global_zero:
            ordered = [rows[index] for index in sorted(rows)]
            columns = len(ordered[0].tiles) // 3
            save_picture(contact_sheet(ordered, columns=columns), self.run_folder / PICTURE)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the weights are, as `VideoTask` does, and how the decoder is built."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["stvid"]["pretraining"] = {
            "decoder": dict(self.autoencoder.decoder_options),
            "normalize_target": self.autoencoder.normalize_target,
        }
