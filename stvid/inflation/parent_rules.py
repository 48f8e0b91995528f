"""Which tensor of a 2D parent goes where in each hand-written family, and what cannot be equal.

Each family has one entry in `PARENTS`, at the end of this file: which kind of 2D network it descends from, and a
function that fills a `Transfer`: first what needs a rule of its own, then all the rest by name. Convolutions in space
become convolutions in space and time by the central frame, or by equal shares of all frames (Carreira and Zisserman
2017, arXiv:1705.07750, section 2.3).

R(2+1)D and CSN have no entry: their convolutions are not those of a 2D network, and their authors train them from
scratch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stvid.errors import CheckpointError
from stvid.inflation.image_networks import Gelu, Kind
from stvid.inflation.options import Init
from stvid.inflation.report import COPIED, RuleKind
from stvid.inflation.transfer import Remedy, Transfer
from stvid.models.base import VideoModel
from stvid.models.blocks import resize_grid
from stvid.models.families import timesformer, vivit, xvit
from stvid.models.families.i3d import WINDOW, ConvNorm, InceptionVideo
from stvid.models.families.i3d_resnet import InflatedResNet
from stvid.models.families.resnet3d import ResNet3d
from stvid.models.families.uniformer import UniFormer
from stvid.models.families.video_resnet import VideoResNet
from stvid.models.families.video_swin import VideoSwin

__all__ = ["PARENTS", "ParentRule", "fill"]


@dataclass(frozen=True)
class ParentRule:
    """How the models of one family start from a 2D network.

    Attributes:
        family: The class of the models.
        kind: The kind of 2D network that they descend from.
        fill: Books the tensors of a model, but for `Transfer.finish`.
        stages: Pattern of the names of the lists of blocks that the 2D network has, too.
        init: How kernels in time start, if nothing else is asked for.
        heads: Gives the heads that the 2D network is built with, which weights do not tell.
        gelu: torch's name of the models' GELU.
        norm_eps: Epsilon of the models' first LayerNorm.
    """

    family: type[VideoModel]
    kind: Kind
    fill: Callable[[Transfer, Any], None]
    stages: str
    init: Init = "center"
    heads: Callable[[Any], Any] = lambda model: None
    gelu: Gelu = "none"
    norm_eps: float = 1e-5


def fill(transfer: Transfer, rule: ParentRule) -> None:
    """Books all tensors, by the rule of the model's family, and loads them.

    Raises:
        CheckpointError: As `Transfer.finish`.
    """
    network, model = transfer.network, transfer.model
    if network.kind == "resnet":
        blocks = {True: "bottlenecks", False: "basic blocks"}
        found, own = (
            any(key.startswith("layer1.0.conv3.") for key in state) for state in (network.state, model.state_dict())
        )
        if found != own:
            raise CheckpointError(f"the model has {blocks[own]}")
    depth, own_depth = network.depth, _depth(model, rule)
    if depth != own_depth:
        depth_argument, own_depth_argument = (value[0] if len(value) == 1 else value for value in (depth, own_depth))
        raise CheckpointError(f"the model has depth {own_depth_argument}; give depth={depth_argument}")
    if network.kind in ("vit", "swin", "uniformer"):
        _check_attention(transfer, rule)
    rule.fill(transfer, model)
    transfer.finish()


def _depth(model: VideoModel, rule: ParentRule) -> tuple[int, ...]:
    """Returns the blocks of each stage, as `ImageNetwork.depth` counts them."""
    stages: list[Any] = [module for name, module in model.named_modules() if re.fullmatch(rule.stages, name)]
    return tuple(len(blocks) for blocks in stages)


def _renamer(*rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> Callable[[str], str]:
    def rename(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    return rename


# --- convolutional networks -------------------------------------------------------------------------------------------


def _fill_inflated_resnet(transfer: Transfer, model: InflatedResNet) -> None:
    """Fills C2D, Slow, I3D and Non-local I3D."""
    head: Any = model.head
    transfer.head_window = (*head.window[1:], 32)
    for key in model.state_dict():
        if ".nonlocal_block." in key:
            transfer.keep(key, "a non-local block, which is the identity as long as its norm's weight is zero")
    transfer.take_rest(
        _renamer(
            (r"^stem\.0\.", "conv1."), (r"^stem\.1\.", "bn1."), (r"\.norm(\d)\.", r".bn\1."), (r"^head\.fc\.", "fc.")
        )
    )


def _fill_resnet3d(transfer: Transfer, model: ResNet3d) -> None:
    """Fills the 3D ResNets and ResNeXts of Hara et al."""
    if model.shortcut_type == "A":
        for source in transfer.network.state:
            if ".downsample." in source:
                transfer.drop(source, "shortcuts of type A have no weights")
        transfer.note("shortcuts of type A pad with zeros where the parent's have a convolution")
    if isinstance(model.pool, nn.Identity):
        transfer.note("the model has no max pool after the stem, its parent has one")
    transfer.take_rest(_renamer((r"^head\.fc\.", "fc.")))


def _fill_video_resnet(transfer: Transfer, model: VideoResNet) -> None:
    """Fills R3D and MC3."""
    model.adopt_format("image", {"norm_eps": transfer.network.norm_eps})
    if model.pool_size is not None:
        transfer.head_window = (*model.pool_size[1:], model.min_size[0])
    if not any(isinstance(layer, nn.MaxPool3d) for layer in model.stem):
        transfer.note("the model has no max pool after the stem (stem_pool=True adds it), its parent has one")
    transfer.take_rest(
        _renamer(
            (r"^stem\.0\.", "conv1."),
            (r"^stem\.1\.", "bn1."),
            (r"\.conv(\d)\.0\.", r".conv\1."),
            (r"\.conv(\d)\.1\.", r".bn\1."),
            (r"^head\.fc\.", "fc."),
        )
    )


def _fill_inception(transfer: Transfer, model: InceptionVideo) -> None:
    """Fills I3D, and S3D, whose convolutions in time pass what those in space compute."""
    transfer.head_window = (*WINDOW[1:], 32)
    rename = _renamer(
        (r"^(conv[13]|.*\.branch[12]\.1)\.0\.", r"\1."),  # S3D's convolution in space; elsewhere it has no number
        (r"^mixed(\d)\.(\d)\.", lambda match: f"inception{match[1]}{'abcde'[int(match[2])]}."),
        (r"\.branch(\d)\.", lambda match: f".branch{int(match[1]) + 1}."),
        (r"\.norm\.", ".bn."),
        (r"^head\.fc\.", "fc."),
    )
    in_time = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ConvNorm) and module.kernel[0] > module.kernel[1]
    ]
    for name in in_time:
        before = name.removesuffix("1") + "0.norm."
        _pass_time(transfer, name, rename(before).removesuffix("."))
    if in_time:
        transfer.note("the pools pad on both sides, the parent's at the end alone")
    else:
        transfer.note(
            "the stem's padding (TensorFlow's) puts its grid one pixel off the parent's", Remedy.MOVE_ONE_PIXEL
        )
    transfer.take_rest(rename)


def _pass_time(transfer: Transfer, name: str, norm: str) -> None:
    """Makes a convolution in time, with its norm and ReLU, pass its input, which comes out of a ReLU.

    The norm is the identity: in evaluation exactly, and in training for inputs of the mean and the variance that are to
    be expected of them.

    Args:
        transfer: The books.
        name: The layer of the video model.
        norm: The parent's norm before that ReLU.
    """
    kernel = torch.zeros_like(transfer.model.state_dict()[f"{name}.conv.weight"])
    kernel[:, :, kernel.shape[2] // 2, 0, 0] = torch.eye(len(kernel), device=kernel.device)
    rule = "initialised: the identity, in the central frame"
    transfer.put(f"{name}.conv.weight", kernel, rule, kind="initialised")
    mean, variance = _moments_after_relu(transfer, norm)
    eps: Any = transfer.model.get_submodule(f"{name}.norm").eps
    values = {"weight": (variance + eps).sqrt(), "bias": mean, "running_mean": mean, "running_var": variance}
    rule = "initialised: passes its input, by the statistics to be expected"
    for part, value in values.items():
        transfer.put(f"{name}.norm.{part}", value, rule, kind="initialised")
    transfer.keep(f"{name}.norm.num_batches_tracked", "a count of batches")


def _moments_after_relu(transfer: Transfer, norm: str) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of a norm's outputs behind a ReLU, if they are normally distributed."""
    state = transfer.network.state
    mean, deviation = state[f"{norm}.bias"].double(), state[f"{norm}.weight"].double().abs().clamp_min(1e-6)
    ratio = mean / deviation
    below, density = torch.special.ndtr(ratio), (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    first = mean * below + deviation * density
    second = (mean.square() + deviation.square()) * below + mean * deviation * density
    return first, (second - first.square()).clamp_min(0)


# --- transformers -----------------------------------------------------------------------------------------------------


def _check_attention(transfer: Transfer, rule: ParentRule) -> None:
    """Compares what the weights of a transformer do not tell, as far as the parent came as a module."""
    network = transfer.network
    if rule.gelu != network.gelu:
        names = {"none": "exact", "tanh": "the tanh approximation", "quick": "the sigmoid approximation"}
        transfer.note(f"the model's GELU is {names[rule.gelu]}, the parent's {names[network.gelu]}", Remedy.SAME_GELU)
    if network.module is None:
        return
    heads, own_heads = _first(network.module, "num_heads", int), _first(transfer.model, "num_heads", int)
    if heads is not None and heads != own_heads:
        transfer.fail(f"attention has {own_heads} heads, the parent's has {heads}")
    eps = next((part.eps for part in network.module.modules() if isinstance(part, nn.LayerNorm)), None)
    if eps is not None and eps != rule.norm_eps:
        transfer.note(f"the model's LayerNorms have an epsilon of {rule.norm_eps:g}, the parent's of {eps:g}")


def _first(net: nn.Module, attribute: str, kind: type) -> Any:
    return next((value for part in net.modules() if isinstance(value := getattr(part, attribute, None), kind)), None)


def _fill_positions(transfer: Transfer, key: str, frames: int, grid: tuple[int, int], *, mode: str, cls: bool) -> None:
    """Books a table of positions: resized in space, repeated for each frame, with or without the class token's."""
    network = transfer.network
    table, old = network.state["pos_embed"], network.grid
    changes = []
    if grid != old:
        cells = resize_grid(table[:, 1:], old, grid, mode=mode)  # type: ignore[arg-type]
        table = torch.cat((table[:, :1], cells), dim=1)
        transfer.resized = (table, grid)
        changes.append(f"resized from {old[0]}x{old[1]} to {grid[0]}x{grid[1]} ({mode})")
    if frames > 1:
        changes.append(f"repeated for {frames} times")
    if not cls:
        changes.append("without the class token's")
    value = torch.cat((table[:, : int(cls)], table[:, 1:].repeat(1, frames, 1)), dim=1)
    kind: RuleKind = "derived" if changes else "copied"
    transfer.put(key, value, ", ".join(changes) or COPIED, "pos_embed", kind=kind)


CLASS_TOKEN = "the class token sees each patch in {0} frames and itself once, so itself {0} times less"


def _fill_timesformer(transfer: Transfer, model: timesformer.TimeSformer) -> None:
    """As published: attention over time begins as a copy of that over space, behind a layer of zeros."""
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
        transfer.note(CLASS_TOKEN.format(model.num_frames), Remedy.ONE_TOKEN_LONG)
    transfer.take_rest(_renamer((r"^head\.fc\.", "head.")))


def _fill_xvit(transfer: Transfer, model: xvit.XViT) -> None:
    """The frames' transformer is the parent; what follows is new."""
    transfer.new_head, transfer.frame_features = True, "norm"
    transfer.note("attention takes channels of the neighbouring frames, zeros outside the clip", Remedy.NO_EXCHANGE)
    _fill_positions(transfer, "pos_embed", 1, (model.table_side, model.table_side), mode="linear", cls=True)
    for key in model.state_dict():
        if key == "time_embed":
            transfer.keep(key, "zeros")
        elif key.startswith(("temporal_", "head.norm.", "head.hidden.")):
            transfer.keep(key, "part of the transformer over frames")
        elif key.startswith("new_fc."):
            transfer.keep(key, "part of the published layout, never used")
    transfer.take_rest(_renamer((r"^head\.fc\.", "head.")))


def _fill_vivit(transfer: Transfer, model: vivit.ViViT) -> None:
    """Section 3.4 of the paper; see scenic's projects/vivit/model_utils.py for what it starts from an image model.

    The paper starts attention over time (model 3) with zeros, so that it adds nothing. Zeros in all of its layers get
    no gradient; here the last one alone is zero, and the others are copied.
    """
    grid, frames = model.encoder.grid, 1
    if not model.by_frame:
        frames, grid = grid[0], grid[1:]
    cls = model.encoder.class_token
    _fill_positions(transfer, "encoder.pos_embed", frames, grid, mode="linear", cls=cls)  # type: ignore[arg-type]
    if not cls:
        transfer.drop("cls_token", "the model classifies the mean token")
        transfer.class_token = False
        transfer.note(
            "the model has no class token and classifies the mean token",
            Remedy.NO_CLASS_TOKEN if model.attention_type == "factorised_self_attention" else None,
        )
    if model.attention_type == "joint" and frames > 1:
        transfer.note(CLASS_TOKEN.format(frames), Remedy.ONE_TOKEN_LONG)
    elif model.attention_type == "factorised_dot_product":
        transfer.note("half of the heads attend over time")
    elif model.attention_type == "factorised_encoder":
        transfer.new_head, transfer.frame_features = True, "encoder"
    for key in model.state_dict():
        if key.startswith("temporal_encoder."):
            transfer.keep(key, "the transformer over frames")
        elif ".attn_time.proj." in key:
            value = torch.zeros_like(model.state_dict()[key])
            rule = "zeros, so that attention over time adds nothing at first"
            transfer.put(key, value, rule, kind="initialised")
        elif ".attn_time." in key or ".norm_time." in key:
            source = key.removeprefix("encoder.").replace("attn_time", "attn").replace("norm_time", "norm1")
            if source in transfer.network.state:
                transfer.take(key, source, rule="copied from that over space")
    transfer.take_rest(
        _renamer((r"^encoder\.", ""), (r"attn_space", "attn"), (r"norm_space", "norm1"), (r"^head\.fc\.", "head."))
    )


def _fill_swin(transfer: Transfer, model: VideoSwin) -> None:
    """Section 3.3 of the paper: bias tables repeated for all distances in time."""
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
    transfer.take_rest(_renamer((r"^head\.fc\.", "head.")))


def _fill_uniformer(transfer: Transfer, model: UniFormer) -> None:
    """All blocks have a parent; attention over time (``split_attention``) is built to start as the identity."""
    for key in model.state_dict():
        if ".t_attn." in key or ".t_norm." in key:
            transfer.keep(key, "attention over time, the identity at first")
    transfer.take_rest(_renamer((r"^head\.fc\.", "head.")))


# --- what there is ----------------------------------------------------------------------------------------------------

PARENTS: tuple[ParentRule, ...] = (
    ParentRule(InflatedResNet, "resnet", _fill_inflated_resnet, stages=r"layer[1-4]"),
    ParentRule(ResNet3d, "resnet", _fill_resnet3d, stages=r"layer[1-4]"),
    ParentRule(VideoResNet, "resnet", _fill_video_resnet, stages=r"layer[1-4]"),
    ParentRule(InceptionVideo, "inception", _fill_inception, stages=r"mixed[3-5]"),
    ParentRule(
        timesformer.TimeSformer,
        "vit",
        _fill_timesformer,
        stages="blocks",
        heads=lambda model: model.blocks[0].attn.num_heads,
        norm_eps=timesformer.NORM_EPS,
    ),
    ParentRule(
        xvit.XViT,
        "vit",
        _fill_xvit,
        stages="blocks",
        heads=lambda model: model.blocks[0].attn.num_heads,
        norm_eps=xvit.BACKBONE_EPS,
    ),
    ParentRule(
        vivit.ViViT,
        "vit",
        _fill_vivit,
        stages=r"encoder\.blocks",
        heads=lambda model: _first(model.encoder, "num_heads", int),  # the attention's name differs by model
        gelu="tanh",
        norm_eps=vivit.NORM_EPS,
    ),
    ParentRule(VideoSwin, "swin", _fill_swin, stages=r"layers\.\d\.blocks", init="average"),
    ParentRule(
        UniFormer,
        "uniformer",
        _fill_uniformer,
        stages=r"blocks[1-4]",
        heads=lambda model: [blocks[0].attn.num_heads for blocks in (model.blocks3, model.blocks4)],
    ),
)
