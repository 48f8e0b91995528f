"""Names that published files of several families share: mmaction2's, and the blobs of Caffe2.

A family's `convert_checkpoint` calls these functions and then applies the rules of its own. Facts about the names were
read in open-mmlab/mmaction2 (mmaction/models, versions 0.x and 1.x), facebookresearch/SlowFast
(slowfast/utils/c2_model_loading.py) and facebookresearch/VMZ (c2/lib/models, utilities/model_conversion).

`read_options` serves `VideoModel.options_of`: what tensors show of a model's arguments is read off the file and off the
model by the same function, and where the two differ the file's is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = [
    "CLIP_BLOCKS",
    "count_blocks",
    "from_mmaction",
    "from_slowfast_caffe2",
    "from_vmz_caffe2",
    "is_mmaction",
    "is_slowfast_caffe2",
    "is_vmz_caffe2",
    "mlp_ratio",
    "read_options",
    "square_side",
]

State = Mapping[str, Tensor]


# --- mmaction2 --------------------------------------------------------------------------------------------------------


def is_mmaction(state: State) -> bool:
    """Tells whether a state has the prefixes of mmaction2's recognizers."""
    return any(key.startswith(("backbone.", "cls_head.")) for key in state)


def from_mmaction(state: State) -> dict[str, Tensor]:
    """Returns a state without the prefix ``backbone.``, and with ``cls_head.fc_cls`` as ``head.fc``."""
    return {re.sub(r"^cls_head\.fc_cls\.", "head.fc.", key.removeprefix("backbone.")): state[key] for key in state}


# --- CLIP -------------------------------------------------------------------------------------------------------------

CLIP_BLOCKS = (
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""Rules from the names within a block of openai/CLIP (clip/model.py) to those of `stvid.models.blocks.Block`."""


# --- Caffe2 -----------------------------------------------------------------------------------------------------------

_TAILS = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}
_TAIL = r"(w|b|s|rm|riv)"
# What a training keeps beside the weights: the momentum of each blob, the learning rate, the number of steps.
_TRAINING = re.compile(r".*_momentum|lr|model_iter|optimizer_iteration(?:_cpu)?")


def _weights_alone(state: State) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not _TRAINING.fullmatch(key)}


def is_slowfast_caffe2(state: State) -> bool:
    """Tells whether a state has the blobs of SlowFast's model zoo."""
    return "res_conv1_bn_s" in state and "conv1_w" in state


_SLOWFAST_BLOBS = (
    (rf"(t_)?conv1_{_TAIL}", "s1.{p}_stem.conv"),
    (rf"(t_)?res_conv1_bn_{_TAIL}", "s1.{p}_stem.bn"),
    (rf"(t_)?res(\d)_(\d+)_branch1_{_TAIL}", "s{0}.{p}_res{1}.branch1"),
    (rf"(t_)?res(\d)_(\d+)_branch1_bn_{_TAIL}", "s{0}.{p}_res{1}.branch1_bn"),
    (rf"(t_)?res(\d)_(\d+)_branch2([abc])_{_TAIL}", "s{0}.{p}_res{1}.branch2.{2}"),
    (rf"(t_)?res(\d)_(\d+)_branch2([abc])_bn_{_TAIL}", "s{0}.{p}_res{1}.branch2.{2}_bn"),
    (rf"(t_)?nonlocal_conv(\d)_(\d+)_(theta|phi|g|out)_{_TAIL}", "s{0}.{p}_nonlocal{1}.conv_{2}"),
    (rf"(t_)?nonlocal_conv(\d)_(\d+)_bn_{_TAIL}", "s{0}.{p}_nonlocal{1}.bn"),
    (rf"(t_)pool1_subsample_{_TAIL}", "s1_fuse.conv_f2s"),
    (rf"(t_)pool1_subsample_bn_{_TAIL}", "s1_fuse.bn"),
    (rf"(t_)res(\d)_\d+_branch2c_bn_subsample_{_TAIL}", "s{0}_fuse.conv_f2s"),
    (rf"(t_)res(\d)_\d+_branch2c_bn_subsample_bn_{_TAIL}", "s{0}_fuse.bn"),
    (rf"()pred_{_TAIL}", "head.projection"),
)


def from_slowfast_caffe2(state: State) -> dict[str, Tensor]:
    """Turns the blobs of SlowFast's model zoo into PySlowFast's keys, without what a training adds to them.

    Args:
        state: Flat mapping from blobs, such as ``res2_0_branch2a_bn_riv``, to tensors. ``t_`` in front means the fast
            pathway.

    Returns:
        Keys such as ``s2.pathway0_res0.branch2.a_bn.running_var``. A blob without a counterpart keeps its name.
    """
    renamed: dict[str, Tensor] = {}
    for blob, value in _weights_alone(state).items():
        key = blob
        for pattern, form in _SLOWFAST_BLOBS:
            if match := re.fullmatch(pattern, blob):
                fast, *places, tail = match.groups()
                key = f"{form.format(*places, p='pathway1' if fast else 'pathway0')}.{_TAILS[tail]}"
                break
        renamed[key] = _as_matrix(key, value, "head.projection.weight")
    return renamed


def _as_matrix(key: str, value: Tensor, classifier: str) -> Tensor:
    """Returns the weights of a classifier without axes of length one; it may have been a convolution."""
    return value.flatten(1) if key == classifier and value.dim() > 2 else value


def is_vmz_caffe2(state: State) -> bool:
    """Tells whether a state has the blobs of VMZ's models."""
    return "conv1_spatbn_relu_s" in state


def from_vmz_caffe2(state: State) -> dict[str, Tensor]:
    """Turns the blobs of VMZ's R3D, MC3, R(2+1)D and CSN into the keys of VMZ's PyTorch models.

    Blocks are counted through all stages; a stage starts where a block has a projection on its shortcut. Within a block
    the convolutions are numbered in order, with a gap before a depth-wise one.

    Args:
        state: Flat mapping from blobs, such as ``comp_0_spatbn_1_middle_riv``, to tensors.

    Returns:
        Keys such as ``layer1.0.conv1.0.1.running_var``. A blob without a counterpart keeps its name.
    """
    blobs = _weights_alone(state)
    starts = sorted(
        {0, *(int(match[1]) for blob in blobs if (match := re.match(r"shortcut_projection_(\d+)_w", blob)))}
    )
    numbers: dict[int, list[int]] = {}
    for blob in blobs:
        if match := re.fullmatch(r"comp_(\d+)_conv_(\d+)_w", blob):
            numbers.setdefault(int(match[1]), []).append(int(match[2]))

    def block(number: str) -> str:
        stage = max(place for place, start in enumerate(starts) if start <= int(number))
        return f"layer{stage + 1}.{int(number) - starts[stage]}"

    def conv(number: str, place: str) -> str:
        return f"{block(number)}.conv{sorted(numbers[int(number)]).index(int(place)) + 1}"

    split_stem = "conv1_middle_w" in blobs
    renamed: dict[str, Tensor] = {}
    for blob, value in blobs.items():
        key = blob
        if match := re.fullmatch(rf"conv1(_middle)?(_spatbn_relu)?_{_TAIL}", blob):
            place = (3 if split_stem and not match[1] else 0) + (1 if match[2] else 0)
            key = f"stem.{place}.{_TAILS[match[3]]}"
        elif match := re.fullmatch(rf"shortcut_projection_(\d+)(_spatbn)?_{_TAIL}", blob):
            key = f"{block(match[1])}.downsample.{1 if match[2] else 0}.{_TAILS[match[3]]}"
        elif match := re.fullmatch(rf"comp_(\d+)_spatbn_(\d+)(_middle)?_{_TAIL}", blob):
            key = f"{conv(match[1], match[2])}.{'0.1' if match[3] else '1'}.{_TAILS[match[4]]}"
        elif match := re.fullmatch(rf"comp_(\d+)_conv_(\d+)(_middle)?_{_TAIL}", blob):
            last = "0"
            if match[3]:
                last = "0.0"
            elif f"comp_{match[1]}_conv_{match[2]}_middle_w" in blobs:
                last = "0.2" if value.shape[1] == 1 else "0.3"  # depth-wise without a ReLU in front, or in time alone
            key = f"{conv(match[1], match[2])}.{last}.{_TAILS[match[4]]}"
        elif match := re.fullmatch(rf"last_out_L\d+_{_TAIL}", blob):
            key = f"fc.{_TAILS[match[1]]}"
        renamed[key] = _as_matrix(key, value, "fc.weight")
    return renamed


# --- what tensors show ------------------------------------------------------------------------------------------------


def read_options(
    read: Callable[[State], dict[str, Any]], state: State, own: State, *, needed: Iterable[str] = ()
) -> dict[str, Any]:
    """Returns the arguments of a model that a file shows and that differ from those of a model.

    Args:
        read: Reads arguments off a state in the model's own keys; leaves out what cannot be told.
        state: The file's state in the model's own keys.
        own: The model's `state_dict`.
        needed: Keys without which the state is of another architecture, whose arguments mean nothing here.
    """
    if not all(key in state for key in needed):
        return {}
    built = read(own)
    return {name: value for name, value in read(state).items() if name not in built or built[name] != value}


def count_blocks(state: State, prefix: str) -> int:
    """Returns how many numbered modules follow a prefix, such as ``blocks.``, without a gap from 0 on."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    found = {int(match[1]) for key in state if (match := pattern.match(key))}
    return next(number for number in range(len(found) + 1) if number not in found)


def mlp_ratio(state: State, fc1: str) -> dict[str, float]:
    """Returns the argument ``mlp_ratio`` that the first layer of an MLP shows; empty if it is not there."""
    weight = state.get(fc1)
    return {} if weight is None else {"mlp_ratio": weight.shape[0] / weight.shape[1]}


def square_side(cells: int) -> int | None:
    """Returns the side of a square grid of `cells`; None if there is none."""
    side = math.isqrt(max(cells, 0))
    return side if side and side * side == cells else None
