"""Published facts about the video models of other libraries that have no native counterpart.

Listing them imports neither torch nor the library; external.py builds and wraps them. torchvision's numbers are those
of the weights' ``meta``, PyTorchVideo's those of docs/source/model_zoo.md.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stvid.models.registry import ModelInfo
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

if TYPE_CHECKING:
    from stvid.models.external import LibraryModel

__all__ = ["NATIVE", "library_model_info", "library_models", "video_libraries"]


@dataclass(frozen=True)
class _Published:
    """Facts about a model: the name of its wrapper in external.py, and fields of `ModelInfo`."""

    wrapper: str
    protocol: Protocol
    params: float | None
    gflops: float | None
    paper: str


_MVIT = "Fan et al. 2021, arXiv:2104.11227"

# torchvision: crop, scale, mean and std of the weights' transforms; frames, rate and clips of their `_docs`; parameters
# and operations of their `meta`.
_TORCHVISION_MVIT = Protocol(frames=16, stride=1, fps=7.5, short_side=256, crop=224, views="5x1")

# PyTorchVideo: frames x stride, operations and parameters of its model_zoo.md; crops and views of SlowFast's
# configs/Kinetics/pytorchvideo, by which the zoo was measured (TEST_CROP_SIZE; a single crop is scaled to the smaller
# of TRAIN_JITTER_SCALES; DATA.TARGET_FPS is 30). The zoo counts norms and activations too. The image model is that of
# SlowFast's configs/ImageNet/MVIT_B_16_CONV.yaml.
_ZOO_MVIT = Protocol(frames=16, stride=4, fps=30, short_side=256, crop=224, views="5x1")
_IMAGE = Protocol(frames=1, stride=1, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)


_PUBLISHED: dict[str, dict[str, _Published]] = {
    "torchvision": {
        "mvit_v1_b": _Published("TorchvisionMViT", _TORCHVISION_MVIT, 36.61, 70.6, _MVIT),
        "mvit_v2_s": _Published("TorchvisionMViT", _TORCHVISION_MVIT, 34.54, 64.22, "Li et al. 2022, arXiv:2112.01526"),
    },
    "pytorchvideo": {
        "mvit_base_16": _Published("PyTorchVideoImageMViT", _IMAGE, None, None, _MVIT),
        "mvit_base_16x4": _Published("PyTorchVideoMViT", _ZOO_MVIT, 36.61, 70.8, _MVIT),
        "mvit_base_32x3": _Published("PyTorchVideoMViT", _ZOO_MVIT.replace(frames=32, stride=3), 36.61, 170.37, _MVIT),
    },
}
# Models of the libraries that stvid has natively: the library's name, and stvid's.
NATIVE: dict[str, dict[str, str]] = {
    "torchvision": {
        name: name for name in ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "swin3d_b", "swin3d_s", "swin3d_t")
    },
    "pytorchvideo": {
        "c2d_r50": "c2d_r50",
        "csn_r101": "ir_csn_101",
        "efficient_x3d_s": "x3d_s",
        "efficient_x3d_xs": "x3d_xs",
        "i3d_r50": "i3d_r50",
        "r2plus1d_r50": "r2plus1d_50",
        "slow_r50": "slow_r50",
        "slowfast_16x8_r101_50_50": "slowfast_r101_8x8",
        "slowfast_r101": "slowfast_r101_8x8",
        "slowfast_r50": "slowfast_r50_8x8",
        **{name: name for name in ("x3d_l", "x3d_m", "x3d_s", "x3d_xs")},
    },
}


def video_libraries() -> list[str]:
    """Returns the libraries whose video models are wrapped."""
    return sorted(_PUBLISHED)


def library_models(library: str) -> list[str]:
    """Returns the names of a library's models that are not native here, whether the library is installed or not."""
    return sorted(_PUBLISHED[library])


def library_model_info(library: str, name: str) -> ModelInfo:
    """Returns the facts about one of `library_models`."""
    known = _PUBLISHED[library][name]
    build = functools.partial(_build, library, name)
    return ModelInfo(f"{library}/{name}", build, known.protocol, known.params, known.gflops, known.paper)


def _build(library: str, name: str, **arguments: Any) -> LibraryModel:
    from stvid.models import external

    wrapper: type[LibraryModel] = getattr(external, _PUBLISHED[library][name].wrapper)
    return external.build_library_model(library, name, wrapper, **arguments)
