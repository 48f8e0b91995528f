"""The proof: one image, repeated over time, is to the video model what the image is to the 2D network."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stvid.errors import ConfigError
from stvid.inflation.anatomy import no_training
from stvid.inflation.model import InflatedModel
from stvid.inflation.report import FilterPair, LayerDifference
from stvid.inflation.temporal import TemporalConv

__all__ = ["FewFrames", "check_foldable", "filter_pairs", "still_difference", "watching"]

AT_ONCE = 4  # frames of a convolution in `FewFrames`
MIXED = 1e-4  # how much the logits of an image may differ, relatively, when it is alone in its batch


class FewFrames(TorchFunctionMode):
    """Makes convolutions take a few frames at a time, which is slower and needs a fraction of the memory.

    In float64 on a CPU torch first writes out all windows of a convolution's input, in gigabytes for a whole clip.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replaces ``conv2d`` and ``conv3d``, as torch's modules call them."""
        kwargs = kwargs or {}
        if func is F.conv2d and args:
            return torch.cat([func(frames, *args[1:], **kwargs) for frames in args[0].split(AT_ONCE)])
        if func is F.conv3d and not kwargs and args[1].shape[2] > 1:
            return _by_frame(*args)
        return func(*args, **kwargs)


def _by_frame(
    clip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    clip = F.pad(clip, (0, 0, 0, 0, padding[0], padding[0]))
    span = (weight.shape[2] - 1) * dilation[0] + 1
    step, space = (1, *stride[1:]), (0, *padding[1:])
    firsts = range(0, clip.shape[2] - span + 1, stride[0])
    windows = [clip[:, :, first : first + span] for first in firsts]
    return torch.cat([F.conv3d(x, weight, bias, step, space, dilation, groups) for x in windows], dim=2)


@torch.no_grad()
def still_difference(
    network: nn.Module, model: InflatedModel, *, unrounded: bool = False
) -> tuple[float, str, list[LayerDifference]]:
    """Compares a 2D network on two images with the model on each image repeated over time, in float64.

    There are two images, since the logits of an untrained network hardly depend on its input: a difference between the
    networks is measured against the difference that the image makes. Where it makes none, since the classifier is zero
    (as a new one is in some networks), both get the same random one.

    Args:
        network: Before it was inflated, with the weights that the model has.
        model: The inflated network, with a classifier of the same size.
        unrounded: Whether to inflate the 2D weights again in float64. In float32 the shares of an averaged kernel are
            rounded, which a network can magnify.

    Returns:
        The largest difference of the logits, relative to the largest difference between the logits of the two images;
        what was compared, in words; and the difference of each block's output, relative to its largest magnitude.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, model.in_chans, *model.img_size, generator=generator).double()
    clip = images.unsqueeze(2).expand(-1, -1, model.num_frames, -1, -1)
    flat, video = copy.deepcopy(network).double().cpu(), copy.deepcopy(model).double().cpu()
    logits = model.anatomy.logits
    names = [
        block.name
        for block in model.anatomy.blocks
        if not any(name.startswith(f"{block.name}.") for name in logits)  # that the model has elsewhere
    ]
    if unrounded:
        video.load_state_dict(video.transfer(flat.state_dict())[0])
    compared = "logits"
    blocks: dict[str, Tensor] = {}
    furthest: dict[str, float] = {}

    def compare(name: str, output: Tensor, image: int) -> None:
        expected = blocks.get(name)
        if expected is not None and len(expected) == len(images):
            difference = ((output - expected[image]).abs().max() / expected.abs().max()).item()
            furthest[name] = max(difference, furthest.get(name, 0.0))

    with no_training(flat), no_training(video):
        with watching(flat, names, blocks.__setitem__):
            expected = flat(images)
        if torch.equal(expected[0], expected[1]):
            for name in logits:
                classifier: Any = flat.get_submodule(name)
                classifier.weight.copy_(torch.randn(classifier.weight.shape, generator=generator))
            video.load_state_dict(video.transfer(flat.state_dict())[0])
            expected, compared = flat(images), "logits of a random classifier"
        logits_of = []
        for image in range(len(images)):  # one at a time, since memory in float64 is short
            with watching(video.network, names, functools.partial(compare, image=image)), FewFrames():
                logits_of.append(video(clip[image : image + 1]))
    found = torch.cat(logits_of)
    layers = [LayerDifference(name, furthest[name]) for name in blocks if name in furthest]
    scale = (expected[0] - expected[1]).abs().max()
    return ((found - expected).abs().max() / scale).item(), compared, layers


@torch.no_grad()
def check_foldable(network: nn.Module, img_size: tuple[int, int], *, in_chans: int = 3, name: str) -> None:
    """Checks that what a network computes for an image depends on the image alone, and that it leaves the image as is.

    Raises:
        ConfigError: If not; then frames cannot be folded into the batch.
    """
    parameter = next(network.parameters())
    images = torch.randn(2, in_chans, *img_size, generator=torch.Generator().manual_seed(0)).to(parameter)
    given = images.clone()

    def differs(first: Tensor, second: Tensor) -> bool:
        return (first - second).abs().max().item() > MIXED * first.abs().max().item()

    with no_training(network):
        together = network(given)
        if not torch.equal(given, images):
            raise ConfigError(f"{name}: overwrites the images that it is given; let it work on a copy")
        if differs(together, network(images)):
            raise ConfigError(
                f"{name}: gives other logits for the same images the second time, also in evaluation mode"
            )
        if differs(together[:1], network(images[:1])):
            raise ConfigError(
                f"{name}: the logits of an image depend on the other images in its batch, so frames cannot be folded "
                "into the batch"
            )


@contextmanager
def watching(network: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Shows the first output of each of these modules of a network whose code we do not have, with its name."""
    seen: set[str] = set()

    def show(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and name not in seen:
            seen.add(name)
            see(name, output)

    with ExitStack() as hooks:
        for name in names:
            handle = network.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: show(name, output)
            )
            hooks.callback(handle.remove)
        yield


def filter_pairs(network: nn.Module, model: InflatedModel) -> list[FilterPair]:
    """Returns the first three inflated kernels that have an extent in space, for the picture."""
    pairs: list[FilterPair] = []
    for name in model.inflated:
        part = model.network.get_submodule(name) if name != "head" else None
        if isinstance(part, TemporalConv) and part.kernel_size[1] > 1 and len(pairs) < 3:
            before: Any = network.get_submodule(name)
            pairs.append(FilterPair(name, before.weight.detach(), part.weight.detach()))
    return pairs
