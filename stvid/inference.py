"""`fuse` and `optimize` make a trained model faster for inference; both return a copy and leave the model as it is."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from stvid.errors import ConfigError
from stvid.models.base import FuseReport, Tap, VideoModel
from stvid.models.kernels import channels_last, speed_up
from stvid.models.streaming import StreamState

__all__ = ["FuseReport", "OptimizedModel", "Precision", "fuse", "optimize", "pick_precision"]

Precision = Literal["auto", "float32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_KEPT = 16  # layers that may stay in float32
# Weights up to which the single frames of a stream are faster in float32, even on a CPU with AMX: MoViNet-A0 (2.7
# million) takes a fifth less time than in bf16, A2 (4.8 million) 7% more, A5 (18 million) a quarter more.
SMALL_STREAM = 4.5e6
PLAIN_CONVS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)  # they pad by `padding` alone
_log = logging.getLogger(__name__)


# --- batch norms into convolutions ------------------------------------------------------------------------------------


def fuse(model: VideoModel, *, clip: Tensor | None = None) -> VideoModel:
    """Folds every batch norm that stands beside a convolution into it; the outputs stay the same.

    In evaluation mode a batch norm multiplies each channel by a number and adds another. The convolution before it can
    do both (Jacob et al. 2018, arXiv:1712.05877, section 3.2); so can a convolution without padding that follows it, as
    in UniFormer. The model says which norm stands beside which convolution (`VideoModel.norm_pairs`). Before that it
    makes one layer of several where it can (`VideoModel.merge_branches`), as UniRepLKNet does.

    Args:
        model: Any model of stvid; it is not changed.
        clip: A clip (B, C, T, H, W) to run a network of another library with, which shows where its norms stand. None
            runs it at its own size on torch's meta device, which computes nothing. Native models need neither.

    Returns:
        A copy in evaluation mode for inference: its parameters take no gradient, `train()` is refused, and so is saving
        it (save the original). Its attribute `fused` is the `FuseReport`, which is logged too (level INFO).

    Raises:
        ConfigError: If the model is no model of stvid, or was fused before.
        StvidError: If the model cannot say which norm stands beside which convolution.
    """
    if not isinstance(model, VideoModel):
        raise ConfigError(f"fuse takes a model of stvid, not {type(model).__name__}")
    if model.inference_only:
        raise ConfigError(f"{type(model).__name__} is fused or optimised already: {model.inference_only}")
    result = copy.deepcopy(model).eval().requires_grad_(False)
    merged = result.merge_branches()
    modules = dict(result.named_modules())
    owners = Counter(
        id(weight) for module in modules.values() for weight in module._parameters.values() if weight is not None
    )
    before, after = {}, {}
    for first, second in result.norm_pairs(clip):
        if isinstance(modules[second], _BatchNorm):
            before[second] = first
        else:
            after[first] = second
    fused = dict(merged)
    kept: dict[str, str] = {}
    for name, norm in modules.items():
        if not isinstance(norm, _BatchNorm):
            continue
        reason: str | None = "no convolution stands beside it alone"
        if name in before and (reason := _refusal(modules[before[name]], norm, owners)) is None:
            _fold_back(modules[before[name]], norm)
            fused[name] = before[name]
        elif name in after and _refusal(modules[after[name]], norm, owners, ahead=True) is None:
            _fold_ahead(modules[after[name]], norm)
            fused[name] = after[name]
        else:
            kept[name] = str(reason)
            continue
        _replace(result, norm)
    result.fused = FuseReport(fused, kept)
    result.inference_only = "its batch norms are folded into its convolutions (stvid.fuse)"
    _log.info("%s: %s", type(model).__name__, result.fused)
    return result


@cache
def _known_forwards() -> tuple[frozenset[Callable[..., Any]], frozenset[Callable[..., Any]]]:
    """Returns the forward methods of convolutions that are linear in their weight, and of plain batch norms."""
    from timm.layers import BatchNormAct2d, Conv2dSame

    from stvid.inflation.temporal import TemporalConv

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame, TemporalConv)
    convs = {kind.forward for kind in kinds}
    return frozenset(convs), frozenset({nn.BatchNorm3d.forward, nn.SyncBatchNorm.forward, BatchNormAct2d.forward})


def _refusal(conv: Any, norm: Any, owners: Mapping[int, int], *, ahead: bool = False) -> str | None:
    """Returns why a norm cannot be folded into the convolution before it, or `ahead` of it; None if it can."""
    convs, norms = _known_forwards()
    if ahead and (type(conv).forward not in PLAIN_CONVS or any(conv.padding)):
        return f"{type(conv).__name__} pads its input"
    if ahead and hasattr(norm, "act"):
        return "an activation stands between"
    if type(norm).forward not in norms:
        return f"{type(norm).__name__} is not known to be an affine map"
    if type(conv).forward not in convs or hasattr(conv, "parametrizations"):
        return f"{type(conv).__name__} is not known to be linear in its weight"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if any(owners[id(weight)] > 1 for weight in (conv.weight, conv.bias) if weight is not None):
        return "the convolution's weights are used elsewhere too"
    return None


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Returns the factor and the summand that a norm has for each channel, in float64."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _fold_back(conv: Any, norm: Any) -> None:
    """Changes a convolution so that it does what the norm after it does to its output."""
    scale, shift = _affine(norm)
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    _set_weights(conv, conv.weight.double() * scale.view(-1, *[1] * (conv.weight.dim() - 1)), shift)


def _fold_ahead(conv: Any, norm: Any) -> None:
    """Changes a convolution without padding so that it does what the norm before it does to its input."""
    scale, shift = (
        part.view(conv.groups, 1, -1).expand(-1, conv.out_channels // conv.groups, -1).flatten(0, 1)
        for part in _affine(norm)
    )  # (out_channels, in_channels / groups): what each output sees
    weight = conv.weight.double()
    bias = (weight.flatten(2).sum(2) * shift).sum(1)
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    _set_weights(conv, weight * scale.view(*scale.shape, *[1] * (weight.dim() - 2)), bias)


def _set_weights(conv: Any, weight: Tensor, bias: Tensor) -> None:
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _replace(model: nn.Module, norm: Any) -> None:
    """Puts the norm's own activation in its place, or an identity if it has none."""
    parts = [norm.drop, norm.act] if hasattr(norm, "act") else []  # timm's BatchNormAct2d
    rest = (nn.Sequential(*parts) if parts else nn.Identity()).eval()
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is norm:
                setattr(parent, name, rest)


# --- the settings of a device -----------------------------------------------------------------------------------------


class OptimizedModel(VideoModel):
    """A model with the settings that `optimize` chose; takes and returns float32 tensors like the original.

    It is for inference: `train()` and saving are refused.

    Attributes:
        model: The changed copy.
        precision: ``float32``, ``bf16`` or ``fp16``: what `model` computes in.
        notes: The settings that were made, one line each.
        input_dtype: The type that clips should have; `stvid.evaluate` and `stvid.predict` ask for it.
    """

    input_dtype = torch.float32

    def __init__(self, model: VideoModel, precision: str, notes: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.notes = tuple(notes)
        self.num_classes = model.num_classes
        self.num_features = model.num_features
        self.gives_maps = model.gives_maps
        self.names_attention = model.names_attention
        self.takes_mask = model.takes_mask
        self.streams = model.streams
        self.joins_clips = model.joins_clips
        self.num_prefix_tokens = model.num_prefix_tokens
        self.feature_info = model.feature_info
        self.in_chans = model.in_chans
        self.default_protocol = model.default_protocol
        self.task = model.task
        self.recipe = dict(model.recipe)
        self.fused = model.fused
        self.reference = _reference_weight(model)
        self.eval()
        self.inference_only = "it is optimised for one device (stvid.optimize)"

    def forward(self, clip: Tensor) -> Tensor:
        """Returns logits (B, num_classes), float32."""
        return self.model(self._prepare(clip)).float()

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Computes the features, float32; never compiled."""
        return self.model.encode(self._prepare(clip), lambda index, x: tap(index, x)).float()

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Computes the features of some tokens alone, float32."""
        return self.model.encode_visible(self._prepare(clip), visible).float()

    def step(self, frames: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Goes on with a stream; never compiled. The state is that of the model inside."""
        logits, state = self.model.step(self._prepare(frames), state)
        return logits.float(), state

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Returns the logits of features, or the input of the classifier, in float32."""
        return self.model.forward_head(self._prepare(features), pre_logits=pre_logits).float()

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map, float32."""
        return self.model.to_map(x, place, clip_size).float()

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features."""
        return self.model.token_grid(clip_shape)

    def _prepare(self, clip: Tensor) -> Tensor:
        return clip.to(self.model.get_parameter(self.reference).dtype)  # not `precision`: export computes in float32

    @property
    def head_features(self) -> int:
        """Channels that the classifier sees."""
        return self.model.head_features

    def get_classifier(self) -> nn.Module:
        """Returns the layer that makes the logits."""
        return self.model.get_classifier()

    def stages(self) -> dict[str, nn.Module]:
        """Returns the stages of the model inside."""
        return self.model.stages()

    def extra_repr(self) -> str:
        """Returns the notes, which are shown when the model is printed."""
        return "; ".join(self.notes)


def pick_precision(device: torch.device) -> tuple[str, str]:
    """Returns the fastest precision that a device has instructions for, and the reason in words.

    That is bf16 on CPUs with AMX or AVX512-BF16 and on CUDA devices from Ampere on, fp16 on older CUDA devices, and
    float32 elsewhere. CPUs without such instructions emulate bf16, which is slower than float32.
    """
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "the GPU has bf16 units"
        return "fp16", "the GPU has no bf16 units"
    if device.type == "cpu":
        probes = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
        for name, probe in probes.items():  # private functions of torch.cpu, which torch 2.6 has already
            if torch.backends.mkldnn.is_available() and getattr(torch.cpu, probe, bool)():
                return "bf16", f"the CPU has {name}"
        return "float32", "this CPU has neither AMX nor AVX512-BF16: low precision would be slower"
    return "float32", f"low precision is not tried on {device.type} devices"


def optimize(
    model: VideoModel,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    fuse_norms: bool = True,
    compile: bool = False,
) -> OptimizedModel:
    """Returns a copy of a model with the settings that make inference fast on a device.

    Batch norms are folded into convolutions (`fuse`), the weights of convolutions are stored in channels_last, and all
    weights in the precision that the device is fastest in. The result takes and returns float32 clips and logits, and
    works where the model did: `stvid.evaluate`, `stvid.predict`, `stvid.export_model`.

    Weights are cast once, while autocast would cast them in every forward pass. So do not give `stvid.evaluate` a
    ``precision`` as well.

    On Linux, page faults for large activations may take much of the time that a CNN still needs on the CPU. torch
    avoids most of them if the process starts with ``THP_MEM_ALLOC_ENABLE=1``; run tools/benchmark_models.py with and
    without it to see the difference on your machine.

    Args:
        model: Any model of stvid; it is not changed.
        device: Where the copy goes; None leaves it where the model is.
        precision: ``auto`` asks the device, see `pick_precision`, and is float32 for small streams on CPUs; float32
            changes the logits by rounding alone, bf16 and fp16 by about one part in a hundred of their spread.
        fuse_norms: Whether to `fuse`.
        compile: Whether to use torch.compile, too: the first clip of each shape takes minutes, later ones less time.

    Returns:
        The model; its `notes`, which are logged too (level INFO), name the settings that were made.

    Raises:
        ConfigError: If the model is no model of stvid, was optimised before, or the precision or device is unknown.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: {precision!r} is not one of {', '.join(get_args(Precision))}")
    if isinstance(model, OptimizedModel):
        raise ConfigError(f"{type(model.model).__name__} is optimised already: {model.extra_repr()}")
    if not isinstance(model, VideoModel):
        raise ConfigError(f"optimize takes a model of stvid, not {type(model).__name__}")
    notes = []
    if fuse_norms and model.fused is None:
        result = fuse(model)
    else:
        result = copy.deepcopy(model).eval().requires_grad_(False)
    if result.fused is not None and (result.fused.fused or result.fused.kept):
        notes.append(str(result.fused))
    try:
        target = next(result.parameters()).device if device is None else torch.device(device)
        chosen, reason = pick_precision(target) if precision == "auto" else (str(precision), "as asked for")
        prepares = target.type == "cpu" and not compile and torch.backends.mkldnn.is_available() and chosen != "fp16"
        steps = result.speed_up_steps() if prepares else ""
        if steps and precision == "auto" and sum(weight.numel() for weight in result.parameters()) < SMALL_STREAM:
            chosen, reason = "float32", "single frames are too little work for low precision to pay"
        result = result.to(target)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise ConfigError(f"device {str(device)!r}: {str(error).splitlines()[0]}") from error
    result, chosen, kept = _cast(result, chosen)
    notes += [f"{chosen} on {target} ({reason})", *kept]
    if not _likes_channels_last(result):
        notes.append("convolutions in torch's usual format, which the network needs")
    elif target.type == "cuda" and any(_is_depthwise(module) for module in result.modules()):
        notes.append("convolutions in the default format (in channels_last_3d cuDNN takes the depthwise ones)")
    else:
        channels_last(result)
        notes.append("convolutions in channels_last")
    if prepares:
        notes += [*speed_up(result), *([steps] if steps else [])]
    if compile:
        result.compile()
        notes.append("compiled")
    for note in notes:
        _log.info("%s: %s", type(model).__name__, note)
    return OptimizedModel(result, chosen, notes)


# --- networks of other people in low precision ------------------------------------------------------------------------


def _cast(model: VideoModel, precision: str) -> tuple[VideoModel, str, list[str]]:
    """Casts the weights of a model; returns the model, its precision, and a note for each layer that stays in float32.

    Native models compute in the type of their weights. An inflated network may make float32 tensors itself, or have a
    layer without a kernel for the type. So one clip is run: a layer that fails stays in float32, and if the network
    itself fails, all of it does.
    """
    from stvid.inflation.model import InflatedModel

    dtype = DTYPES[precision]
    if not isinstance(model, InflatedModel) or dtype == torch.float32:
        return _with_weights(model, dtype), precision, []
    result = _with_weights(copy.deepcopy(model), dtype)
    notes: list[str] = []
    for _ in range(MOST_KEPT):
        failed, problem = _first_failure(result, dtype)
        if not problem:
            return result, precision, notes
        if not failed:
            return model, "float32", [f"not {precision}: the network does not run in it ({problem})"]
        module = result.get_submodule(failed)
        _with_weights(module, torch.float32, of=model.get_submodule(failed))
        module.register_forward_pre_hook(_Widened(torch.float32), with_kwargs=True)
        module.register_forward_hook(_Narrowed(dtype))
        notes.append(f"{failed} stays in float32 ({problem})")
    return model, "float32", [f"not {precision}: more than {MOST_KEPT} layers do not run in it"]


def _with_weights(module: Any, dtype: torch.dtype, *, of: nn.Module | None = None) -> Any:
    """Casts real weights, and leaves complex ones, which `torch.nn.Module.to` would make real; `of` gives them back."""
    if of is not None:
        own: list[Tensor] = [*module.parameters(), *module.buffers()]
        for tensor, other in zip(own, [*of.parameters(), *of.buffers()], strict=True):
            tensor.data = other.data.clone()
        return module
    return module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _first_failure(model: Any, dtype: torch.dtype) -> tuple[str, str]:
    """Runs a clip; returns the innermost module within the network that fails, and why; empty if none does."""
    running: list[str] = []
    handles = []
    for name, module in model.network.named_modules(prefix="network"):
        push = module.register_forward_pre_hook(lambda _, inputs, name=name: running.append(name), prepend=True)
        pop = module.register_forward_hook(lambda _, inputs, output: running.pop() and None)
        handles += [push, pop]
    weight = next(model.parameters())
    clip = torch.randn(
        1, model.in_chans, 2, *model.img_size, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    try:
        with torch.no_grad():
            logits = model(clip.to(weight.device, dtype))
    except Exception as error:  # whatever a network's own code raises
        inner = running[-1] if running and running[-1] != "network" else ""
        if inner and any(isinstance(h, _Widened) for h in model.get_submodule(inner)._forward_pre_hooks.values()):
            inner = ""
        return inner, " ".join(str(error).split())[:120]
    finally:
        for handle in handles:
            handle.remove()
    return ("", "") if logits.isfinite().all() else ("", "its logits are not finite")


class _Widened:
    """A hook that gives a layer its tensors in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, layer: nn.Module, inputs: Any, keywords: Any) -> Any:
        return tree_map(self._cast, inputs), tree_map(self._cast, keywords)

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class _Narrowed(_Widened):
    """A hook that gives the output of a layer in another type."""

    def __call__(self, layer: nn.Module, inputs: Any, output: Any) -> Any:
        return tree_map(self._cast, output)


def _reference_weight(model: VideoModel) -> str:
    """Returns the name of the first weight that has the type in which a model computes."""
    kept = [
        f"{name}."
        for name, module in model.named_modules()
        if any(isinstance(hook, _Widened) for hook in module._forward_pre_hooks.values())
    ]
    real = [name for name, value in model.named_parameters() if value.is_floating_point()]
    return next((name for name in real if not name.startswith(tuple(kept))), real[0])


def _likes_channels_last(model: VideoModel) -> bool:
    """Returns whether a model runs in channels_last; networks that use `Tensor.view` may not."""
    from stvid.inflation.model import InflatedModel

    return not isinstance(model, InflatedModel) or model.time.channels_last


def _is_depthwise(module: nn.Module) -> bool:
    from stvid.inflation.temporal import TemporalConv

    return isinstance(module, nn.Conv3d | TemporalConv) and 1 < module.groups == module.in_channels
