"""Models as files that run without stvid: torch.export programs and ONNX graphs.

The file maps normalised clips, float32 (B, 3, T, H, W) with any B, to logits (B, num_classes); T, H and W are those of
the model's protocol. How a video becomes such a clip stands in the file's metadata, under the name ``stvid``: the
protocol with the class names, the task, and the preprocessing in words (`export_metadata`). A torch.export file holds
it as the extra file ``stvid.json``, an ONNX file as the entry ``stvid`` of ``metadata_props``.

A file is written only after it was read back and its logits were compared with the model's.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stvid.checkpoints import describe
from stvid.errors import CheckpointError, ConfigError, StvidError
from stvid.files import claimed, draft_folder
from stvid.models.attention import get_attention_backend, set_attention_backend
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

__all__ = ["ExportFormat", "ExportReport", "ExportedModel", "export_metadata", "export_model", "load_exported"]

ExportFormat = Literal["torch-export", "onnx"]
SUFFIXES: dict[str, str] = {"torch-export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-3
"""How much the logits of the file may differ from the model's, relative to the largest logit, or 1 if that is less."""

EXTERNAL_BYTES = 2**30
"""Weights from which an ONNX graph keeps them in a file of their own: protobuf cannot hold 2 GiB."""

_CHECKED_BATCHES = (1, 3)  # the program is traced with 2
_METADATA = "stvid"


@dataclass(frozen=True)
class ExportReport:
    """The files that `export_model` wrote, and how exactly they compute what the model does.

    Attributes:
        path: The file.
        format: ``torch-export`` or ``onnx``.
        files: All files that belong to it: `path`, and for large ONNX graphs the one of the weights.
        num_bytes: Size of these files together.
        input_shape: Shape of a clip, (3, T, H, W).
        largest_difference: Largest difference between the logits of the file and of the model, over random clips.
        largest_logit: Largest absolute value among the logits of the model on these clips.
    """

    path: Path
    format: ExportFormat
    files: tuple[Path, ...]
    num_bytes: int
    input_shape: tuple[int, int, int, int]
    largest_difference: float
    largest_logit: float

    def __str__(self) -> str:
        channels, frames, height, width = self.input_shape
        return (
            f"{self.path}: {self.format}, {self.num_bytes / 1e6:.1f} MB, clips (batch, {channels}, {frames}, {height}, "
            f"{width}); largest difference to the model's logits {self.largest_difference:.2g} (largest logit "
            f"{self.largest_logit:.2g})"
        )


class ExportedModel(nn.Module):
    """A file of `export_model`, to be used like the model: in `stvid.predict`, `stvid.evaluate`, or by a call.

    Attributes:
        default_protocol: The protocol that came with the file.
        task: What the logits mean: ``multiclass`` or ``multilabel``.
        num_classes: Number of logits.
        metadata: All of the file's metadata, see `export_metadata`.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], metadata: dict[str, Any]) -> None:
        super().__init__()
        self._run = run
        self.metadata = metadata
        self.default_protocol = Protocol.from_dict(metadata["protocol"])
        self.task: str = metadata["task"]
        self.num_classes: int = metadata["output"]["shape"][1]
        self._shape = tuple(metadata["input"]["shape"][1:])

    def forward(self, clip: Tensor) -> Tensor:
        """Returns logits (B, num_classes) on the CPU, float32.

        Args:
            clip: Normalised clips (B, 3, T, H, W), with the channels in the order that the protocol names.

        Raises:
            ValueError: If the clips have another shape than the file takes.
        """
        if clip.dim() != 5 or tuple(clip.shape[1:]) != self._shape:
            raise ValueError(
                f"this exported model takes clips (B, {', '.join(map(str, self._shape))}), not {tuple(clip.shape)}"
            )
        return self._run(clip.detach().float().cpu())


def export_metadata(model: VideoModel, shape: Sequence[int]) -> dict[str, Any]:
    """Returns the facts that a user of an exported file has to know, as plain JSON values.

    Args:
        model: The model.
        shape: (3, T, H, W) of a clip.

    Returns:
        `stvid.checkpoints.describe`'s values (version, model, protocol with class names, task), and the name, type,
        axes and shape of ``input`` and ``output``, the order of the channels, and ``preprocessing`` in words.
    """
    protocol = model.default_protocol
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (protocol.mean, protocol.std))
    return {
        **describe(model),
        "input": {
            "name": "clip",
            "type": "float32",
            "axes": "BCTHW",
            "shape": ["batch", *shape],
            "channels": protocol.channels,
        },
        "output": {"name": "logits", "type": "float32", "axes": "BK", "shape": ["batch", model.num_classes]},
        "preprocessing": [
            f"frames: {protocol.describe()}",
            f"scale the short side to {protocol.short_side} pixels (bilinear, antialiased), cut {protocol.crop} x "
            f"{protocol.crop}",
            f"RGB in 0..1, minus ({mean}), divided by ({std})"
            + (", then the channels turned round: blue, green, red" if protocol.channels == "bgr" else ""),
            "probabilities: " + ("softmax" if model.task == "multiclass" else "sigmoid") + " of the logits, averaged "
            "over the views",
        ],
    }


def export_model(
    model: VideoModel,
    path: str | os.PathLike[str],
    *,
    format: ExportFormat | None = None,
    opset: int = 18,
) -> ExportReport:
    """Writes a model as a torch.export program or an ONNX graph, with its protocol, and proves that it is the same.

    Args:
        model: The model, which is not changed: it is exported in evaluation mode, for the CPU and in float32. Frames
            and size are those of its `default_protocol`.
        path: The file; its folder is made. An ONNX graph of more than 1 GiB has its weights beside it, in
            ``<name>.data``.
        format: ``torch-export`` or ``onnx``; None goes by the suffix, ``.pt2`` or ``.onnx``.
        opset: Version of ONNX's operators.

    Returns:
        The files, and the largest difference between their logits and the model's.

    Raises:
        ConfigError: If the format cannot be told, or the opset is not usable.
        StvidError: If packages are missing (the message has the command), the model cannot be exported, the file's
            logits differ by more than 1e-3 of the largest one, or it cannot be written. No file is left behind.
    """
    target = Path(path)
    chosen = _choose_format(target, format)
    if chosen == "onnx":
        _require("onnx", "onnxscript", "onnxruntime")
        if isinstance(opset, bool) or not isinstance(opset, int) or not 18 <= opset <= 23:
            raise ConfigError(f"opset: {opset!r} is not a whole number from 18 to 23")
    protocol = model.default_protocol
    shape = (getattr(model, "in_chans", 3), protocol.frames, protocol.crop, protocol.crop)
    if model.training or any(
        weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in model.parameters()
    ):
        model = copy.deepcopy(model).cpu().float().eval()
    metadata = export_metadata(model, shape)
    try:
        with claimed(target), draft_folder(target) as folder:
            draft = folder / target.name
            if chosen == "onnx":
                _write_onnx(model, draft, shape, metadata, opset)
            else:
                _write_program(model, draft, shape, metadata)
            difference, largest = _compare(model, load_exported(draft, format=chosen), shape)
            if not difference <= TOLERANCE * max(1.0, largest):  # also if it is not a number
                raise StvidError(
                    f"{target}: not written: its logits differ from the model's by {difference:.2g} (largest logit "
                    f"{largest:.2g})"
                )
            # The weights first: a graph without them would be no model.
            drafts = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
            files = tuple(target.parent / file.name for file in drafts)
            for file, place in zip(drafts, files, strict=True):
                os.replace(file, place)
    except OSError as error:
        raise StvidError(f"{target}: cannot be written ({error.strerror or error})") from error
    return ExportReport(
        path=target,
        format=chosen,
        files=files,
        num_bytes=sum(file.stat().st_size for file in files),
        input_shape=shape,
        largest_difference=difference,
        largest_logit=largest,
    )


def load_exported(path: str | os.PathLike[str], *, format: ExportFormat | None = None) -> ExportedModel:
    """Reads a file of `export_model`, to run it on the CPU.

    Args:
        path: The file. Read torch.export files of others only if you trust them: they may hold pickled objects.
        format: None goes by the suffix, ``.pt2`` or ``.onnx``.

    Raises:
        CheckpointError: If the file is missing, damaged, or was not written by stvid.
        ConfigError: If the format cannot be told.
        StvidError: If onnxruntime is missing.
    """
    source = Path(path)
    chosen = _choose_format(source, format)
    if not source.is_file():
        raise CheckpointError(f"{source}: no such exported model")
    read = _read_onnx if chosen == "onnx" else _read_program
    if chosen == "onnx":
        _require("onnxruntime")
    try:
        run, text = read(source)
    except Exception as error:  # both runtimes raise kinds of their own for damaged files
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{source}: not a file of {chosen}, or damaged ({reason})") from error
    if not text:
        raise CheckpointError(f"{source}: has no metadata of stvid; it was not written by stvid export")
    return ExportedModel(run, json.loads(text))


def _choose_format(path: Path, format: str | None) -> ExportFormat:
    if format is not None and format not in get_args(ExportFormat):
        raise ConfigError(f"format: {format!r} is neither {' nor '.join(get_args(ExportFormat))}")
    by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
    found = format or by_suffix.get(path.suffix)
    if found is None:
        raise ConfigError(f"{path}: its suffix is neither .pt2 nor .onnx; name the format: torch-export or onnx")
    return found  # type: ignore[return-value]


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise StvidError(f"{error}; ONNX needs: pip install 'stvid[export]'") from error


def _compare(model: nn.Module, exported: ExportedModel, shape: Sequence[int]) -> tuple[float, float]:
    """Returns the largest difference of the logits, and the largest logit, over random clips of several batches."""
    generator = torch.Generator().manual_seed(0)
    difference = largest = 0.0
    with torch.no_grad():
        for batch in _CHECKED_BATCHES:
            clip = torch.randn(batch, *shape, generator=generator)
            expected = model(clip)
            found = (exported(clip) - expected).abs().max().item()
            difference = found if found != found else max(difference, found)  # keep what is not a number
            largest = max(largest, expected.abs().max().item())
    return difference, largest


def _trace(model: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """Returns the program of a model for clips of this shape and any batch."""
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))
    except ValueError as error:  # the protocol's clips are not the model's
        raise ConfigError(" ".join(str(error).split())) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise StvidError(f"{type(model).__name__} cannot be traced for any batch: {reason}") from error


# --- torch.export -----------------------------------------------------------------------------------------------------


def _write_program(model: nn.Module, path: Path, shape: Sequence[int], metadata: Mapping[str, Any]) -> None:
    program = _trace(model, shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # said of weights in channels_last
        # To memory first: torch's writer ends the process if the disk is full.
        written = io.BytesIO()
        torch.export.save(program, written, extra_files={f"{_METADATA}.json": json.dumps(metadata)})
    path.write_bytes(written.getbuffer())


def _read_program(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    extra: dict[str, Any] = {f"{_METADATA}.json": ""}
    program = torch.export.load(path, extra_files=extra).module()

    def run(clip: Tensor) -> Tensor:
        with torch.no_grad():
            return program(clip)

    text = extra[f"{_METADATA}.json"]
    return run, text.decode() if isinstance(text, bytes) else text


# --- ONNX -------------------------------------------------------------------------------------------------------------


def _adaptive_average(x: Tensor, size: Sequence[int]) -> Tensor:
    """Adaptive average pooling as a product with one matrix per axis; ONNX has no such operator.

    Cell ``i`` of ``n`` is the mean of the places from floor(i * length / n) to ceil((i + 1) * length / n), as in torch
    (aten/src/ATen/native/AdaptivePooling.h, start_index and end_index).
    """
    for axis, cells in zip((-3, -2, -1), size, strict=True):
        length = x.shape[axis]
        weights = torch.zeros(cells, length, dtype=x.dtype)
        for cell in range(cells):
            start, end = cell * length // cells, -(-(cell + 1) * length // cells)
            weights[cell, start:end] = 1 / (end - start)
        x = torch.matmul(x.movedim(axis, -1), weights.t()).movedim(-1, axis)
    return x


def _write_onnx(model: nn.Module, path: Path, shape: Sequence[int], metadata: Mapping[str, Any], opset: int) -> None:
    # Attention is written out: before opset 23 ONNX has no operator for it, and the exporter checks the strides of
    # torch's fused kernel against its own decomposition, which differ for masked windows (torch 2.15).
    backend = get_attention_backend()
    set_attention_backend("math")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own future changes
            pools = (torch.ops.aten.adaptive_avg_pool3d.default, torch.ops.aten._adaptive_avg_pool3d.default)
            program = _trace(model, shape).run_decompositions(dict.fromkeys(pools, _adaptive_average))
            exported: Any = torch.onnx.export(
                program,
                (torch.zeros(2, *shape),),
                dynamo=True,
                input_names=["clip"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
                opset_version=opset,
                optimize=True,
                verbose=False,
            )
            exported.model.metadata_props[_METADATA] = json.dumps(metadata)
            weights = sum(weight.nbytes for weight in model.state_dict().values())
            exported.save(str(path), external_data=weights > EXTERNAL_BYTES)
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise StvidError(f"{type(model).__name__} cannot be written as ONNX: {reason}") from error
    finally:
        set_attention_backend(backend)
        logger.setLevel(level)


def _read_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(clip: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: clip.contiguous().numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map.get(_METADATA, "")
