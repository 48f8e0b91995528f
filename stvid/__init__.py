"""stvid: video classification models, exact clip loading and multi-view evaluation.

The names below are the public API; they are imported when first used, so that ``import stvid`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stvid.version import __version__

if TYPE_CHECKING:
    from stvid.checkpoints import LoadReport, load_checkpoint, save_model
    from stvid.data.datamodule import ClipBatch, ClipLoader, LoaderOptions, make_loader
    from stvid.data.dataset import Clip, load_clip
    from stvid.data.manifest import read_manifest
    from stvid.engine.features import extract_features
    from stvid.engine.finetuning import train
    from stvid.engine.probe import probe
    from stvid.engine.train import TrainResult
    from stvid.errors import StvidError
    from stvid.evaluation.comparison import compare
    from stvid.evaluation.evaluate import EvaluationResult, evaluate
    from stvid.evaluation.features import load_features
    from stvid.evaluation.late_fusion import late_fusion
    from stvid.evaluation.predict import Prediction, predict
    from stvid.evaluation.probe import ProbeResult
    from stvid.evaluation.timeline import timeline
    from stvid.exporting import export_model, load_exported
    from stvid.hub import ModelCard, push_to_hub, save_pretrained
    from stvid.inference import fuse, optimize
    from stvid.inflation.inflate import inflate
    from stvid.look.explanation import explain
    from stvid.models.attention import set_attention_backend
    from stvid.models.merging import merge_tokens
    from stvid.protocol import Protocol
    from stvid.video.reader import VideoReader
    from stvid.zoo import create_model, list_models, load_model

_HOMES = {
    "Clip": "stvid.data.dataset",
    "ClipBatch": "stvid.data.datamodule",
    "ClipLoader": "stvid.data.datamodule",
    "EvaluationResult": "stvid.evaluation.evaluate",
    "LoadReport": "stvid.checkpoints",
    "LoaderOptions": "stvid.data.datamodule",
    "ModelCard": "stvid.hub",
    "Prediction": "stvid.evaluation.predict",
    "ProbeResult": "stvid.evaluation.probe",
    "Protocol": "stvid.protocol",
    "StvidError": "stvid.errors",
    "TrainResult": "stvid.engine.train",
    "VideoReader": "stvid.video.reader",
    "compare": "stvid.evaluation.comparison",
    "create_model": "stvid.zoo",
    "evaluate": "stvid.evaluation.evaluate",
    "fuse": "stvid.inference",
    "inflate": "stvid.inflation.inflate",
    "explain": "stvid.look.explanation",
    "export_model": "stvid.exporting",
    "extract_features": "stvid.engine.features",
    "late_fusion": "stvid.evaluation.late_fusion",
    "list_models": "stvid.zoo",
    "load_checkpoint": "stvid.checkpoints",
    "load_clip": "stvid.data.dataset",
    "load_exported": "stvid.exporting",
    "load_features": "stvid.evaluation.features",
    "load_model": "stvid.zoo",
    "make_loader": "stvid.data.datamodule",
    "merge_tokens": "stvid.models.merging",
    "optimize": "stvid.inference",
    "predict": "stvid.evaluation.predict",
    "probe": "stvid.engine.probe",
    "push_to_hub": "stvid.hub",
    "read_manifest": "stvid.data.manifest",
    "save_model": "stvid.checkpoints",
    "save_pretrained": "stvid.hub",
    "set_attention_backend": "stvid.models.attention",
    "timeline": "stvid.evaluation.timeline",
    "train": "stvid.engine.finetuning",
}

__all__ = [
    "Clip",
    "ClipBatch",
    "ClipLoader",
    "EvaluationResult",
    "LoadReport",
    "LoaderOptions",
    "ModelCard",
    "Prediction",
    "ProbeResult",
    "Protocol",
    "StvidError",
    "TrainResult",
    "VideoReader",
    "__version__",
    "compare",
    "create_model",
    "evaluate",
    "explain",
    "export_model",
    "extract_features",
    "fuse",
    "inflate",
    "late_fusion",
    "list_models",
    "load_checkpoint",
    "load_clip",
    "load_exported",
    "load_features",
    "load_model",
    "make_loader",
    "merge_tokens",
    "optimize",
    "predict",
    "probe",
    "push_to_hub",
    "read_manifest",
    "save_model",
    "save_pretrained",
    "set_attention_backend",
    "timeline",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stvid' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
