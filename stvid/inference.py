"""`fuse` and `optimize` make a trained model faster for inference; both return a copy and leave the model as it is."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stvid.errors import ConfigError, StvidError
from stvid.models.base import VideoModel
from stvid.models.kernels import Conv3d, channels_last

__all__ = ["FuseReport", "OptimizedModel", "Precision", "fuse", "optimize", "pick_precision"]

Precision = Literal["auto", "float32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PLAIN_CONVS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, Conv3d.forward)  # they pad by `padding` alone
_log = logging.getLogger(__name__)


# --- batch norms into convolutions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` did.

    Attributes:
        fused: Name of each norm that is gone, with the name of the convolution that does its work.
        kept: Name of each batch norm that stays, with the reason.
    """

    fused: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{len(self.fused)} of {len(self.fused) + len(self.kept)} batch norms folded into their convolutions"
        reasons = dict.fromkeys(self.kept.values())
        for reason in reasons:
            names = [name for name, why in self.kept.items() if why == reason]
            text += f"; {len(names)} kept, {reason} ({names[0]}{', ...' if len(names) > 1 else ''})"
        return text


def fuse(model: VideoModel, *, clip: Tensor | None = None) -> VideoModel:
    """Folds every batch norm that stands beside a convolution into it; the outputs stay the same.

    In evaluation mode a batch norm is one factor and one summand a channel, which the convolution before it can apply
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2), or else one without padding after it (as in UniFormer). Which
    norm stands beside which convolution is found by following the tensors through one forward pass. A norm is folded
    only if nothing else sees the tensor between the two, and if both run once.

    Args:
        model: Any model of stvid; it is not changed.
        clip: The pass is made with this clip (B, C, T, H, W). None makes it with the model's own size and without
            computing (on torch's meta device).

    Returns:
        A copy in evaluation mode for inference: its parameters take no gradient, `train()` is refused, and so is saving
        it (save the original). Its attribute `fused` is the `FuseReport`, which is logged too (level INFO).

    Raises:
        ConfigError: If the model is no model of stvid, or was fused before.
        StvidError: If the forward pass fails.
    """
    if not isinstance(model, VideoModel):
        raise ConfigError(f"fuse takes a model of stvid, not {type(model).__name__}")
    if model.inference_only:
        raise ConfigError(f"{type(model).__name__} is fused or optimised already: {model.inference_only}")
    result = copy.deepcopy(model).eval().requires_grad_(False)
    names = {module: name for name, module in result.named_modules()}
    owners = Counter(id(weight) for module in names for weight in module._parameters.values() if weight is not None)
    before, after = _follow(result, clip)
    fused: dict[str, str] = {}
    kept: dict[str, str] = {}
    for norm in [module for module in names if isinstance(module, _BatchNorm)]:
        conv = before.get(norm, "it does not run")
        reason = conv if isinstance(conv, str) else _refusal(conv, norm, owners)
        if not isinstance(conv, str) and reason is None:
            _fold_back(conv, norm)
        elif norm in after and _refusal(after[norm], norm, owners, ahead=True) is None:
            conv = after[norm]
            _fold_ahead(conv, norm)
        else:
            kept[names[norm]] = str(reason)
            continue
        _replace(result, norm)
        fused[names[norm]] = names[conv]
    if fused:
        _run(result, clip)  # fails if the model's own code looks into a norm
    result.fused = FuseReport(fused, kept)
    result.inference_only = "its batch norms are folded into its convolutions (stvid.fuse)"
    _log.info("%s: %s", type(model).__name__, result.fused)
    return result


class _Consumers(TorchDispatchMode):
    """Counts, for the watched tensors, the operations that take them; those within a norm apart."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # kept alive, so that no other tensor gets the same id
        self.uses: dict[int, int] = {}
        self.norm: nn.Module | None = None

    def watch(self, tensor: Tensor) -> None:
        """Starts counting the uses of a tensor."""
        self.watched[id(tensor)] = tensor
        self.uses[id(tensor)] = 0

    def use(self, value: Any) -> None:
        """Counts a use of every watched tensor in nested lists of arguments."""
        for leaf in tree_leaves(value):
            if id(leaf) in self.watched:
                self.uses[id(leaf)] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.norm is None:
            self.use((args, kwargs))
        return func(*args, **(kwargs or {}))


def _follow(
    model: VideoModel, clip: Tensor | None
) -> tuple[dict[nn.Module, nn.Module | str], dict[nn.Module, nn.Module]]:
    """Runs the model once.

    Returns:
        For each batch norm the convolution whose output it alone takes, or a reason; and for those that have one, the
        convolution that alone takes the norm's output.
    """
    consumers = _Consumers()
    makers: dict[int, nn.Module] = {}
    runs: dict[nn.Module, int] = {}
    inputs: dict[nn.Module, Tensor | None] = {}  # of each norm and convolution, if one of them made it

    def before_any(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        runs[module] = runs.get(module, 0) + 1
        inputs[module] = consumers.watched.get(id(arguments[0]))

    def after_conv(conv: nn.Module, _: Any, output: Any) -> None:
        makers[id(output)] = conv
        consumers.watch(output)

    def before_norm(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        before_any(norm, arguments)
        consumers.use(arguments[0])
        consumers.norm = norm

    def after_norm(norm: nn.Module, _: Any, output: Any) -> None:
        consumers.norm = None
        makers[id(output)] = norm
        consumers.watch(output)

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            handles.append(module.register_forward_pre_hook(before_any))
            # Before hooks of others, which may replace the output.
            handles.append(module.register_forward_hook(after_conv, prepend=True))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(before_norm))
            handles.append(module.register_forward_hook(after_norm, prepend=True))
    try:
        with consumers:
            consumers.use(_run(model, clip))
    finally:
        for handle in handles:
            handle.remove()
    before: dict[nn.Module, nn.Module | str] = {}
    after: dict[nn.Module, nn.Module] = {}
    for module, tensor in inputs.items():
        maker = None if tensor is None else makers[id(tensor)]
        alone = maker is not None and runs[module] == runs[maker] == 1 and consumers.uses[id(tensor)] == 1
        if not isinstance(module, _BatchNorm):
            if alone and isinstance(maker, _BatchNorm):
                after[maker] = module
        elif maker is None or isinstance(maker, _BatchNorm):
            before[module] = "its input is not a convolution's output"
        elif alone:
            before[module] = maker
        elif runs[module] > 1 or runs[maker] > 1:
            before[module] = "it or its convolution runs more than once"
        else:
            before[module] = "the convolution's output is used elsewhere too"
    return before, after


def _run(model: VideoModel, clip: Tensor | None) -> Any:
    """Returns the model's output for the clip, or for one of its own size on the meta device."""
    try:
        with torch.no_grad():
            if clip is not None:
                return model(clip)
            shape = (2, getattr(model, "in_chans", 3), model.recipe["num_frames"], *model.recipe["img_size"])
            dtype = next(value.dtype for value in model.parameters() if value.is_floating_point())
            state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            weights = {name: value.to("meta") for name, value in state.items()}
            return torch.func.functional_call(model, weights, torch.empty(shape, dtype=dtype, device="meta"))
    except Exception as error:  # whatever a model's own code raises
        raise StvidError(f"{type(model).__name__} cannot be followed: {' '.join(str(error).split())[:200]}") from error


@cache
def _known_forwards() -> tuple[frozenset[Callable[..., Any]], frozenset[Callable[..., Any]]]:
    """Returns the forward methods of convolutions that are linear in their weight, and of plain batch norms."""
    from timm.layers import BatchNormAct2d, Conv2dSame

    from stvid.inflation.temporal import TemporalConv

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv3d, Conv2dSame, TemporalConv)
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
    """Puts what is left of a norm, its activation if it has one, in its place."""
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
        notes: What was done, one line each.
        input_dtype: What clips should come in; `stvid.evaluate` and `stvid.predict` ask for it.
    """

    input_dtype = torch.float32

    def __init__(self, model: VideoModel, precision: str, notes: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.notes = tuple(notes)
        self.num_classes = model.num_classes
        self.num_features = model.num_features
        self.in_chans = getattr(model, "in_chans", 3)
        self.default_protocol = model.default_protocol
        self.task = model.task
        self.recipe = dict(model.recipe)
        self.fused = model.fused
        self.eval()
        self.inference_only = "it is optimised for one device (stvid.optimize)"

    def forward(self, clip: Tensor) -> Tensor:
        """Returns logits (B, num_classes), float32."""
        return self.model(self._prepare(clip)).float()

    def forward_features(self, clip: Tensor) -> Tensor:
        """Returns the features before pooling, float32; never compiled."""
        return self.model.forward_features(self._prepare(clip)).float()

    def _prepare(self, clip: Tensor) -> Tensor:
        return clip.to(next(self.model.parameters()).dtype)  # not `precision`: export computes in float32

    def get_classifier(self) -> nn.Module:
        """Returns the layer that makes the logits."""
        return self.model.get_classifier()

    def extra_repr(self) -> str:
        """Returns what was done."""
        return "; ".join(self.notes)


def pick_precision(device: torch.device) -> tuple[str, str]:
    """Returns the fastest precision that a device computes in by itself, and the reason in words.

    bf16 where CPUs have instructions for it (AMX or AVX512-BF16) and on CUDA devices from Ampere on, fp16 on older CUDA
    devices, else float32. CPUs without such instructions emulate bf16, which is slower than float32.
    """
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "the GPU has bf16 units"
        return "fp16", "the GPU has no bf16 units"
    if device.type == "cpu":
        probes = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
        for name, probe in probes.items():  # of torch.cpu; torch 2.6 has both
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

    Weights are cast once, while autocast would cast them in every forward pass: give no ``precision`` to
    `stvid.evaluate` besides.

    On Linux, much of what is left of a CNN's time on the CPU may be page faults of its large activations. torch avoids
    most of them if the process starts with ``THP_MEM_ALLOC_ENABLE=1``; tools/benchmark_models.py with and without shows
    by how much here.

    Args:
        model: Any model of stvid; it is not changed.
        device: Where the copy goes; None leaves it where the model is.
        precision: ``auto`` asks the device, see `pick_precision`; float32 changes the logits by rounding alone, bf16
            and fp16 by about one part in a hundred of their spread.
        fuse_norms: Whether to `fuse`.
        compile: Whether to use torch.compile besides: minutes at the first clip of each shape, for some gain after.

    Returns:
        The model; its `notes`, which are logged too (level INFO), say what was done.

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
        result = result.to(target, DTYPES[chosen])
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise ConfigError(f"device {str(device)!r}: {str(error).splitlines()[0]}") from error
    notes.append(f"{chosen} on {target} ({reason})")
    if target.type == "cuda" and any(_is_depthwise(module) for module in result.modules()):
        notes.append("convolutions in the default format (in channels_last_3d cuDNN takes the depthwise ones)")
    else:
        channels_last(result)
        notes.append("convolutions in channels_last")
    if target.type == "cpu" and not compile and torch.backends.mkldnn.is_available() and chosen != "fp16":
        packed = [module for module in result.modules() if type(module) is Conv3d]
        for module in packed:
            module.pack()
        notes += [f"weights of {len(packed)} convolutions packed for oneDNN"] if packed else []
    if compile:
        result.compile()
        notes.append("compiled")
    for note in notes:
        _log.info("%s: %s", type(model).__name__, note)
    return OptimizedModel(result, chosen, notes)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv3d) and 1 < module.groups == module.in_channels
