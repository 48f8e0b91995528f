"""The training and validation step: what Lightning runs."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from stvid.checkpoints import describe
from stvid.config import TrainConfig, dump_config
from stvid.console import printable
from stvid.data.dataset import EvalSample, TrainBatch
from stvid.data.mixing import Mixer
from stvid.data.transforms import model_input
from stvid.engine.frozen import backbone_parameters, keep_frozen_still
from stvid.engine.means import SUMS_KEY, EpochSums, broken_weight, gathered
from stvid.engine.optim import build_optimizer, learning_rate_curve, plan_parameters
from stvid.engine.sharding import precision_policy, shard, whole_weights
from stvid.errors import ConfigError, StvidError
from stvid.evaluation.evaluate import Placement, ViewAccumulator, sample_logits
from stvid.models.base import VideoModel
from stvid.models.kernels import channels_last

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["VideoTask"]


class VideoTask(LightningModule):
    """Classifies clips: normalises and mixes on the device, and validates whole videos as `stvid test` does.

    Every random choice is a function of (seed, epoch, batch, rank), so that a continued run equals one in one go.

    Args:
        model: From `create_model`, with the run's protocol and class names as its `default_protocol`.
        config: The whole run.
        lr: Peak learning rate, scaled to the clips of a step.
        clips_per_step: Clips of one optimiser step, stored in checkpoints.
        steps_per_epoch: Optimiser steps of an epoch.
        training_videos: How many there are, stored in checkpoints.
        val_paths: Path of each validation video, for the list of unreadable ones.
        stop_requested: Whether the run is being stopped, so that a cut validation is not reported.
    """

    def __init__(
        self,
        model: VideoModel,
        config: TrainConfig,
        *,
        lr: float,
        clips_per_step: int,
        steps_per_epoch: int,
        training_videos: int,
        val_paths: Callable[[int], str] = str,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.lr = lr
        self.clips_per_step = clips_per_step
        self.steps_per_epoch = steps_per_epoch
        self.training_videos = training_videos
        self.validated: dict[str, float] = {}  # the last numbers, unrounded: Lightning logs in float32
        # It is made now, since sharding (FSDP) flattens the parameters later, and their shapes decide.
        self._plan = plan_parameters(model, config.optim)
        self.multilabel = config.task == "multilabel"
        self.protocol = model.default_protocol
        self.mixer = Mixer(model.num_classes, config.augment, multilabel=self.multilabel)
        self.failures: dict[str, str] = {}
        self._sums = EpochSums()
        self._val_paths = val_paths
        self._stop_requested = stop_requested
        self._accumulator: ViewAccumulator | None = None
        self._gathered = contextlib.ExitStack()
        # Kept out of the registered modules, so that the state dict has the model's own keys once.
        self._forward: list[nn.Module | Callable[..., Tensor]] = [model]
        self.head_only = False
        self._backbone = backbone_parameters(model)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode:
            keep_frozen_still(self.model, head_only=self.head_only)
        return self

    def train_head_only(self, head_only: bool) -> None:
        """Freezes the model but for its head, or ends that; called at the start of an epoch.

        Several processes keep computing the gradients of the backbone, which DistributedDataParallel waits for, and
        throw them away (see `on_before_optimizer_step`).
        """
        self.head_only = head_only
        if self.trainer.world_size == 1:
            for parameter in self._backbone:
                parameter.requires_grad_(not head_only)
        self.train()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes the gradients away from what is frozen for the time being; the optimiser leaves it alone then."""
        if self.head_only:
            for parameter in self._backbone:
                parameter.grad = None

    def configure_model(self) -> None:
        """Applies the options that change how the model runs, not what it computes."""
        if self.config.trainer.channels_last:
            channels_last(self.model)
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not isinstance(self.model, FSDPModule):
            self.model.to(self.trainer.strategy.root_device)
            shard(self.model, policy=precision_policy(self.model, self.config.trainer.precision))
        if self.config.trainer.compile and self._forward[0] is self.model:
            self._forward = [torch.compile(self.model)]

    def forward(self, clips: Tensor, *masks: Tensor | None) -> Tensor:
        """Returns logits (B, K) of normalised clips (B, C, T, H, W), or what the model makes of clips and masks.

        Raises:
            ConfigError: If the model takes no clips of this size.
        """
        if self.config.trainer.channels_last:
            clips = clips.contiguous(memory_format=torch.channels_last_3d)
        try:
            return self._forward[0](clips, *masks)
        except ValueError as error:
            if isinstance(error, StvidError):
                raise
            if str(error).startswith("Expected more than 1 value per channel when training"):  # torch's batch norms
                raise ConfigError(
                    f"data.batch_size: {len(clips)} clip of this size is too few for the batch norms of "
                    f"{self.config.model.name} in training; take 2 or more"
                ) from error
            augment = self.config.augment
            own_size = self.training and (augment.crop is not None or augment.frames is not None)
            section = "augment" if own_size else "protocol"
            raise ConfigError(f"{section}.crop, {section}.frames: {error}") from error

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves training clips as uint8; validation moves each video's views in chunks by itself."""
        if isinstance(batch, TrainBatch):
            return batch._replace(
                clips=batch.clips.to(device, non_blocking=True), labels=batch.labels.to(device, non_blocking=True)
            )
        return batch

    # --- training -----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: TrainBatch, batch_idx: int) -> None:
        """Seeds dropout and stochastic depth for this batch, and forgets the last validation."""
        torch.manual_seed(int(self._generator(batch_idx, stream=0).integers(2**62)))
        self.model.measured = {}  # an earlier validation was of other weights

    def _generator(self, batch_idx: int, *, stream: int) -> np.random.Generator:
        sequence = np.random.SeedSequence([self.config.seed, self.current_epoch, batch_idx, self.global_rank, stream])
        return np.random.Generator(np.random.PCG64(sequence))

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        for path, reason in batch.failures:
            self._report_failure(path, reason)
        loss = self.loss_of(model_input(batch.clips, self.protocol), batch.labels, batch_idx)
        if not torch.isfinite(loss.detach()):
            self.on_broken_loss(loss.item(), batch_idx)
        self._log_step("train_loss", loss.detach(), len(batch.clips))
        return loss

    def loss_of(self, clips: Tensor, labels: Tensor, batch_idx: int) -> Tensor:
        """Returns the loss of normalised clips (B, C, T, H, W) with their labels."""
        clips, targets = self.mixer(clips, labels, self._generator(batch_idx, stream=1))
        logits = self(clips)
        if self.multilabel:
            return F.binary_cross_entropy_with_logits(logits.float(), targets)
        top1 = (logits.argmax(1) == targets.argmax(1)).float().mean()
        self._log_step("train_top1", top1, len(clips))
        return F.cross_entropy(logits.float(), targets)

    def headline(self) -> str:
        """Returns what is trained, in a line for people."""
        classes = len(self.config.protocol.class_names)
        chance = "" if self.multilabel else f" (guessing: top1 {1 / classes:.4f})"
        return f"{self.config.model.name}, {self._count()} parameters, {classes} classes{chance}"

    def _count(self) -> str:
        return f"{sum(parameter.numel() for parameter in self.model.parameters()) / 1e6:.2f} M"

    def on_broken_loss(self, loss: float, batch_idx: int) -> None:
        """Ends the training.

        Raises:
            StvidError: Says what to change, and what has been saved.
        """
        raise self._diverged(f"the loss is {loss} at epoch {self.current_epoch + 1}, batch {batch_idx + 1}")

    def _diverged(self, what: str) -> StvidError:
        saved = sorted((self.run_folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        there = f"the last checkpoint, {saved[-1]}, is unharmed" if saved else "no checkpoint has been saved before"
        return StvidError(
            f"{what}: lower optim.lr, set trainer.gradient_clip_val, or use another trainer.precision; {there}"
        )

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        return Path(self.trainer.default_root_dir)

    def _log_step(self, name: str, value: Tensor, clips: int) -> None:
        """Logs this rank's value of the step, and counts it for the mean of the epoch."""
        self.log(f"{name}_step", value, prog_bar=True, on_step=True, on_epoch=False, batch_size=clips)
        self._sums.add(self.current_epoch, name, value.item(), clips)

    def log_epoch(self) -> None:
        """Logs the means of the epoch over all ranks (one exchange); called once at its end, before they are used."""
        for name, (mean, clips) in self._sums.take(self.current_epoch).items():
            self.log(name, mean, on_step=False, on_epoch=True, sync_dist=True, batch_size=clips)

    def _report_failure(self, path: str, reason: str) -> None:
        if path not in self.failures:
            self.failures[path] = reason
            line = f"warning: skipped unreadable training video {path}: {reason}"
            print(printable(line), file=sys.stderr, flush=True)

    def gathered_failures(self) -> dict[str, str]:
        """Returns the unreadable training videos of all ranks; to be called by all of them."""
        return {path: reason for state in gathered(self.failures) for path, reason in state.items()}

    # --- validation ---------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Starts counting; sharded weights are gathered once for all videos."""
        self._gathered.enter_context(whole_weights(self.model))
        task = self.config.classification
        self._accumulator = ViewAccumulator(self.protocol, views=self.config.data.val_views, task=task)

    def validation_step(self, batch: list[EvalSample], batch_idx: int) -> None:
        """Collects the logits of all views of some videos."""
        assert self._accumulator is not None
        chunk = self.config.data.val_batch_size or self.config.data.batch_size
        placement = Placement(self.device, torch.float32)
        for sample, logits in sample_logits(self, batch, protocol=self.protocol, placement=placement, view_chunk=chunk):
            path = self._val_paths(sample.index)
            if logits is None:
                self._accumulator.add_failure(sample.index, path, str(sample.error), labels=sample.labels)
            else:
                self._accumulator.add(sample.index, logits, sample.labels, path=path)

    def on_validation_epoch_end(self) -> None:
        """Merges the ranks and logs the numbers; a validation that was cut short logs nothing."""
        self._gathered.close()
        accumulator, self._accumulator = self._accumulator, None
        assert accumulator is not None
        cut = self._stop_requested()
        if self.trainer.world_size > 1:
            states: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(states, accumulator.state())
            accumulator = ViewAccumulator.from_states(states)
            cut = self.trainer.strategy.reduce_boolean_decision(cut, all=False)
        if cut:
            return
        result = accumulator.result()
        self._say_unreadable(result.failures)
        values = {f"val_{name}": value for name, value in result.metrics.items()}
        values["val_failed"] = float(len(result.failures))
        self.validated = values
        finite = {name: value for name, value in result.metrics.items() if math.isfinite(value)}
        data = self.config.data
        self.model.measured = {
            "metrics": finite,
            "videos": result.counted,
            "dataset": Path(data.val).name if data.val is not None else "held-out videos",
        }
        # all ranks have the same numbers, so nothing is left to reduce
        self.log_dict(values, prog_bar=False, sync_dist=False)

    def _say_unreadable(self, failures: Sequence[tuple[str, str]]) -> None:
        """Warns of validation videos that cannot be read, given by path and reason."""
        for path, reason in failures if self.trainer.is_global_zero else ():
            line = f"warning: unreadable validation video {path}: {reason}"
            print(printable(line), file=sys.stderr, flush=True)

    # --- optimiser and checkpoints ------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        """Returns the optimiser, and the curve that is followed step by step."""
        optimizer = build_optimizer(self.model, self.config.optim, lr=self.lr, plan=self._plan)
        epochs = self.config.optim.schedule_epochs or self.config.trainer.max_epochs
        curve = learning_rate_curve(self.config.optim, steps_per_epoch=self.steps_per_epoch, epochs=epochs, lr=self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm over all ranks; Lightning refuses to with sharded parameters, whose root knows how."""
        if gradient_clip_val is not None and isinstance(self.trainer.strategy, FSDPStrategy):
            self.trainer.strategy.model.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the sums of an epoch that was begun."""
        if self.global_rank == 0 and SUMS_KEY in checkpoint:
            self._sums = EpochSums(**checkpoint[SUMS_KEY])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the weights are: model, protocol with class names, version, config; and the sums of the epoch.

        Raises:
            StvidError: If the weights are not finite: they must not take the place of good ones.
        """
        if (broken := broken_weight(checkpoint)) is not None:
            raise self._diverged(
                f"after step {self.global_step}, in epoch {self.current_epoch + 1}, the weights are broken ({broken}) "
                "and were not saved"
            )
        checkpoint[SUMS_KEY] = EpochSums.merged(gathered(self._sums)).to_dict()
        checkpoint["stvid"] = {
            **describe(self.model),
            "task": self.config.classification,
            "config": dump_config(self.config),
            "clips_per_step": self.clips_per_step,
            "training_videos": self.training_videos,
        }
