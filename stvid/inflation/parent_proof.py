"""The proof that a video model computes on a still video what its 2D parent computes for the image.

One image, repeated over time, goes through the video model, and as an image through the 2D network, both in float64 and
on the CPU. Where every layer that was added passes its input on a still video, the outputs are equal but for rounding.
Where they cannot be, the report says "approximate", why, and by how much; and where the reason can be taken away
(another GELU, a grid that is one pixel off: `Remedy`), also how much is left then.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.inflation.image_networks import ImageNetwork, gelu_of, without_head
from stvid.inflation.parent_rules import ParentRule
from stvid.inflation.proof import watching
from stvid.inflation.report import EXACT, FilterPair, InflationReport, LayerDifference
from stvid.inflation.transfer import Remedy, Transfer

__all__ = ["compare"]

PIXELS = 224  # that most image networks are trained with
DRAWN = 2  # kernels in the HTML report
ROUNDING = 1e-8  # outputs in float64 that differ by less do not tell two images apart
PROOF_FRAMES = 32  # at most; more show nothing else


@torch.no_grad()
def compare(transfer: Transfer, rule: ParentRule, report: InflationReport) -> None:
    """Feeds two images to the 2D network, and each repeated over time to the video model; fills in the report.

    There are two, since the outputs of an untrained network hardly depend on its input: a difference between the
    networks is measured against the difference that the image makes.

    Args:
        transfer: After `fill`.
        rule: The entry of the model's family.
        report: Gets the differences, what was compared, and the reasons where they are not equal.
    """
    proof = _Proof(transfer, rule)
    if transfer.frame_features:
        report.compared = "features of each frame, before the transformer over frames"
    elif transfer.new_head:
        report.compared = "features before the classifier"
    report.filters = [FilterPair(*pair) for pair in transfer.filters[:DRAWN]]
    with _watch_blocks(proof) as report.layers:
        report.difference = proof.difference()
    if report.exact:
        return
    _note_window(transfer, proof.size)
    report.reasons = [reason.text for reason in transfer.reasons]
    noted = [reason.remedy for reason in transfer.reasons]
    remedies = [remedy for remedy in Remedy if remedy in noted]
    if remedies:
        for remedy in remedies:
            proof.apply(remedy)
        report.aligned, report.alignment = proof.difference(), " and ".join(remedy.value for remedy in remedies)
        if None not in noted and report.aligned >= EXACT:
            report.reasons = []  # none of them is the cause


class _Proof:
    """The two networks and what they are fed with.

    Attributes:
        transfer: The books of the inflation.
        rule: The entry of the model's family.
        parent: The 2D network.
        video: A copy of the video model.
        size: Height and width of the images.
        images: Two of them, whose values are normally distributed.
        still: The images that the clips repeat: the given ones, or these moved.
        frames: Frames of a clip.
    """

    def __init__(self, transfer: Transfer, rule: ParentRule) -> None:
        self.transfer = transfer
        self.rule = rule
        self.video = copy.deepcopy(transfer.model).double().eval()
        self.parent = self._build_parent()
        self.size = _proof_size(transfer)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(2, 3, *self.size, dtype=torch.float64, generator=generator)
        self.still = self.images
        self.frames = min(transfer.model.default_protocol.frames, PROOF_FRAMES)

    def _build_parent(self, *, class_token: bool = True) -> nn.Module:
        transfer = self.transfer
        heads = self.rule.heads(transfer.model)
        parent = transfer.network.build(num_heads=heads, resized=transfer.resized, class_token=class_token)
        return without_head(parent) if transfer.new_head else parent

    def difference(self) -> float:
        """Returns the largest difference of the outputs, relative to the difference that the image makes."""
        clip = self.still.unsqueeze(2).expand(-1, -1, self.frames, -1, -1)
        expected = self.parent(self.images)
        found = (self._features(clip) if self.transfer.new_head else self.video(clip)).view(2, -1, expected.shape[1])
        scale = max((expected[0] - expected[1]).abs().max().item(), ROUNDING * expected.abs().max().item())
        return (found - expected.unsqueeze(1)).abs().max().item() / scale

    def _features(self, clip: Tensor) -> Tensor:
        """Returns what the classifier sees, or with a transformer over frames what that sees of each."""
        if not self.transfer.frame_features:
            return self.video.forward_head(self.video.forward_features(clip), pre_logits=True)
        layer = self.video.get_submodule(self.transfer.frame_features)
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        self.video(clip)
        handle.remove()
        return seen[0] if seen[0].dim() == 2 else seen[0][:, 0]

    def apply(self, remedy: Remedy) -> None:
        """Takes a reason away."""
        video: Any = self.video
        if remedy is Remedy.MOVE_ONE_PIXEL:
            self.images[..., -1, :] = self.images[..., :, -1] = 0
            self.still = F.pad(self.images, (1, -1, 1, -1))
        elif remedy is Remedy.NO_CLASS_TOKEN:
            self.parent = self._build_parent(class_token=False)
        elif remedy is Remedy.SAME_GELU:
            _replace_gelu(self.parent, self.rule.gelu)
        elif remedy is Remedy.ONE_TOKEN_LONG:
            self.frames = video.patch_embed.proj.kernel_size[0]
        elif remedy is Remedy.NO_EXCHANGE:
            for block in video.blocks:
                block.attn.shift_div = video.num_features + 1


@contextlib.contextmanager
def _watch_blocks(proof: _Proof) -> Iterator[list[LayerDifference]]:
    """Compares the blocks of both networks while they run; the list is filled at the end.

    Blocks arrange their tokens in many ways, so each channel's mean over all places but the class token is compared.
    """
    transfer, network = proof.transfer, proof.transfer.network
    pattern = re.compile(rf"(?:{proof.rule.stages})\.\d+")
    names = {name: transfer.rename(f"{name}.").removesuffix(".") for name, _ in proof.video.named_modules()}
    twins = {
        name: twin
        for name, canonical in names.items()
        if pattern.fullmatch(name) and (twin := _twin(network, proof.parent, canonical))
    }
    tokens, channels = network.kind == "vit", -1 if network.kind in ("vit", "swin") else 1
    expected: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}

    def note(name: str, output: Tensor, means: dict[str, Tensor], *, first: int) -> None:
        places = output.movedim(channels, -1).flatten(1, -2)[:, first:]
        means[name] = places.reshape(2, -1, places.shape[-1]).mean(1)

    see_parent = functools.partial(note, means=expected, first=int(tokens))
    see_video = functools.partial(note, means=found, first=int(tokens and transfer.class_token))
    layers: list[LayerDifference] = []
    with watching(proof.parent, list(twins.values()), see_parent), watching(proof.video, list(twins), see_video):
        yield layers
    for name, twin in twins.items():
        difference = (found[name] - expected[twin]).abs().max() / expected[twin].abs().max()
        layers.append(LayerDifference(names[name], difference.item()))


def _twin(network: ImageNetwork, parent: nn.Module, name: str) -> str:
    """Returns the name of a block in the 2D network: its kind's if stvid built it, else its own; empty if none."""
    modules = dict(parent.named_modules())
    if name in modules:
        return name
    key = next((key for key in network.names if key.startswith(f"{name}.")), None)
    if key is None:
        return ""
    below = key.removeprefix(f"{name}.").count(".") + 1
    own = network.names[key][0].rsplit(".", below)[0]
    return own if own in modules else ""


def _proof_size(transfer: Transfer) -> tuple[int, int]:
    """Returns height and width of the image: the 2D network's own where that is fixed."""
    network, model = transfer.network, transfer.model
    if network.kind == "vit":
        grid = network.grid if transfer.resized is None else transfer.resized[1]
        patch = network.state["patch_embed.proj.weight"].shape[2:]
        return grid[0] * patch[0], grid[1] * patch[1]
    if network.kind == "swin":
        side = network.window * network.state["patch_embed.proj.weight"].shape[2] * 2 ** (len(network.depth) - 1)
        return side, side
    height, width = model.recipe["img_size"]
    return (height, width) if max(height, width) < PIXELS else (PIXELS, PIXELS)


def _note_window(transfer: Transfer, size: tuple[int, int]) -> None:
    """Notes a head that averages over windows smaller than its map, which weighs the middle more."""
    if transfer.head_window is None:
        return
    *window, divisor = transfer.head_window
    height, width = (-(-side // divisor) for side in size)
    if window[0] < height or window[1] < width:
        transfer.note(
            f"the head averages over windows of {window[0]}x{window[1]}, the parent's over all {height}x{width}"
        )


def _replace_gelu(network: nn.Module, approximate: str) -> None:
    """Gives the 2D network another GELU, in place."""
    for module in list(network.modules()):
        for name, part in module.named_children():
            if gelu_of(part) not in (None, approximate):
                setattr(module, name, nn.GELU(approximate=approximate))
