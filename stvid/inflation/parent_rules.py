"""Which tensor of a 2D parent goes where in each hand-written family, and what cannot be equal.

Each family has a function that fills a `Transfer`: first what needs a rule of its own, then all the rest by name.
Convolutions in space become convolutions in space and time by the central frame, or by equal shares of all frames
(Carreira and Zisserman 2017, arXiv:1705.07750, section 2.3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stvid.errors import CheckpointError
from stvid.inflation.image_networks import Kind
from stvid.inflation.transfer import Transfer
from stvid.models.base import VideoModel
from stvid.models.blocks import resize_grid
from stvid.models.families.i3d import ConvNorm, InceptionVideo
from stvid.models.families.i3d_resnet import InflatedResNet
from stvid.models.families.resnet3d import ResNet3d
from stvid.models.families.timesformer import TimeSformer
from stvid.models.families.uniformer import UniFormer
from stvid.models.families.video_resnet import VideoResNet
from stvid.models.families.video_swin import VideoSwin
from stvid.models.families.vivit import ViViT, tubelet_weight
from stvid.models.families.xvit import XViT

__all__ = ["PARENT_OF", "fill"]

# The kind of 2D network that the models of each file of stvid/models descend from.
PARENT_OF: dict[str, Kind] = {
    "i3d": "inception",
    "i3d_resnet": "resnet",
    "resnet3d": "resnet",
    "timesformer": "vit",
    "uniformer": "uniformer",
    "video_resnet": "resnet",
    "video_swin": "swin",
    "vivit": "vit",
    "xvit": "vit",
}
SHIFT = 10.0  # standard deviations by which a channel is lifted over a ReLU


def fill(transfer: Transfer) -> None:
    """Books all tensors, by the rules of the model's family, and loads them.

    Raises:
        CheckpointError: As `Transfer.finish`.
    """
    if transfer.network.kind == "resnet":
        blocks = {True: "bottlenecks", False: "basic blocks"}
        states = (transfer.network.state, transfer.model.state_dict())
        found, own = (any(key.startswith("layer1.0.conv3.") for key in state) for state in states)
        if found != own:
            raise CheckpointError(f"the model has {blocks[own]}")
    depth, own_depth = transfer.network.depth, _depth(transfer.model)
    if depth != own_depth:
        depth_argument, own_depth_argument = (value[0] if len(value) == 1 else value for value in (depth, own_depth))
        raise CheckpointError(f"the model has depth {own_depth_argument}; give depth={depth_argument}")
    for family, rules in _RULES.items():
        if isinstance(transfer.model, family):
            rules(transfer)
            transfer.finish()
            return
    raise AssertionError(f"no rules for {type(transfer.model).__name__}")


def _depth(model: VideoModel) -> tuple[int, ...]:
    """Returns the blocks of each stage, as `ImageNetwork.depth` counts them."""
    stages: list[Any] = [
        module
        for name, module in model.named_modules()
        if re.fullmatch(r"layer[1-4]|mixed[3-5]|blocks[1-4]?|layers\.\d\.blocks|encoder\.blocks", name)
    ]
    return tuple(len(blocks) for blocks in stages)


def _renamer(*rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> Callable[[str], str]:
    def rename(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    return rename


# --- convolutional networks -------------------------------------------------------------------------------------------


def _fill_inflated_resnet(transfer: Transfer) -> None:
    """C2D, Slow, I3D, Non-local I3D."""
    for key in transfer.model.state_dict():
        if ".nonlocal_block." in key:
            transfer.keep(key, "a non-local block, which is the identity as long as its norm's weight is zero")
    transfer.take_rest(
        _renamer((r"^stem\.0\.", "conv1."), (r"^stem\.1\.", "bn1."), (r"\.norm(\d)\.", r".bn\1."), (r"^head\.", "fc."))
    )


def _fill_resnet3d(transfer: Transfer) -> None:
    """3D ResNet and ResNeXt (Hara)."""
    model = transfer.model
    assert isinstance(model, ResNet3d)
    if model.shortcut_type == "A":
        for source in transfer.network.state:
            if ".downsample." in source:
                transfer.drop(source, "shortcuts of type A have no weights")
        transfer.note("shortcuts of type A pad with zeros where the parent's have a convolution")
    if isinstance(model.pool, nn.Identity):
        transfer.note("the model has no max pool after the stem, its parent has one")
    transfer.take_rest(_renamer((r"^head\.", "fc.")))


def _fill_video_resnet(transfer: Transfer) -> None:
    """R3D, MC3, R(2+1)D, CSN: where one convolution became several, they are made to compute the one."""
    model = transfer.model
    assert isinstance(model, VideoResNet)
    model.adopt_format("image", {"norm_eps": transfer.network.norm_eps})
    if not any(isinstance(layer, nn.MaxPool3d) for layer in model.stem):
        transfer.note("the model has no max pool after the stem (stem_pool=True adds it), its parent has one")
    if len(model.stem) > 4:
        _split_time(transfer, ("stem.0", "stem.1", "stem.3"), "conv1", "stem.4", "bn1")
    shortcut: Any = model.layer1[0].downsample
    if not isinstance(shortcut, nn.Identity) and shortcut[0].stride[1] > 1:
        transfer.note("stage 1 halves space by a stride, where the parent has the max pool")
    for name, _ in model.named_modules():
        if not re.fullmatch(r"layer\d\.\d+", name):
            continue
        for number in (1, 2):
            key, norm = f"{name}.conv{number}", f"{name}.bn{number}"
            layer: Any = model.get_submodule(f"{key}.0")
            if f"{key}.weight" not in transfer.network.state:
                continue  # `take_rest` says so
            steps = len(layer) if isinstance(layer, nn.Sequential) else 1
            if steps == 3:
                _split_channels(transfer, (f"{key}.0.0", f"{key}.0.1", f"{key}.0.2"), key, f"{name}.bn1")
            elif steps == 4 and layer[0].kernel_size[0] == 1:
                parts = (f"{key}.0.0", f"{key}.0.1", f"{key}.0.3")
                _split_time(transfer, parts, key, f"{key}.1", norm)
            elif steps == 4:
                _pass_time(transfer, f"{key}.0.0", f"{key}.0.1", f"{name}.bn1")
                transfer.take(f"{key}.0.3.weight", f"{key}.weight")
            elif layer.groups > 1:
                _new_depthwise(transfer, key, norm)
    transfer.take_rest(
        _renamer(
            (r"^stem\.0\.", "conv1."),
            (r"^stem\.[14]\.", "bn1."),
            (r"\.conv(\d)\.0\.", r".conv\1."),
            (r"\.conv(\d)\.1\.", r".bn\1."),
            (r"^head\.", "fc."),
        )
    )


def _split_time(transfer: Transfer, keys: tuple[str, str, str], source: str, after: str, norm: str) -> None:
    """Makes 1xkxk, norm, ReLU, 3x1x1 compute the parent's kxk convolution in each frame.

    With at least twice as many channels between as behind, each response passes the ReLU as its positive and its
    negative part, whatever the input. Channels for which there are no two are lifted instead, so far that only a
    response `SHIFT` standard deviations below its mean (both are the parent's norm's) is cut. With fewer channels
    between than behind, the convolution is projected onto its first singular vectors. The norm between passes its
    input, with the statistics that follow from the parent's norm, so that training starts from the same function.

    Args:
        transfer: The books.
        keys: The convolution in space, the norm and the convolution in time.
        source: The parent's convolution.
        after: The norm behind, which takes the lift off.
        norm: The parent's norm.
    """
    space, between, time = keys
    state, own = transfer.network.state, transfer.model.state_dict()
    outside = own[f"{time}.weight"].shape[0]
    transfer.check_kernel(space, [outside, *own[f"{space}.weight"].select(2, 0).shape[1:]], f"{source}.weight")
    weight = state[f"{source}.weight"].double()
    mean, variance = state[f"{norm}.running_mean"].double(), state[f"{norm}.running_var"].double()
    count, middle = weight.shape[0], own[f"{space}.weight"].shape[0]
    unit = torch.eye(count, dtype=weight.dtype, device=weight.device)
    pairs = max(0, min(count, middle - count))
    if middle >= count:
        rows = torch.cat((unit, -unit[:pairs]))
        how = f"each of {pairs} channels and its negative" + (f", the other {count - pairs} lifted" * (pairs < count))
    else:
        left, values, _ = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        rows = left[:, :middle].t()
        share = _percent(values[:middle].square().sum() / values.square().sum())
        how = f"projected onto {middle} singular vectors, {share} of its energy"
        transfer.note(f"{space} has {middle} channels, the parent's convolution {count}")
    used = len(rows)
    lifted = torch.ones(used, dtype=torch.bool, device=weight.device)
    lifted[:pairs] = False
    lifted[count:] = False
    if pairs < count:
        transfer.note(
            f"some channels are lifted over a ReLU, which cuts what is {SHIFT:g} standard deviations below the mean"
        )
    row_mean, row_variance = rows @ mean, rows.square() @ variance
    lift = SHIFT * (rows.abs() @ variance.sqrt()) - row_mean

    def partly(key: str, values: Tensor, rule: str, *sources: str) -> None:
        tensor = own[key].to(values.dtype, copy=True)
        tensor[:used] = values
        rest = f"; {middle - used} more as built, which nothing sees yet" if used < middle else ""
        transfer.put(key, tensor, rule + rest, *sources)

    partly(f"{space}.weight", torch.einsum("ro,oihw->rihw", rows, weight).unsqueeze(2), how, f"{source}.weight")
    eps = getattr(transfer.model.get_submodule(between), "eps", 0.0)
    rule = "passes its input, by the statistics of the parent's norm"
    partly(f"{between}.weight", (row_variance + eps).sqrt(), rule, f"{norm}.running_var")
    partly(f"{between}.bias", row_mean + lifted * lift, rule, f"{norm}.running_mean")
    partly(f"{between}.running_mean", row_mean, rule, f"{norm}.running_mean")
    partly(f"{between}.running_var", row_variance, rule, f"{norm}.running_var")
    transfer.keep(f"{between}.num_batches_tracked", "a count of batches")
    kernel = torch.zeros_like(own[f"{time}.weight"], dtype=weight.dtype)
    kernel[:, :used, kernel.shape[2] // 2, 0, 0] = rows.t()
    transfer.put(f"{time}.weight", kernel, "initialised: adds the channels up again, in the central frame")
    offset = rows.t() @ (lifted * lift)
    rule = "copied" if pairs == count else "copied, plus the lift"
    transfer.put(f"{after}.running_mean", mean + offset, rule, f"{norm}.running_mean")


def _split_channels(transfer: Transfer, keys: tuple[str, str, str], source: str, norm: str) -> None:
    """Makes 1x1x1, norm, depth-wise 3x3x3 the best approximation of the parent's 3x3: rank one for each channel."""
    mixing, between, depthwise = keys
    own = transfer.model.state_dict()
    shape = [*own[f"{mixing}.weight"].shape[:2], *own[f"{depthwise}.weight"].shape[3:]]
    transfer.check_kernel(mixing, shape, f"{source}.weight")
    weight = transfer.network.state[f"{source}.weight"].double()
    flat = weight.flatten(2)
    values, vectors = torch.linalg.eigh(flat.transpose(1, 2) @ flat)  # of each channel, ascending
    space = vectors[:, :, -1]
    mix = (flat @ space.unsqueeze(2)).squeeze(2)
    size = mix.norm(dim=1, keepdim=True).sqrt()
    mix = mix / size.clamp_min(1e-12)
    share = _percent(values[:, -1].sum() / values.sum())
    transfer.note("dense 3x3 kernels became 1x1 and depth-wise ones, which hold a part of them")
    rule = f"the mixing part of its kernels (both parts hold {share} of their energy)"
    transfer.put(f"{mixing}.weight", mix[:, :, None, None, None], rule, f"{source}.weight")
    kernel = (space * size).view(len(weight), 1, *weight.shape[2:])
    frames = own[f"{depthwise}.weight"].shape[2]
    init: Any = "central_frame"
    rule = f"the spatial part of its kernels, in the central one of {frames} frames"
    if transfer.init == "average":
        init = "average"
        rule = f"the spatial part of its kernels, repeated {frames} times in time, divided by {frames}"
        transfer.note_borders(f"{depthwise}.weight")
    transfer.put(f"{depthwise}.weight", tubelet_weight(kernel, frames, init=init), rule, f"{source}.weight")
    mean, variance = _moments_after_relu(transfer, norm)
    _pass_norm(transfer, between, mix @ mean, mix.square() @ variance)


def _new_depthwise(transfer: Transfer, key: str, norm: str) -> None:
    """Leaves a depth-wise convolution, which no part of the parent's dense one fits, and its norm as built."""
    transfer.note("the depth-wise convolutions are new: nothing of the parent's dense ones has their shape")
    transfer.keep(f"{key}.0.weight", "a depth-wise kernel, where the parent's is dense")
    transfer.drop(f"{key}.weight", "dense, where the model's kernel is depth-wise")
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        transfer.keep(f"{key}.1.{part}", "the norm of a new convolution")
        if f"{norm}.{part}" in transfer.network.state:
            transfer.drop(f"{norm}.{part}", "the norm of a convolution that is dropped")


def _pass_time(transfer: Transfer, conv: str, between: str, norm: str) -> None:
    """Makes a convolution in time, norm and ReLU pass their input, which comes out of the ReLU behind `norm`."""
    kernel = torch.zeros_like(transfer.model.state_dict()[f"{conv}.weight"])
    kernel[:, :, kernel.shape[2] // 2, 0, 0] = torch.eye(len(kernel), device=kernel.device)
    transfer.put(f"{conv}.weight", kernel, "initialised: the identity, in the central frame")
    _pass_norm(transfer, between, *_moments_after_relu(transfer, norm))


def _pass_norm(transfer: Transfer, between: str, mean: Tensor, variance: Tensor) -> None:
    """Makes a norm the identity, in evaluation exactly and in training for inputs of this mean and variance."""
    eps = getattr(transfer.model.get_submodule(between), "eps", 0.0)
    values = {"weight": (variance + eps).sqrt(), "bias": mean, "running_mean": mean, "running_var": variance}
    for part, value in values.items():
        transfer.put(f"{between}.{part}", value, "initialised: passes its input, by the statistics to be expected")
    transfer.keep(f"{between}.num_batches_tracked", "a count of batches")


def _moments_after_relu(transfer: Transfer, norm: str) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of a norm's outputs behind a ReLU, if they are normally distributed."""
    state = transfer.network.state
    mean, deviation = state[f"{norm}.bias"].double(), state[f"{norm}.weight"].double().abs().clamp_min(1e-6)
    ratio = mean / deviation
    below, density = torch.special.ndtr(ratio), (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    first = mean * below + deviation * density
    second = (mean.square() + deviation.square()) * below + mean * deviation * density
    return first, (second - first.square()).clamp_min(0)


def _percent(share: Tensor) -> str:
    return "?" if share.is_meta else f"{100 * share.item():.1f}%"


def _fill_inception(transfer: Transfer) -> None:
    """I3D, and S3D, whose convolutions in time pass what those in space compute."""
    model = transfer.model
    assert isinstance(model, InceptionVideo)
    rename = _renamer(
        (r"^(conv[13]|.*\.branch[12]\.1)\.0\.", r"\1."),  # S3D's convolution in space; elsewhere it has no number
        (r"^mixed(\d)\.(\d)\.", lambda match: f"inception{match[1]}{'abcde'[int(match[2])]}."),
        (r"\.branch(\d)\.", lambda match: f".branch{int(match[1]) + 1}."),
        (r"\.norm\.", ".bn."),
        (r"^head\.", "fc."),
    )
    separable = False
    for name, module in model.named_modules():
        if isinstance(module, ConvNorm) and module.kernel[0] > module.kernel[1]:
            separable = True
            before = name.removesuffix("1") + "0.norm."
            _pass_time(transfer, f"{name}.conv", f"{name}.norm", rename(before).removesuffix("."))
    if separable:
        transfer.note("the pools pad on both sides, the parent's at the end alone")
    else:
        transfer.note("the stem's padding (TensorFlow's) puts its grid one pixel off the parent's")
    transfer.take_rest(rename)


# --- transformers -----------------------------------------------------------------------------------------------------


def _check_attention(transfer: Transfer) -> None:
    """Compares what the weights of a transformer do not tell, as far as the parent came as a module."""
    network, model = transfer.network, transfer.model
    own_gelu = next(part.approximate for part in model.modules() if isinstance(part, nn.GELU))
    if own_gelu != network.gelu:
        names = {"none": "exact", "tanh": "the tanh approximation", "quick": "the sigmoid approximation"}
        transfer.note(f"the model's GELU is {names[own_gelu]}, the parent's {names[network.gelu]}")
    if network.module is None:
        return
    heads, own_heads = (_first(net, "num_heads", int) for net in (network.module, model))
    if heads is not None and heads != own_heads:
        transfer.fail(f"attention has {own_heads} heads, the parent's has {heads}")
    eps, own_eps = (
        next((part.eps for part in net.modules() if isinstance(part, nn.LayerNorm)), None)
        for net in (network.module, model)
    )
    if eps is not None and eps != own_eps:
        transfer.note(f"the model's LayerNorms have an epsilon of {own_eps:g}, the parent's of {eps:g}")


def _first(net: nn.Module, attribute: str, kind: type) -> Any:
    return next((value for part in net.modules() if isinstance(value := getattr(part, attribute, None), kind)), None)


def _fill_positions(transfer: Transfer, key: str, frames: int, grid: tuple[int, int], *, mode: str, cls: bool) -> None:
    """Books a table of positions: resized in space, repeated for each frame, with or without the class token's."""
    network = transfer.network
    table, old = network.state["pos_embed"], network.grid
    rule = "copied"
    if grid != old:
        cells = resize_grid(table[:, 1:], old, grid, mode=mode)  # type: ignore[arg-type]
        table = torch.cat((table[:, :1], cells), dim=1)
        transfer.resized = (table, grid)
        rule = f"resized from {old[0]}x{old[1]} to {grid[0]}x{grid[1]} ({mode})"
    if frames > 1:
        rule += f", repeated for {frames} times"
    if not cls:
        rule += ", without the class token's"
    transfer.put(key, torch.cat((table[:, : int(cls)], table[:, 1:].repeat(1, frames, 1)), dim=1), rule, "pos_embed")


CLASS_TOKEN = "the class token sees each patch in {0} frames and itself once, so itself {0} times less"


def _fill_timesformer(transfer: Transfer) -> None:
    """As published: attention over time begins as a copy of that over space, behind a layer of zeros."""
    model = transfer.model
    assert isinstance(model, TimeSformer)
    _check_attention(transfer)
    _fill_positions(transfer, "pos_embed", 1, model.grid, mode="nearest", cls=True)
    for key in model.state_dict():
        if key == "time_embed":
            transfer.keep(key, "zeros")
        elif ".temporal_fc." in key:
            transfer.keep(key, "zeros, so that attention over time adds nothing at first")
        elif ".temporal_" in key:
            source = key.replace(".temporal_", ".")
            if source in transfer.network.state:
                transfer.take(key, source, rule="copied from that over space")
    if model.attention_type == "joint_space_time":
        transfer.note(CLASS_TOKEN.format(model.num_frames))
    transfer.take_rest(lambda key: key)


def _fill_xvit(transfer: Transfer) -> None:
    """The frames' transformer is the parent; what follows is new."""
    model = transfer.model
    assert isinstance(model, XViT)
    _check_attention(transfer)
    transfer.new_head = True
    transfer.note("attention takes channels of the neighbouring frames, zeros outside the clip")
    _fill_positions(transfer, "pos_embed", 1, (model.table_side, model.table_side), mode="linear", cls=True)
    for key in model.state_dict():
        if key == "time_embed":
            transfer.keep(key, "zeros")
        elif key.startswith(("temporal_", "head_norm.", "head_fc.")):
            transfer.keep(key, "part of the transformer over frames")
        elif key.startswith("new_fc."):
            transfer.keep(key, "part of the published layout, never used")
    transfer.take_rest(lambda key: key)


def _fill_vivit(transfer: Transfer) -> None:
    """Section 3.4 of the paper; see scenic's projects/vivit/model_utils.py for what it starts from an image model.

    The paper starts attention over time (model 3) with zeros, so that it adds nothing. Zeros in all of its layers get
    no gradient; here the last one alone is zero, and the others are copied.
    """
    model = transfer.model
    assert isinstance(model, ViViT)
    _check_attention(transfer)
    grid, frames = model.encoder.grid, 1
    if not model.by_frame:
        frames, grid = grid[0], grid[1:]
    cls = model.encoder.class_token
    _fill_positions(transfer, "encoder.pos_embed", frames, grid, mode="linear", cls=cls)  # type: ignore[arg-type]
    if not cls:
        transfer.drop("cls_token", "the model classifies the mean token")
        transfer.note("the model has no class token and classifies the mean token")
    if model.attention_type == "joint" and frames > 1:
        transfer.note(CLASS_TOKEN.format(frames))
    elif model.attention_type == "factorised_dot_product":
        transfer.note("half of the heads attend over time")
    elif model.attention_type == "factorised_encoder":
        transfer.new_head = True
    for key in model.state_dict():
        if key.startswith("temporal_encoder."):
            transfer.keep(key, "the transformer over frames")
        elif ".attn_time.proj." in key:
            value = torch.zeros_like(model.state_dict()[key])
            transfer.put(key, value, "zeros, so that attention over time adds nothing at first")
        elif ".attn_time." in key or ".norm_time." in key:
            source = key.removeprefix("encoder.").replace("attn_time", "attn").replace("norm_time", "norm1")
            if source in transfer.network.state:
                transfer.take(key, source, rule="copied from that over space")
    transfer.take_rest(_renamer((r"^encoder\.", ""), (r"attn_space", "attn"), (r"norm_space", "norm1")))


def _fill_swin(transfer: Transfer) -> None:
    """Section 3.3 of the paper: bias tables repeated for all distances in time."""
    model = transfer.model
    assert isinstance(model, VideoSwin)
    _check_attention(transfer)
    network = transfer.network
    time, height, width = model.window_size
    for key in model.state_dict():
        if not key.endswith("relative_position_bias_table") or key not in network.state:
            continue
        table = network.state[key]
        old, new = 2 * network.window - 1, (2 * height - 1, 2 * width - 1)
        rule = f"repeated for {2 * time - 1} distances in time"
        if (old, old) != new:
            table = resize_grid(table.unsqueeze(0), (old, old), new, mode="linear").squeeze(0)
            rule = f"resized from {old}x{old} to {new[0]}x{new[1]} (linear), {rule}"
            transfer.note(f"windows of {height}x{width} instead of {network.window}x{network.window}")
        transfer.put(key, table.repeat(2 * time - 1, 1), rule, key)
    frames = -(-model.default_protocol.frames // model.patch_embed.proj.kernel_size[0])
    if frames > time and frames % time:
        transfer.note(f"{frames} frames of tokens are padded to whole windows of {time} with zeros, which are seen")
    transfer.take_rest(lambda key: key)


def _fill_uniformer(transfer: Transfer) -> None:
    """All blocks have a parent; attention over time (``split_attention``) is built to start as the identity."""
    for key in transfer.model.state_dict():
        if ".t_attn." in key or ".t_norm." in key:
            transfer.keep(key, "attention over time, the identity at first")
    _check_attention(transfer)
    transfer.take_rest(lambda key: key)


_RULES: dict[type[VideoModel], Callable[[Transfer], None]] = {
    InflatedResNet: _fill_inflated_resnet,
    ResNet3d: _fill_resnet3d,
    VideoResNet: _fill_video_resnet,
    InceptionVideo: _fill_inception,
    TimeSformer: _fill_timesformer,
    XViT: _fill_xvit,
    ViViT: _fill_vivit,
    VideoSwin: _fill_swin,
    UniFormer: _fill_uniformer,
}
