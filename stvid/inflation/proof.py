"""The proof: one image, repeated over time, is to the video model what the image is to the 2D network."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stvid.errors import ConfigError
from stvid.inflation.anatomy import MIXED, Observed, images_for, in_words, no_training
from stvid.inflation.guests import copied
from stvid.inflation.model import InflatedModel
from stvid.inflation.outputs import Reader
from stvid.inflation.report import EXACT, FilterPair, InflationReport, LayerDifference
from stvid.inflation.temporal import TemporalConv, TemporalFilter
from stvid.inflation.watching import tensors_in

__all__ = [
    "Comparison",
    "FewFrames",
    "Trial",
    "check_foldable",
    "filter_pairs",
    "prove",
    "prove_training",
    "still_difference",
    "unround_filters",
    "watching",
]

_log = logging.getLogger(__name__)
AT_ONCE = 4  # frames of a convolution in `FewFrames`
MIXED_EXACTLY = 1e-6  # `MIXED` in float64
FEWEST_FRAMES = 3  # of the still video: one with neighbours on both sides
SMALL = 128  # pixels of the shorter side of images on which a step is quick
SMALLER = 4  # times shorter are the sides of the images that are tried first where they are not small
SUSPECT = 1e-2  # difference in the network's own type that float64 must explain with as many frames in a batch
ROUNDINGS = 30  # by how much more than one change of the last bit may change the logits


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
def _observe(network: nn.Module, model: InflatedModel, images: Tensor) -> Observed:
    """Runs a 2D network, and keeps what its blocks and itself return.

    Args:
        network: Before it was inflated.
        model: The inflated network, which knows where the blocks and the logits are.
        images: Two images.
    """
    given = images.clone()
    logits = model.anatomy.logits
    names = [
        block.name
        for block in model.anatomy.blocks
        if block.batch_axis == 0
        and not any(name.startswith(f"{block.name}.") for name in logits)  # that the model has elsewhere
    ]
    blocks: dict[str, Tensor] = {}
    with no_training(network), watching(network, names, blocks.__setitem__):
        output = model.reader(network(given))
    kept = {name: block for name, block in blocks.items() if len(block) == len(images)}
    return Observed(images, output, kept, not torch.equal(given, images))


@dataclass(frozen=True)
class Comparison:
    """How far a video model is from its 2D network on a still video.

    Attributes:
        difference: Largest difference of the logits, relative to the largest difference between those of two images.
        compared: What was compared, in words.
        layers: The difference of each block's output, relative to its largest magnitude.
    """

    difference: float
    compared: str
    layers: list[LayerDifference]


def _compare(flat: Observed, video: InflatedModel, *, frugal: bool = False, at_once: bool = True) -> Comparison | None:
    """Compares a 2D network with a model on a still video; None if the logits do not depend on the image, so that there
    is no measure.

    With `at_once` both images are in one batch, so that it shows if clips of a batch see each other. With `frugal`
    convolutions take less memory, and more time.
    """
    frames = _frames_of_proof(video)
    clips = flat.images.unsqueeze(2).expand(-1, -1, frames, -1, -1)
    scale = (flat.logits[0] - flat.logits[1]).abs().max()
    if not scale > 0:
        return None
    furthest: dict[str, float] = {}

    def compare(name: str, output: Tensor, images: Sequence[int]) -> None:
        expected = flat.blocks[name]
        if len(output) % len(images):
            return
        found = output.unflatten(0, (len(images), -1))
        for clip, image in zip(found, images, strict=True):
            difference = ((clip - expected[image]).abs().max() / expected.abs().max()).item()
            furthest[name] = max(difference, furthest.get(name, 0.0))

    every = range(len(clips))
    logits = []
    with no_training(video):
        for images in [list(every)] if at_once else [[image] for image in every]:
            with (
                watching(video.network, list(flat.blocks), functools.partial(compare, images=images)),
                FewFrames() if frugal else nullcontext(),
            ):
                logits.append(video(clips[images]))
    found = torch.cat(logits)
    layers = [LayerDifference(name, furthest[name]) for name in flat.blocks if name in furthest]
    return Comparison(((found - flat.logits).abs().max() / scale).item(), "logits", layers)


@dataclass
class Trial:
    """Compares a model with its 2D network while it is built, when it runs for the first time.

    Args:
        network: A copy of the 2D network.
        name: How messages call the network.
        proves: Whether to compare; else only what no model can be made of is found.

    Attributes:
        seen: What the 2D network did when it was examined.
        quick: The comparison in the network's own type; None as for `_compare`.
    """

    network: nn.Module
    name: str
    proves: bool = True
    seen: Observed = field(default_factory=Observed)
    quick: Comparison | None = None

    def __call__(self, model: InflatedModel) -> bool:
        """Compares, after a check that frames can be folded into the batch; returns whether the model ran."""
        check_foldable(self.network, self.seen, name=self.name, read=model.reader)
        if self.proves:
            self.quick = _compare(self.seen, model)
        return self.proves


def _frames_of_proof(model: InflatedModel) -> int:
    """Returns how long the still video is: as long as the largest kernel, or whole where there are strides in time."""
    if model.options.strides or model.options.joint:
        return model.num_frames
    kernels = [part.weight.shape[2] for part in model.modules() if isinstance(part, TemporalConv | TemporalFilter)]
    return min(model.num_frames, max(FEWEST_FRAMES, *kernels, 0))


@torch.no_grad()
def still_difference(
    network: nn.Module, model: InflatedModel, *, unrounded: bool = False, at_once: bool = False
) -> tuple[float, str, list[LayerDifference]]:
    """Compares a 2D network on two images with the model on each image repeated over time, in float64.

    There are two images, since the logits of an untrained network hardly depend on its input: a difference between the
    networks is measured against the difference that the image makes. Where it makes none, since the classifier is zero
    (as a new one is in some networks), both get the same random one.

    Args:
        network: Before it was inflated, with the weights that the model has.
        model: The inflated network, with a classifier of the same size.
        unrounded: Whether to inflate the 2D weights again in float64. In float32 the shares of an averaged kernel or
            filter are rounded, which a network can magnify.
        at_once: Whether both clips are in one batch, which takes twice the memory, but shows if they see each other.

    Returns:
        The attributes of a `Comparison`: the difference, what was compared, and the difference of each block.

    Raises:
        ConfigError: If the logits of an image depend on other images, which a classifier of zeros had hidden.
        RuntimeError: If a network does not run in float64.
    """
    flat, video = copied(network).double().cpu(), copied(model).double().cpu()
    images = _two_images(model).double()
    if unrounded:
        video.load_state_dict(video.transfer(flat.state_dict())[0])
        unround_filters(video)
    found = _compare(_observe(flat, video, images), video, frugal=True, at_once=at_once)
    if found is not None:
        return found.difference, found.compared, found.layers
    generator = torch.Generator().manual_seed(0)
    for name in model.anatomy.logits:
        for parameter in flat.get_submodule(name).parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    video.load_state_dict(video.transfer(flat.state_dict())[0])
    if problem := _why_not_foldable(flat, images, model.reader, MIXED_EXACTLY):  # which zeros had hidden
        raise ConfigError(f"{model.source_name}: {problem}")
    seen = _observe(flat, video, images)
    found = _compare(seen, video, frugal=True, at_once=at_once)
    if found is None:
        expected = seen.logits
        clips = images.unsqueeze(2).expand(-1, -1, _frames_of_proof(video), -1, -1)
        apart = (video.eval()(clips) - expected).abs().max()
        scale = expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        return (apart / scale).item(), "logits, which do not depend on the image", []
    return found.difference, "logits of a random classifier", found.layers


@torch.no_grad()
def unround_filters(video: InflatedModel) -> None:
    """Makes the shares of frames in averaging filters, which no 2D weight has, add up to one in float64, too.

    Args:
        video: In float64; filters whose shares are off by more than rounding stay as they are.
    """
    for part in video.modules():
        if isinstance(part, TemporalFilter):
            total = part.weight.sum((1, 2), keepdim=True)
            if (total - 1).abs().max() < part.weight.shape[2] * torch.finfo(torch.float32).eps:
                part.weight.div_(total)


def _two_images(model: InflatedModel) -> Tensor:
    return torch.randn(2, model.in_chans, *model.img_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def prove(model: InflatedModel, report: InflationReport, trial: Trial) -> None:
    """Compares both networks on a still video, and fills in the report.

    First as they are, which is fast; what does not agree then is decided in float64, or where a network fixes its own
    type, against the rounding that it magnifies.

    Args:
        model: The inflated network.
        report: What is filled in.
        trial: The comparison that was made while the model was built.
    """
    if model.options.spoils_ends:
        where = "first" if model.options.causal else "first and last"
        report.reasons = [f"zeros beyond the ends of the clip reach its {where} frames (padding=replicate avoids it)"]
    network, quick = trial.network, trial.quick
    report.filters = filter_pairs(network, model)
    images = trial.seen.images
    report.computed_in = str(images.dtype).removeprefix("torch.")
    if quick is not None and quick.difference < EXACT:
        report.difference, report.compared, report.layers = quick.difference, quick.compared, quick.layers
        return
    at_once = False
    try:
        report.difference, report.compared, report.layers = still_difference(network, model)
        if report.exact and quick is not None and quick.difference > SUSPECT:  # do clips of one batch see each other?
            at_once = True
            report.difference, report.compared, report.layers = still_difference(network, model, at_once=True)
    except ConfigError:
        raise
    except Exception as error:  # whatever a network's own code raises
        if quick is None:
            raise ConfigError(
                f"{report.source}: cannot be proved: its logits do not depend on the image, and it does not run in "
                f"float64 ({in_words(error)}); prove=False leaves the proof out"
            ) from error
        _judge_rounded(network, model, report, quick, images)
        return
    report.computed_in = "float64"
    if not report.reasons and not report.exact:
        aligned, *_ = still_difference(network, model, unrounded=True, at_once=at_once)
        if aligned < EXACT:
            report.reasons = ["the network magnifies the rounding of its averaged kernels"]
            report.aligned, report.alignment = aligned, "kernels in float64"
            return
        if report.compared != "logits" or any(layer.relative >= EXACT for layer in report.layers):
            return
        rounding = _rounding_of_logits(copied(network).double().cpu(), model, _two_images(model).double())
        if report.difference < ROUNDINGS * rounding:
            report.reasons = [
                "the logits hardly depend on the image, as without training: in float64, rounding alone changes them "
                f"{rounding:.1e} times as much as the image"
            ]


def _judge_rounded(
    network: nn.Module, model: InflatedModel, report: InflationReport, quick: Comparison, images: Tensor
) -> None:
    """Judges a difference in the network's own type by what a change of an image's last bit makes of the logits."""
    report.difference, report.compared, report.layers = quick.difference, quick.compared, quick.layers
    rounding = _rounding_of_logits(network, model, images)
    if quick.difference < ROUNDINGS * max(rounding, EXACT / ROUNDINGS):
        report.reasons = [
            f"the network runs in {report.computed_in} only, where rounding alone changes its logits by {rounding:.1e}"
        ]


def _rounding_of_logits(network: nn.Module, model: InflatedModel, images: Tensor) -> float:
    """Returns how much rounding changes the logits of a 2D network, relative to the difference of those of two images.

    The largest of what a change of the images' last bits does, what it makes that they are computed one by one, and the
    last bit of the logits themselves.
    """
    with no_training(network):
        expected = model.reader(network(images.clone()))
        alone = _one_by_one(network, images, model.reader)
    largest = expected.abs().max()
    moved = max(_rounding(network, images, model.reader), torch.finfo(expected.dtype).eps) * largest
    apart = (alone - expected).abs().max()
    if apart < MIXED * largest:  # more is no rounding
        moved = torch.maximum(moved, apart)
    return (moved / (expected[0] - expected[1]).abs().max()).item()


def prove_training(network: nn.Module, model: InflatedModel, report: InflationReport) -> None:
    """Trains a copy of the model for one step on two clips of one frame.

    On smaller images where the network takes such, since a step on large ones takes as long as all the rest of the
    proof.

    Raises:
        ConfigError: If that fails although the network itself can be trained.
    """
    images = images_for(network, (2, model.in_chans, *model.img_size))
    devices = [images.device] if images.device.type == "cuda" else []
    height, width = model.img_size
    kind: str | None = None
    with torch.random.fork_rng(devices=devices):
        if min(height, width) > SMALL:
            try:
                kind = _train(model, images[:, :, : height // SMALLER, : width // SMALLER].contiguous())
            except Exception as error:  # whatever a network's own code raises: then it takes one size
                _log.debug("%s: is not trained on small images: %s", report.source, in_words(error))
        try:
            kind = _train(model, images) if kind is None else kind
        except Exception as error:  # whatever a network's own code raises
            if (problem := _why_not_trainable(network, images)) is None:
                raise ConfigError(f"{report.source}: the video model cannot be trained ({in_words(error)})") from error
            report.notes.append(f"the network itself cannot be trained here ({problem})")
            return
    if kind and model.reader.plain:
        report.notes.append(
            f"in training mode the network returns a {kind}; the model takes the logits in it that are those of "
            "evaluation mode, and the others get no gradient"
        )


def _train(model: InflatedModel, images: Tensor) -> str:
    """Trains a copy for one step; returns the class of what the network returned, empty if that was a tensor."""
    kinds: list[str] = []
    video = copied(model).train()
    video.network.register_forward_hook(
        lambda module, inputs, output: kinds.append("" if isinstance(output, Tensor) else type(output).__name__)
    )
    with torch.enable_grad():
        logits = video(images.unsqueeze(2))
        if logits.shape != (len(images), model.num_classes or model.head_features):
            raise ConfigError(
                f"in training mode it gives {tuple(logits.shape)} for {len(images)} clips, not one vector for each"
            )
        loss = logits.float().square().sum()
        if loss.requires_grad:
            loss.backward()  # not `torch.autograd.grad`, with which reentrant checkpoints do not work
    return next(iter(kinds), "")


def _why_not_trainable(network: nn.Module, images: Tensor) -> str | None:
    """Returns why a network cannot be trained for one step; None if it can."""
    try:
        with torch.enable_grad():
            found = [tensor for tensor in tensors_in(copied(network).train()(images)) if tensor.requires_grad]
            if found:
                torch.stack([tensor.float().square().sum() for tensor in found]).sum().backward()
    except Exception as error:  # whatever a network's own code raises
        return in_words(error)
    return None


def _one_by_one(network: nn.Module, images: Tensor, read: Reader) -> Tensor:
    return torch.cat([read(network(images[index : index + 1])) for index in range(len(images))])


@torch.no_grad()
def check_foldable(network: nn.Module, observed: Observed, *, name: str, read: Reader) -> None:
    """Checks that what a network computes for an image depends on the image alone, and that it leaves the image as is.

    It runs only where it did not show when it was examined. Where rounding is magnified, float64 decides.

    Args:
        network: Takes images.
        observed: What was seen of the network.
        name: How messages call the network.
        read: Where the logits are in what it returns.

    Raises:
        ConfigError: If not; then frames cannot be folded into the batch.
    """
    images = observed.images
    problem = "" if observed.folds else _why_not_foldable(network, images, read, MIXED)
    if not problem:
        return
    if "overwrites" not in problem:
        try:
            if not _why_not_foldable(copied(network).double(), images.double(), read, MIXED_EXACTLY):
                return
        except Exception as error:  # whatever a network's own code raises
            limit = ROUNDINGS * _rounding(network, images, read)
            if not _why_not_foldable(network, images, read, limit):
                return
            problem += f" (in {str(images.dtype).removeprefix('torch.')}; in float64 it fails: {in_words(error)})"
    raise ConfigError(f"{name}: {problem}")


def _rounding(network: nn.Module, images: Tensor, read: Reader) -> float:
    """Returns how much a change of an image's last bit changes its logits, relative to the largest of them."""
    step = torch.finfo(images.dtype).eps
    signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).sign().to(images)
    moved = images * (1 + step * signs)
    with no_training(network):
        expected = read(network(images.clone()))
        return ((read(network(moved)) - expected).abs().max() / expected.abs().max()).item()


def _why_not_foldable(network: nn.Module, images: Tensor, read: Reader, limit: float) -> str:
    """Returns why frames cannot be folded into the batch; empty if they can."""

    def differs(first: Tensor, second: Tensor) -> bool:
        apart = torch.where(first == second, 0, first - second).abs().max()  # infinite logits may be equal
        return not apart <= limit * first[first.isfinite()].abs().max()  # so that NaN differs

    with no_training(network):
        given = images.clone()
        together = read(network(given))
        if not torch.equal(given, images):
            return "overwrites the images that it is given; let it work on a copy"
        if together.isnan().any():
            return "gives logits that are not numbers"
        # Alone, and for the second time; the first and the last show, too, if the place in the batch counts.
        if not differs(together, _one_by_one(network, images, read)):
            return ""
        if differs(together, read(network(images))):
            return "gives other logits for the same images the second time, also in evaluation mode"
    return "the logits of an image depend on the other images in its batch, so frames cannot be folded into the batch"


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
        part = dict(model.network.named_modules()).get(name)
        if isinstance(part, TemporalConv) and part.kernel_size[0] > 1 and len(pairs) < 3:
            before: Any = network.get_submodule(name)
            pairs.append(FilterPair(name, before.weight.detach(), part.weight.detach()))
    return pairs
