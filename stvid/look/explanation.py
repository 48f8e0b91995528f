"""Where in space and time a model looks: Grad-CAM and attention rollout, as a strip of frames and a video.

- ``gradcam`` (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2): the feature maps before pooling, each
  weighted by the mean gradient of the class's logit, added up, negative sums cut. For every model whose
  `forward_features` gives maps (B, C, T', H', W'): the CNNs, UniFormer, and Video Swin, whose attention stays inside
  windows and so has no rollout over the clip. Of an inflated image network that gives tokens (ViT) it is the tokens
  that enter the last block, since behind it those of patches may lead nowhere; such a picture is called
  ``gradcam-tokens``.
- ``rollout`` (Abnar and Zuidema 2020, arXiv:2005.00928, section 3): the attention of each layer, averaged over heads
  and mixed half and half with the identity for the residual, multiplied through the layers, from the tokens that are
  classified back to the patches. It is the same for all classes.
- ``grad-rollout`` (Chefer et al. 2021, arXiv:2103.15679, equations 5 and 6): the same, with each weight multiplied by
  its gradient for the class, negative products cut, and added to the identity.

The rollouts are for video transformers over tokens: TimeSformer, ViViT, X-ViT. Attention over time alone or space
alone acts on its own axis only. Where frames have class tokens and a second transformer joins them (ViViT's factorised
encoder, X-ViT), relevance goes from the clip's token to the frames' and on to the patches of each. What X-ViT mixes
into keys and values from the neighbouring frames is counted for the frame itself.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from stvid.data.dataset import Clip, load_clip
from stvid.data.transforms import shown_pixels
from stvid.errors import ConfigError, StvidError, UnknownNameError, nearest
from stvid.evaluation.evaluate import model_protocol, model_task
from stvid.files import write_atomically
from stvid.look.drawing import Row, Tile, contact_sheet, heat_overlay, save_picture
from stvid.models.attention import Source, record_attention
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

__all__ = ["Explanation", "ExplanationMethod", "explain"]

ExplanationMethod = Literal["auto", "gradcam", "rollout", "grad-rollout"]
_VIDEO_SIDE = 448
"""Least side of the video's picture in pixels: clips of 112 pixels would be too small to see."""


@dataclass(frozen=True)
class Explanation:
    """A clip, what the model makes of it, and where that comes from.

    Attributes:
        clip: The clip that the model saw.
        frames: The same before normalisation, uint8 (T, H, W, 3), in the order red, green, blue.
        heat: float32 (T, H, W) in 0..1; 1 is the strongest place of the clip.
        method: How it was found: ``gradcam``, ``gradcam-tokens``, ``rollout`` or ``grad-rollout``.
        class_name: The class that is explained. The rollout is the same for all; this is then the most probable one.
        probability: Probability of this class.
    """

    clip: Clip
    frames: NDArray[np.uint8]
    heat: NDArray[np.float32]
    method: str
    class_name: str
    probability: float

    @property
    def over_time(self) -> NDArray[np.float32]:
        """Share of each frame in all heat, (T,); zeros if there is none."""
        total = self.heat.sum()
        return self.heat.sum(axis=(1, 2)) / total if total > 0 else np.zeros(len(self.heat), np.float32)

    def _overlays(self) -> list[NDArray[np.uint8]]:
        return [heat_overlay(frame, heat) for frame, heat in zip(self.frames, self.heat, strict=True)]

    def strip(self, *, tile: int = 140, columns: int = 8) -> Image.Image:
        """Draws the frames and below them the same with the map, its share of the heat, frame and second.

        Args:
            tile: Side of a picture in pixels.
            columns: Pictures in one line.
        """
        captions = [
            (f"{100 * share:.0f}%", f"frame {index}", f"{second:.2f} s")
            for share, index, second in zip(self.over_time, self.clip.indices, self.clip.seconds, strict=True)
        ]
        rows = []
        for start in range(0, len(self.frames), columns):
            part = slice(start, start + columns)
            rows.append(Row("seen", tuple(Tile(frame) for frame in self.frames[part])))
            tiles = zip(self._overlays()[part], captions[part], strict=True)
            rows.append(Row(self.method, tuple(Tile(picture, lines) for picture, lines in tiles)))
        heading = (f"{self.clip.path}", f"{self.class_name}: {100 * self.probability:.1f}%")
        return contact_sheet(rows, heading=heading, tile=tile, columns=columns)

    def save(self, folder: str | os.PathLike[str], *, name: str | None = None) -> tuple[Path, Path]:
        """Writes ``<name>_<method>.png`` and ``.mp4`` (H.264, at the speed of the clip).

        Args:
            folder: Made if it is missing.
            name: Default the name of the video.

        Returns:
            The two files.

        Raises:
            StvidError: If PyAV's FFmpeg has no H.264 encoder, or the picture cannot be written.
            OSError: If the video cannot be written.
        """
        stem = Path(folder) / f"{name or Path(self.clip.path).stem}_{self.method}"
        picture = save_picture(self.strip(), stem.with_name(stem.name + ".png"))
        video = stem.with_name(stem.name + ".mp4")
        write_atomically(video, self._write_video)
        return picture, video

    def _write_video(self, path: Path) -> None:
        import av

        steps = np.diff(self.clip.seconds)
        step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.1
        rate = Fraction(1 / min(max(step, 1 / 60), 1.0)).limit_denominator(1000)
        height, width = self.frames.shape[1:3]
        scale = max(1.0, _VIDEO_SIDE / min(height, width))
        size = (round(width * scale / 2) * 2, round(height * scale / 2) * 2)
        font = ImageFont.load_default(16)
        try:
            with av.open(str(path), "w", format="mp4") as container:
                stream = container.add_stream("libx264", rate=rate)
                stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
                for overlay, second in zip(self._overlays(), self.clip.seconds, strict=True):
                    picture = Image.fromarray(overlay).resize(size, Image.Resampling.BILINEAR)
                    draw = ImageDraw.Draw(picture)
                    text = f"{self.class_name} {100 * self.probability:.0f}%   {second:.2f} s"
                    draw.rectangle((0, 0, size[0], 26), fill=(0, 0, 0))
                    draw.text((8, 4), text, fill=(255, 255, 255), font=font)
                    container.mux(stream.encode(av.VideoFrame.from_image(picture)))
                container.mux(stream.encode(None))
        except (av.error.FFmpegError, ValueError) as error:
            raise StvidError(f"{path}: cannot be written as H.264 ({error}); see stvid doctor") from error


def explain(
    model: VideoModel,
    path: str | os.PathLike[str] | bytes,
    *,
    method: ExplanationMethod = "auto",
    class_name: str | None = None,
    protocol: Protocol | None = None,
    start: float | None = None,
    end: float | None = None,
    backend: str = "av",
) -> Explanation:
    """Explains what a model makes of the clip in the middle of a video.

    Args:
        model: A model of `create_model`, on its device; its training mode is the same afterwards.
        path: A video file, or its bytes.
        method: ``auto`` takes Grad-CAM if the model has feature maps, or is an inflated image network, else a rollout:
            with gradients if a class is given.
        class_name: The class to explain; None takes the most probable one.
        protocol: None takes `model.default_protocol`.
        start: Use the video from this second on, counted from its first frame.
        end: Use the video up to this second, exclusive.
        backend: Decoder.

    Raises:
        VideoError: If the video cannot be read.
        UnknownNameError: If there is no such class.
        ConfigError: If the method is unknown or does not fit the model, the seconds are no part of a video, or the
            model does not take the clip.
    """
    if method not in get_args(ExplanationMethod):
        raise ConfigError(f"method: {method!r} is not one of {', '.join(get_args(ExplanationMethod))}")
    if start is not None and not 0 <= start < math.inf:
        raise ConfigError(f"start: {start!r} is not a number of seconds from 0 up")
    if end is not None and not (0 if start is None else start) < end:
        raise ConfigError(f"end: {end!r} is not a second after the start ({start or 0:g})")
    used = model_protocol(model, protocol, "1x1")
    target = None if class_name is None else _class_number(class_name, used, model.num_classes)
    clip = load_clip(path, protocol=used, start=start, end=end, backend=backend)
    weights = next(model.parameters())
    batch = clip.tensor[None].to(weights)
    with _evaluation_mode(model):
        try:
            if method == "auto":
                method = "gradcam" if not _has_attention(model) else "rollout" if target is None else "grad-rollout"
            if method == "rollout" and target is not None:
                raise ConfigError("method rollout: is the same for all classes; take grad-rollout to explain a class")
            compute = _gradcam if method == "gradcam" else _rollout
            heat, logits, target, tokens = compute(model, batch, target, with_gradients=method == "grad-rollout")
        except StvidError:
            raise
        except ValueError as error:
            raise ConfigError(f"{' '.join(str(error).split())} (protocol: {used.describe()})") from error
    shape = clip.tensor.shape[1:]
    heat = F.interpolate(heat[None, None].float(), size=shape, mode="trilinear", align_corners=False)[0, 0]
    if method != "gradcam":  # attention never is zero: what all patches get says nothing
        heat = heat - heat.min()
    peak = heat.max()
    scores = logits.softmax(0) if model_task(model, None) == "multiclass" else logits.sigmoid()
    names = used.class_names or tuple(f"class {k}" for k in range(len(scores)))
    return Explanation(
        clip=clip,
        frames=shown_pixels(clip.tensor, used).permute(1, 2, 3, 0).numpy(),
        heat=(heat / peak if peak > 0 else heat).cpu().numpy(),
        method="gradcam-tokens" if method == "gradcam" and tokens else method,
        class_name=names[target],
        probability=float(scores[target]),
    )


def _class_number(name: str, protocol: Protocol, num_classes: int) -> int:
    names = protocol.class_names or tuple(f"class {k}" for k in range(num_classes))
    if name not in names:
        raise UnknownNameError(f"class {name!r}: the model has no such class{nearest(name, names)}")
    return names.index(name)


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# --- Grad-CAM ---------------------------------------------------------------------------------------------------------

Found = tuple[Tensor, Tensor, int, bool]
"""The map (T', H', W'), the logits (K,), the class, and whether the map is one of tokens."""


def _has_attention(model: VideoModel) -> bool:
    """Whether a rollout can follow the model: its features are tokens, and its attention says what it goes over."""
    return not model.gives_maps and model.names_attention


def _gradcam(model: VideoModel, batch: Tensor, target: int | None, *, with_gradients: bool = True) -> Found:
    """Weighs the features by the gradient of a logit: the last maps, or the tokens that enter the last block."""
    taken: dict[int, Tensor] = {}

    def keep(place: int, x: Tensor) -> Tensor:
        taken[place] = x
        return x

    with torch.enable_grad():
        features = model.encode(batch.requires_grad_(), keep)
        tokens = not model.gives_maps
        place = len(model.feature_info) - 1
        if tokens or features.shape[3:].numel() == 1:  # behind the pooling there is nothing to see
            place -= 1
        if place not in taken or (tokens and _has_attention(model)):
            raise ConfigError(
                f"method gradcam: {type(model).__name__} has no feature maps; take rollout or grad-rollout"
            )
        logits = model.forward_head(features)[0]
        chosen = int(logits.argmax()) if target is None else target
        (gradient,) = torch.autograd.grad(logits[chosen], taken[place], allow_unused=True)
    if gradient is None:
        raise ConfigError(f"method gradcam: the logits of {type(model).__name__} do not depend on its last maps")
    size = (batch.shape[2], batch.shape[3], batch.shape[4])
    maps, gradient = (model.to_map(values, place, size) for values in (taken[place], gradient))
    weights = gradient.mean(dim=(2, 3, 4), keepdim=True)
    return (weights * maps).sum(1)[0].relu().detach(), logits.detach(), chosen, tokens


# --- rollout ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """The attention of one module: one matrix for each sequence that it was applied to, averaged over heads.

    Attributes:
        kind: The tokens of a sequence: all those of the ``clip``, those of a ``frame``, a ``column`` of one place in
            all frames, or one token for each of the ``frames``.
        weights: (sequences, N, N).
    """

    kind: Literal["clip", "frame", "column", "frames"]
    weights: Tensor


def _rollout(model: VideoModel, batch: Tensor, target: int | None, *, with_gradients: bool) -> Found:
    """Multiplies the attention of all layers, with the weights of a logit's gradient if that is asked for."""
    records: list[tuple[Source, Tensor]] = []
    grid: list[int] = []
    clip_size = (batch.shape[2], batch.shape[3], batch.shape[4])

    def keep(weights: Tensor, source: Source | None) -> None:
        if source is not None:
            records.append((source, weights if with_gradients else weights.mean(1)))

    def first(place: int, x: Tensor) -> Tensor:
        if place == 0:
            grid.extend(model.to_map(x, 0, clip_size).shape[2:])
        return x

    with record_attention(keep), torch.set_grad_enabled(with_gradients):
        logits = model.forward_head(model.encode(batch.requires_grad_(with_gradients), first))[0]
        chosen = int(logits.argmax()) if target is None else target
        if with_gradients and records:
            gradients = torch.autograd.grad(logits[chosen], [weights for _, weights in records])
            records = [
                (source, (weights * gradient).relu().mean(1).detach())
                for (source, weights), gradient in zip(records, gradients, strict=True)
            ]
    if not records or not _has_attention(model):
        raise ConfigError(f"method rollout: {type(model).__name__} is no transformer over patches; take gradcam")
    time, height, width = grid
    layers = [_layer(model, axes, weights, height * width) for (_, axes), weights in records]
    modules = [module for (module, _), _ in records]
    heat = _roll(layers, modules, time, height * width, residual=1.0 if with_gradients else 0.5)
    return heat.reshape(time, height, width), logits.detach(), chosen, False


def _layer(model: nn.Module, axes: str, weights: Tensor, space: int) -> _Layer:
    """Tells what the sequences of an attention are."""
    if axes == "clip" and weights.shape[0] == 1:
        return _Layer("clip", weights)
    if axes == "space":
        return _Layer("frame", weights)
    if axes == "time":
        return _Layer("column" if weights.shape[0] == space else "frames", weights)
    raise ConfigError(
        f"method rollout: {type(model).__name__} attends over {axes} in {weights.shape[0]} groups of its tokens, for "
        "which no rollout is defined; take gradcam"
    )


def _roll(layers: list[_Layer], modules: list[object], time: int, space: int, *, residual: float) -> Tensor:
    """Takes relevance from the classified tokens back to the patches, (time, space)."""
    blank = layers[0].weights
    # The relevance of the patches, of one class token for each frame, and, above them, of the clip's own sequence.
    shared = any(layer.kind == "column" for layer in layers)  # TimeSformer: the frames' class tokens are one
    with_frame_token = any(layer.kind == "frame" and layer.weights.shape[-1] > space for layer in layers)
    with_clip_token = any(layer.kind == "clip" and layer.weights.shape[-1] > time * space for layer in layers)
    sequences = [layer for layer in layers if layer.kind == "frames"]
    frame_tokens = blank.new_full((time, 1), 1 / time)
    if sequences:
        relevance = blank.new_full((1, sequences[-1].weights.shape[-1]), 1 / time)
        if relevance.shape[1] > time:  # the first is the classified one
            relevance = torch.eye(1, time + 1).to(blank)
        for layer in reversed(sequences):
            relevance = _back(relevance[:, None], layer.weights, residual)[:, 0]
        frame_tokens = relevance[0, -time:, None]
    clip_token = blank.new_ones(1, 1)
    read_token = with_frame_token or with_clip_token
    patches = blank.new_zeros(time, space) if read_token else blank.new_full((time, space), 1 / (time * space))
    groups = [layer for layer in layers if layer.kind != "frames"]
    kept = [module for module, layer in zip(modules, layers, strict=True) if layer.kind != "frames"]
    number = len(groups)
    while number:
        # Attentions of one module act side by side, each on its share of the heads (ViViT's model 4).
        first = number - 1
        while first and kept[first - 1] is kept[number - 1]:
            first -= 1
        results = []
        for layer in groups[first:number]:
            if layer.kind == "clip":
                row = torch.cat((clip_token, patches.reshape(1, -1)), 1) if with_clip_token else patches.reshape(1, -1)
                row = _back(row[:, None], layer.weights, residual)[:, 0]
                clip_token = row[:, :1] if with_clip_token else clip_token
                results.append((row[:, -time * space :].view(time, space), frame_tokens))
            elif layer.kind == "frame":
                rows = torch.cat((frame_tokens, patches), 1) if with_frame_token else patches
                rows = _back(rows[:, None], layer.weights, residual)[:, 0]
                tokens = rows[:, :1] if with_frame_token else frame_tokens
                tokens = tokens.mean().expand_as(tokens) if shared else tokens
                results.append((rows[:, -space:], tokens))
            else:
                columns = _back(patches.t()[:, None], layer.weights, residual)[:, 0]
                results.append((columns.t(), frame_tokens))
        patches = torch.stack([result[0] for result in results]).mean(0)
        frame_tokens = torch.stack([result[1] for result in results]).mean(0)
        number = first
    return patches


def _back(relevance: Tensor, weights: Tensor, residual: float) -> Tensor:
    """One layer: relevance (G, 1, N) times residual * identity + (1 - residual, or 1) * weights (G, N, N)."""
    share = 1.0 if residual == 1.0 else 1 - residual
    return residual * relevance + share * (relevance @ weights)
