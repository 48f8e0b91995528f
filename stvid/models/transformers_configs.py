"""Configs of transformers' video models, read as recipes of stvid's own models.

A folder of transformers has a ``config.json``, which names the architecture (``model_type``) and its sizes, and a
``preprocessor_config.json``, which says how a frame becomes numbers. `recipe_of` turns both into the arguments of
`stvid.create_model` and a protocol; what the config asks for and stvid's model does not compute is an error. The
library itself is not needed.

A further type is one function and one entry in `_TYPES`. The meaning of the keys was read in transformers 5.24:
``models/<type>/configuration_<type>.py`` and ``image_processing_<type>.py``.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stvid.errors import CheckpointError
from stvid.models.registry import family_of
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["TransformersRecipe", "known_types", "normalisation_of", "recipe_of"]

_HEAD = "ForVideoClassification"  # end of the name of a class with a classifier
_TANH_GELU = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class TransformersRecipe:
    """A model of stvid that computes what a model of transformers computes.

    Attributes:
        recipe: ``name``, ``num_classes``, ``num_frames``, ``img_size`` and ``hyperparameters``, as
            `stvid.create_model` takes them and `stvid.checkpoints.describe` stores them.
        protocol: The frames, the size and the normalisation, with the class names if the config has some. The
            distance between frames and the views, of which transformers knows nothing, are those of the architecture.
        task: ``multiclass`` or ``multilabel``.
    """

    recipe: dict[str, Any]
    protocol: Protocol
    task: str


@dataclass(frozen=True)
class _Type:
    """A ``model_type``.

    Attributes:
        module: The file of the family.
        model: Its class.
        variants: The models that may be meant; the one with the most options in common is taken.
        options: Returns the arguments of the class that a config decides.
        offset: Whether the preprocessor subtracts 1 after it has scaled the pixels, unless its file says otherwise.
        preprocessor: Values of keys that a file leaves out.
        video: Key of the part that describes the video side; empty if the whole config does.
        head: End of the name of a class with a classifier.
        alone: Whether the library's other classes of this type are encoders of the same network; else they are other
            networks.
    """

    module: str
    model: str
    variants: tuple[str, ...]
    options: Callable[[Mapping[str, Any]], dict[str, Any]]
    offset: bool = False
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    video: str = ""
    head: str = _HEAD
    alone: bool = True


def known_types() -> list[str]:
    """Returns the values of ``model_type`` that `recipe_of` reads."""
    return sorted(_TYPES)


def recipe_of(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None, *, where: str = "config"
) -> TransformersRecipe:
    """Returns the recipe that the config of a model of transformers calls for.

    Args:
        config: The content of ``config.json``.
        preprocessor: The content of ``preprocessor_config.json`` or ``video_preprocessor_config.json``; None takes the
            size and normalisation of the architecture.
        where: How messages call the config.

    Raises:
        CheckpointError: If the type is none that stvid has, or a value none that its model computes.
    """
    kind = config.get("model_type")
    if kind not in _TYPES:
        raise CheckpointError(
            f"{where}: model_type {kind!r} is no video model that stvid has; it reads {', '.join(known_types())}"
        )
    known = _TYPES[kind]
    try:
        options = known.options(config)
        frames, size = _clip_of({"num_frames": 8, **config.get(known.video, {})} if known.video else config)
        names = _class_names(config)
        count = len(names) if "id2label" in config else int(config.get("num_labels", 2))
        pixels = None if preprocessor is None else _Pixels.read(preprocessor, known)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        reason = str(error) if isinstance(error, _Unsupported) else f"cannot be read ({type(error).__name__}: {error})"
        raise CheckpointError(f"{where}: {reason}") from error
    if not any(str(name).endswith(known.head) for name in config.get("architectures") or (known.head,)):
        if not known.alone:
            raise CheckpointError(
                f"{where}: is of {', '.join(map(str, config['architectures']))}; of the type {kind} stvid has "
                f"{known.head} alone"
            )
        count, names = 0, ()  # an encoder alone
    name, hyperparameters = _nearest(known, options, frames, size)
    crop = min(size)
    protocol = family_of(name)[1].protocol
    protocol = protocol.replace(
        frames=frames,
        crop=crop,
        short_side=max(crop, round(crop * protocol.short_side / protocol.crop)),
        class_names=() if _are_placeholders(names) else names,
    )
    recipe = {
        "name": name,
        "num_classes": count,
        "num_frames": frames,
        "img_size": list(size),
        "hyperparameters": hyperparameters,
    }
    task = "multilabel" if config.get("problem_type") == "multi_label_classification" else "multiclass"
    return TransformersRecipe(recipe, protocol if pixels is None else pixels.applied(protocol), task)


def normalisation_of(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Returns the mean and the standard deviation of pixels in 0..1 that a preprocessor applies.

    Args:
        config: The content of ``config.json``; its ``model_type`` gives the values that the other file leaves out.
        preprocessor: The content of the preprocessor's file.

    Returns:
        Both; None if they are not given, or are no usable numbers.
    """
    known = _TYPES.get(config.get("model_type"), _PLAIN)  # type: ignore[arg-type]
    try:
        pixels = _Pixels.read(preprocessor, known)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError):
        return None
    return (pixels.mean, pixels.std) if min(pixels.std) > 0 else None


class _Unsupported(ValueError):
    """A value of a config that stvid's model does not compute."""


def _require(config: Mapping[str, Any], key: str, allowed: Sequence[Any]) -> None:
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise _Unsupported(f"{key} is {value!r}, but stvid's model has {' or '.join(map(repr, allowed))}")


def _pair(value: Any) -> tuple[int, int]:
    """Returns (height, width)."""
    if isinstance(value, Mapping):
        return int(value["height"]), int(value["width"])
    return (int(value[0]), int(value[1])) if isinstance(value, Sequence) else (int(value), int(value))


def _clip_of(config: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
    """Returns the frames of a clip, and (height, width)."""
    if "video_size" in config and "image_size" not in config:  # as the first configs of ViViT had it
        frames, height, width = (int(number) for number in config["video_size"])
        return frames, (height, width)
    if "frames_per_clip" in config:  # V-JEPA 2
        return int(config["frames_per_clip"]), _pair(config.get("crop_size", 256))
    if config["model_type"] == "perceiver":  # whose image_size counts patches
        _, frames, height, width = (int(number) for number in config.get("output_shape", (1, 16, 224, 224)))
        return frames, (height, width)
    return int(config["num_frames"]), _pair(config.get("image_size", 224))


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    labels = {int(number): str(name) for number, name in config.get("id2label", {}).items()}
    if sorted(labels) != list(range(len(labels))):
        raise _Unsupported("id2label does not number the classes from 0 on")
    return tuple(labels[number] for number in range(len(labels)))


def _are_placeholders(names: Sequence[str]) -> bool:
    """Whether names are those that transformers invents: LABEL_0, LABEL_1, ..."""
    return all(re.fullmatch(rf"LABEL_{number}", name) for number, name in enumerate(names))


def _nearest(
    known: _Type, options: Mapping[str, Any], frames: int, size: tuple[int, int]
) -> tuple[str, dict[str, Any]]:
    """Returns the variant with the most of some options, and those in which it differs."""
    kind = getattr(importlib.import_module(known.module), known.model)
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    best: tuple[Any, str, dict[str, Any]] | None = None
    for name in known.variants:
        variant = family_of(name)[1]
        own = {**defaults, **variant.options}
        differing = {key: value for key, value in options.items() if own[key] != value}
        far = (variant.protocol.crop != min(size)) + (variant.protocol.frames != frames)
        if best is None or (len(differing), far) < best[0]:
            best = ((len(differing), far), name, differing)
    assert best is not None
    return best[1], best[2]


# --- preprocessing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pixels:
    """How a frame becomes the numbers that a model sees.

    Attributes:
        mean: The mean that is subtracted from values in 0..1.
        std: The standard deviation by which the differences are divided.
        short_side: Pixels of the short side before the crop; None if the file does not say.
        crop: Side of the crop; None if the file does not say.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    short_side: int | None
    crop: int | None

    @classmethod
    def read(cls, values: Mapping[str, Any], known: _Type) -> _Pixels:
        """Reads a file of a preprocessor.

        The library computes ``(pixel * rescale_factor - offset - image_mean) / image_std`` of a pixel in 0..255; a
        protocol is about pixels in 0..1.
        """
        values = {**known.preprocessor, **values}
        scale = 255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
        scale = float(round(scale)) if math.isclose(scale, round(scale), rel_tol=1e-6) else scale
        shift = float(bool(values.get("do_rescale", True) and values.get("offset", known.offset)))
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if values.get("do_normalize", True):
            mean, std = _three(values["image_mean"]), _three(values["image_std"])
        red, green, blue = ((shift + number) / scale for number in mean)
        one, two, three = (number / scale for number in std)
        return cls((red, green, blue), (one, two, three), *cls._sizes(values))

    @staticmethod
    def _sizes(values: Mapping[str, Any]) -> tuple[int | None, int | None]:
        size, crop = values.get("size"), values.get("crop_size")
        cropped = bool(values.get("do_center_crop", True)) and crop is not None
        side = None if not cropped else min(_pair(crop))
        if not values.get("do_resize", True) or size is None:
            return None, side
        if isinstance(size, Mapping) and "shortest_edge" in size:
            short = int(size["shortest_edge"])
        else:
            short = min(_pair(size))
        return short, short if side is None else side

    def applied(self, protocol: Protocol) -> Protocol:
        """Returns a protocol with these numbers; the crop stays that of the model, and the short side keeps its ratio.

        Files of models at another size are often copies of those of the usual one.
        """
        crop, short_side = protocol.crop, protocol.short_side
        if self.crop is not None and self.short_side is not None:
            short_side = max(crop, round(crop * self.short_side / self.crop))
        return protocol.replace(mean=self.mean, std=self.std, short_side=short_side)


def _three(value: Any) -> tuple[float, float, float]:
    numbers = [float(number) for number in value] if isinstance(value, Sequence) else [float(value)] * 3
    red, green, blue = numbers
    return red, green, blue


# --- types ------------------------------------------------------------------------------------------------------------


def _transformer_options(config: Mapping[str, Any], *, norm_eps: float = 1e-6) -> dict[str, Any]:
    """Returns the options that all of transformers' vision transformers name alike."""
    width = int(config.get("hidden_size", 768))
    _require(config, "layer_norm_eps", (norm_eps,))
    return {
        "in_chans": int(config.get("num_channels", 3)),
        "depth": int(config.get("num_hidden_layers", 12)),
        "embed_dim": width,
        "num_heads": int(config.get("num_attention_heads", 12)),
        "mlp_ratio": int(config.get("intermediate_size", 3072)) / width,
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "drop_rate": float(config.get("hidden_dropout_prob", 0.0)),
        "attn_drop_rate": float(config.get("attention_probs_dropout_prob", 0.0)),
    }


def _patch_size(config: Mapping[str, Any]) -> int:
    height, width = _pair(config.get("patch_size", 16))
    if height != width:
        raise _Unsupported(f"patch_size is {height} x {width}, but stvid's model has square patches")
    return height


def _timesformer(config: Mapping[str, Any]) -> dict[str, Any]:
    _require(config, "hidden_act", ("gelu",))
    _require(config, "attention_type", ("divided_space_time", "joint_space_time", "space_only"))
    return {
        **_transformer_options(config),
        "patch_size": _patch_size(config),
        "attention_type": config.get("attention_type", "divided_space_time"),
        "drop_path_rate": float(config.get("drop_path_rate", 0)),
    }


def _videomae(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads VideoMAE's; only queries and values have a bias, whose key was ``qkv_bias`` before transformers 5."""
    _require(config, "hidden_act", ("gelu",))
    if any(str(name).endswith(_HEAD) for name in config.get("architectures") or (_HEAD,)):
        _require(config, "use_mean_pooling", (True,))
    options = _transformer_options(config, norm_eps=1e-12)
    return {
        **options,
        "patch_size": _patch_size(config),
        "tubelet_size": int(config.get("tubelet_size", 2)),
        "qkv_bias": bool(config.get("qv_bias", options["qkv_bias"])),
    }


def _vjepa2(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads V-JEPA 2's; its probe has the heads and the epsilon of the encoder, and is not named in the config."""
    _require(config, "hidden_act", ("gelu",))
    _require(config, "layer_norm_eps", (1e-6,))
    heads = int(config.get("num_attention_heads", 16))
    return {
        "in_chans": int(config.get("in_chans", 3)),
        "patch_size": _patch_size(config),
        "tubelet_size": int(config.get("tubelet_size", 2)),
        "depth": int(config.get("num_hidden_layers", 24)),
        "embed_dim": int(config.get("hidden_size", 1024)),
        "num_heads": heads,
        "mlp_ratio": float(config.get("mlp_ratio", 4.0)),
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "attn_drop_rate": float(config.get("attention_probs_dropout_prob", 0.0)),
        "drop_path_rate": float(config.get("drop_path_rate", 0.0)),
        "head_depth": 1 + int(config.get("num_pooler_layers", 3)),
        "head_num_heads": heads,
        "head_norm_eps": 1e-6,
    }


def _perceiver(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads Perceiver's, with the defaults of the library; the epsilon of the norms is not read there either."""
    _require(config, "hidden_act", ("gelu",))
    _require(config, "qk_channels", (None,))
    _require(config, "v_channels", (None,))
    _require(config, "cross_attention_shape_for_attention", ("kv",))
    _require(config, "cross_attention_widening_factor", (1,))
    _require(config, "use_query_residual", (True,))
    frames, size = _clip_of(config)
    _require(config, "num_frames", (frames,))
    if any(side != 4 * int(config.get("image_size", 56)) for side in size):
        raise _Unsupported(
            f"image_size is {config.get('image_size', 56)!r}, but stvid's model has a fourth of the sides of "
            "output_shape, the patches"
        )
    return {
        "depth": int(config.get("num_self_attends_per_block", 26)),
        "repeats": int(config.get("num_blocks", 1)),
        "embed_dim": int(config.get("d_latents", 1280)),
        "num_heads": int(config.get("num_self_attention_heads", 8)),
        "mlp_ratio": float(config.get("self_attention_widening_factor", 1)),
        "num_latents": int(config.get("num_latents", 256)),
        "cross_num_heads": int(config.get("num_cross_attention_heads", 8)),
        "label_dim": len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2)),
        "audio_samples_per_frame": int(config.get("audio_samples_per_frame", 1920)),
        "samples_per_patch": int(config.get("samples_per_patch", 16)),
        "query_dim": int(config.get("_label_trainable_num_channels", 1024)),
        "output_dim": int(config.get("output_num_channels", 512)),
        "attn_drop_rate": float(config.get("attention_probs_dropout_prob", 0.1)),
    }


def _vivit(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the paper's model 1; transformers has no other."""
    _require(config, "hidden_act", _TANH_GELU)
    time, height, width = (int(number) for number in config.get("tubelet_size", (2, 16, 16)))
    return {**_transformer_options(config), "tubelet_size": (time, height, width)}


def _xclip(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads X-CLIP's, whose two sides have configs of their own; heads of all but the blocks have 64 channels."""
    video, text = config.get("vision_config") or {}, config.get("text_config") or {}
    width, joint = int(video.get("hidden_size", 768)), int(config.get("projection_dim", 512))
    heads, text_width = int(video.get("num_attention_heads", 12)), int(text.get("hidden_size", 512))
    for part, width_of in ((video, width), (text, text_width)):
        _require(part, "hidden_act", ("quick_gelu",))
        _require(part, "layer_norm_eps", (1e-5,))
        _require(part, "intermediate_size", (4 * width_of,))
    _require(text, "num_attention_heads", (text_width // 64,))
    _require(config, "prompt_hidden_act", ("quick_gelu",))
    _require(config, "prompt_num_attention_heads", (joint // 64,))
    _require(video, "mit_num_attention_heads", (joint // 64,))
    _require(video, "mit_hidden_size", (joint,))
    return {
        "text": True,
        "in_chans": int(video.get("num_channels", 3)),
        "patch_size": _patch_size({"patch_size": 32, **video}),
        "depth": int(video.get("num_hidden_layers", 12)),
        "embed_dim": width,
        "num_heads": None if heads * 64 == width else heads,
        "joint_dim": joint,
        "mix_depth": int(video.get("mit_num_hidden_layers", 1)),
        "drop_path_rate": float(video.get("drop_path_rate", 0.0)),
        "prompt_depth": int(config.get("prompt_layers", 2)),
        "text_depth": int(text.get("num_hidden_layers", 12)),
        "text_dim": text_width,
        "vocab_size": int(text.get("vocab_size", 49408)),
        "context_length": int(text.get("max_position_embeddings", 77)),
    }


_PLAIN = _Type("", "", (), _transformer_options)  # of a type that stvid does not know: nothing is left to be guessed
_HALF = (0.5, 0.5, 0.5)
_TYPES: dict[str, _Type] = {
    "perceiver": _Type(
        "stvid.models.families.perceiver",
        "Perceiver",
        ("perceiver_io_video",),
        _perceiver,
        preprocessor={"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
        head="PerceiverForMultimodalAutoencoding",
        alone=False,
    ),
    "timesformer": _Type(
        "stvid.models.families.timesformer",
        "TimeSformer",
        ("timesformer_base", "timesformer_hr", "timesformer_l"),
        _timesformer,
        preprocessor={"image_mean": _HALF, "image_std": _HALF},  # of the class that its files name, VideoMAE's
    ),
    "videomae": _Type(
        "stvid.models.families.videomae",
        "VideoMAE",
        ("videomae_vit_b", "videomae_vit_s", "videomae_vit_l", "videomae_vit_h"),
        _videomae,
        preprocessor={"image_mean": _HALF, "image_std": _HALF},
    ),
    "vjepa2": _Type(
        "stvid.models.families.vjepa2",
        "VJEPA2",
        ("vjepa2_vit_l", "vjepa2_vit_h", "vjepa2_vit_g"),
        _vjepa2,
        preprocessor={"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    ),
    "vivit": _Type(
        "stvid.models.families.vivit",
        "ViViT",
        ("vivit_b16x2", "vivit_l16x2", "vivit_h16x2"),
        _vivit,
        offset=True,
        preprocessor={"image_mean": _HALF, "image_std": _HALF, "rescale_factor": 1 / 127.5},
    ),
    "xclip": _Type(
        "stvid.models.families.xclip",
        "XCLIP",
        ("xclip_b16", "xclip_b32", "xclip_l14"),
        _xclip,
        preprocessor={"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
        video="vision_config",
    ),
}
