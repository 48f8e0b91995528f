"""The 2D parents of the hand-written families: `inflate_parent` starts a video model from its image model.

What becomes of each tensor is in parent_rules.py, what is known of the image networks in image_networks.py. Here is the
proof: one image, repeated over time, goes through the video model, and as an image through the 2D network, both in
float64 and on the CPU. Where every layer that was added passes its input on a still video, the outputs are equal but
for rounding. Where they cannot be, the report says "approximate", why, and by how much; and where the reason can be
taken away (another GELU, a grid that is one pixel off), also how much is left then.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.checkpoints import read_checkpoint, unwrap
from stvid.errors import CheckpointError, ConfigError, StvidError
from stvid.inflation.image_networks import KINDS, ImageNetwork, Kind, gelu_of, recognise_network, without_head
from stvid.inflation.parent_rules import PARENT_OF, fill
from stvid.inflation.report import EXACT, FilterPair, InflationReport, LayerDifference
from stvid.inflation.sources import LIBRARIES, ImageOrigin, parse_source
from stvid.inflation.transfer import Init, Transfer
from stvid.models.base import VideoModel
from stvid.models.blocks import Attention
from stvid.models.families.i3d import WINDOW, InceptionVideo
from stvid.models.families.uniformer import UniFormer
from stvid.models.families.video_resnet import VideoResNet
from stvid.models.families.vivit import ViViT
from stvid.models.families.xvit import MixingAttention, XViT
from stvid.models.registry import create_model, list_models, model_info

__all__ = ["InflatedParent", "inflate_parent", "models_with_parent"]

Source = str | os.PathLike[str] | Mapping[str, Any] | nn.Module
PIXELS = 224  # that most image networks are trained with
DRAWN = 2  # kernels in the HTML report
BLOCK = re.compile(r"(layer[1-4]|mixed[3-5]|blocks[1-4]?|layers\.\d\.blocks|encoder\.blocks)\.\d+")
ROUNDING = 1e-8  # of the outputs: two images that differ by less say nothing, in float64
PROOF_FRAMES = 32  # at most; more show nothing else


@dataclass
class InflatedParent:
    """What `inflate_parent` returns.

    Attributes:
        model: The video model, in evaluation mode. Its protocol normalises frames as the 2D parent's images.
        report: The rule of every tensor, and the proof.
    """

    model: VideoModel
    report: InflationReport


def models_with_parent(kind: Kind | None = None) -> list[str]:
    """Returns the names of the models that have a 2D parent, of one kind or of any; see `PARENT_OF`."""
    return [name for name in list_models() if (found := _kind_of(name)) is not None and kind in (None, found)]


def inflate_parent(
    source: Source,
    to: str,
    *,
    weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    pretrained: bool = False,
    num_frames: int | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    init: Init | None = None,
    prove: bool = True,
    **hyperparameters: Any,
) -> InflatedParent:
    """Builds a hand-written video model from the weights of its 2D parent.

    Args:
        source: A file of weights or a mapping (the layouts of `stvid.inflation.image_networks`, with or without
            wrappers), ``timm:<name>``, ``torchvision:<name>``, or the 2D network itself.
        to: The video model, one of `models_with_parent`.
        weights: Weights for a named source.
        pretrained: Whether a named source gets its published weights, from the network or the library's cache.
        num_frames: Frames of a clip; None takes the model's own.
        num_classes: Number of logits; None takes the parent's, and with that its classifier.
        img_size: Side of the input in pixels, or (height, width); None takes the model's own.
        init: Kernels in time: ``center``, zeros in all frames but the central one; ``average``, an equal share in each.
            None takes ``average`` for Video Swin, as its authors do, and else ``center``, which zero padding at the
            ends of a clip does not disturb. Convolutions in time alone, where a family splits its kernels, start as the
            identity either way.
        prove: Whether to compare both networks on a still video.
        **hyperparameters: Further arguments of the model's constructor.

    Returns:
        The model and the report.

    Raises:
        UnknownNameError: If there is no such model or source; the message lists the nearest names.
        ConfigError: If the model has no 2D parent, or one of another kind, or cannot be built with these arguments.
        CheckpointError: If the weights cannot be read or do not fit; the message lists the models that they fit.
    """
    kind = _kind_of(to)
    if kind is None:
        raise ConfigError(f"{to}: has no known 2D parent; those that have one: {', '.join(models_with_parent())}")
    if init is not None and init not in get_args(Init):
        raise ConfigError(f"init {init!r}: choose one of {', '.join(get_args(Init))}")
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 0):
        raise ConfigError(f"num_classes {num_classes!r}: must be a whole number; 0 leaves the classifier out")
    network, name = _read_source(source, weights=weights, pretrained=pretrained)
    if network.kind != kind:
        raise ConfigError(
            f"{name}: is a {KINDS[network.kind]}, {to} descends from a {KINDS[kind]}; models for it: "
            f"{', '.join(models_with_parent(network.kind))}"
        )
    classes = network.num_classes or 400 if num_classes is None else num_classes
    with _as_config_error(to):
        model = create_model(to, num_classes=classes, num_frames=num_frames, img_size=img_size, **hyperparameters)
    model.eval()
    transfer = Transfer(network, model, init=init or ("average" if kind == "swin" else "center"))
    try:
        fill(transfer)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: a {network.describe()} does not become {to}: {error}{_fitting(network)}"
        ) from None
    model.default_protocol = model.default_protocol.replace(mean=network.mean, std=network.std)
    report = InflationReport(name, to, transfer.rows)
    if prove:
        with _as_config_error(to):
            compare(transfer, report)
    return InflatedParent(model, report)


@contextlib.contextmanager
def _as_config_error(name: str) -> Iterator[None]:
    """Turns the ValueError of a model that cannot be built, or cannot take its clip, into one for the user."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, StvidError):
            raise
        raise ConfigError(f"{name}: {error}") from error


def _fitting(network: ImageNetwork) -> str:
    """Returns a hint with the models that take a network as it is, found by trying all on the meta device."""
    shapes = copy.copy(network)
    shapes.state, shapes.module = {key: value.to("meta") for key, value in network.state.items()}, None
    fitting = []
    for candidate in models_with_parent(network.kind):
        try:
            fill(Transfer(shapes, _weightless(candidate), init="center"))
        except CheckpointError:
            continue
        fitting.append(candidate)
    return f"; it fits {', '.join(fitting)}" if fitting else ""


@functools.cache
def _weightless(name: str) -> VideoModel:
    """Builds a model of shapes alone, as its name says it."""
    info = model_info(name)
    size = (info.protocol.crop, info.protocol.crop)
    with torch.device("meta"):
        return info.build(num_classes=400, num_frames=info.protocol.frames, img_size=size)


def _kind_of(name: str) -> Kind | None:
    package, _, family = model_info(name).build.__module__.rpartition(".")
    return PARENT_OF.get(family) if package == "stvid.models.families" else None


def _read_source(
    source: Source, *, weights: str | os.PathLike[str] | Mapping[str, Any] | None, pretrained: bool
) -> tuple[ImageNetwork, str]:
    """Returns the 2D network and what to call it in messages."""
    if not isinstance(source, str | os.PathLike) and (weights is not None or pretrained):
        raise ConfigError(
            f"{type(source).__name__}: has its weights; weights and pretrained are for timm:<name> and such"
        )
    if isinstance(source, Mapping):
        return recognise_network(unwrap(source), name="mapping"), "mapping"
    if isinstance(source, nn.Module):
        name = type(source).__name__
        return recognise_network(source.state_dict(), module=source, name=name), name
    name = str(source)
    if not name.startswith(tuple(f"{library}:" for library in LIBRARIES)):
        if weights is not None or pretrained:
            raise ConfigError(
                f"{name}: is a file of weights itself; weights and pretrained are for timm:<name> and such"
            )
        return recognise_network(unwrap(read_checkpoint(name)), name=name), name
    origin = ImageOrigin(*parse_source(name))
    side = origin.settings()["crop"]
    if pretrained and weights is not None:
        raise ConfigError("give either weights or pretrained, not both")
    module = origin.build(num_classes=0, img_size=(side, side), pretrained=pretrained)
    if weights is None:
        return recognise_network(module.state_dict(), module=module, name=name), name
    content, name = (weights, "mapping") if isinstance(weights, Mapping) else (read_checkpoint(weights), str(weights))
    network = recognise_network(unwrap(content), name=name)
    network.adopt_settings(module)
    return network, name


# --- the proof --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def compare(transfer: Transfer, report: InflationReport, *, seed: int = 0) -> None:
    """Feeds two images to the 2D network, and each repeated over time to the video model; fills in the report.

    There are two, since the outputs of an untrained network hardly depend on its input: a difference between the
    networks is measured against the difference that the image makes.

    Args:
        transfer: After `fill`.
        report: Gets the differences, what was compared, and the reasons where they are not equal.
        seed: Of the images, whose values are normally distributed.
    """
    model, network = transfer.model, transfer.network
    heads: Any = next((part.num_heads for part in model.modules() if isinstance(part, Attention)), None)
    if isinstance(model, UniFormer):  # of stages 3 and 4
        heads = [model.get_submodule(f"blocks{stage}.0.attn").num_heads for stage in (3, 4)]
    parent = network.build(num_heads=heads, resized=transfer.resized)
    if transfer.new_head:
        parent = without_head(parent)
    size = _proof_size(transfer)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    video = copy.deepcopy(model).double().eval()
    frames = min(model.default_protocol.frames, PROOF_FRAMES)

    def relative(still: Tensor, moved: Tensor | None = None) -> float:
        clip = (still if moved is None else moved).unsqueeze(2).expand(-1, -1, frames, -1, -1)
        expected = parent(still)
        found = (_features(video, clip) if transfer.new_head else video(clip)).view(2, -1, expected.shape[1])
        scale = max((expected[0] - expected[1]).abs().max().item(), ROUNDING * expected.abs().max().item())
        return (found - expected.unsqueeze(1)).abs().max().item() / scale

    if transfer.new_head:
        report.compared = "features before the classifier"
        if isinstance(model, XViT) or hasattr(model, "temporal_encoder"):
            report.compared = "features of each frame, before the transformer over frames"
    report.filters = [FilterPair(*pair) for pair in transfer.filters[:DRAWN]]
    with _watch_blocks(transfer, parent, video) as report.layers:
        report.difference = relative(image)
    if report.exact:
        return
    _note_windows(transfer, size)
    report.reasons = left = transfer.reasons
    done = []
    moved = None

    def explained(reason: str, alignment: str) -> None:
        nonlocal left
        left = [given for given in left if reason not in given]
        done.append(alignment)

    if isinstance(model, InceptionVideo) and model.pool1.pad:  # S3D differs at each pool
        image[..., -1, :] = image[..., :, -1] = 0
        moved = F.pad(image, (1, -1, 1, -1))
        explained("one pixel off", "the clip moved by one pixel")
    attention_type = getattr(model, "attention_type", "")
    if attention_type == "factorised_self_attention":
        parent = network.build(num_heads=heads, resized=transfer.resized, class_token=False)
        parent = without_head(parent) if transfer.new_head else parent
        explained("no class token", "no class token in either")
    if network.kind == "vit" and _replace_gelu(parent, video):
        explained("GELU", "the same GELU in both")
    if attention_type in ("joint", "joint_space_time"):
        frames = model.tubelet_size[0] if isinstance(model, ViViT) else 1
        explained("class token", "a clip that is one token long")
    if isinstance(model, XViT):
        for part in video.modules():
            if isinstance(part, MixingAttention):
                part.shift_div = model.num_features + 1
        explained("neighbouring frames", "no channels exchanged between frames")
    if done:
        report.aligned, report.alignment = relative(image, moved), " and ".join(done)
        if not left and report.aligned >= EXACT:
            report.reasons = []  # none of them is the cause


@contextlib.contextmanager
def _watch_blocks(transfer: Transfer, parent: nn.Module, video: VideoModel) -> Iterator[list[LayerDifference]]:
    """Compares the blocks of both networks while they run; the list is filled at the end.

    Blocks arrange their tokens in many ways, so each channel's mean over all places but the class token is compared.
    """
    network = transfer.network
    means: list[list[Tensor]] = []
    names: list[str] = []
    handles = []

    def watch(module: nn.Module, seen: list[Tensor], *, channels: int, first: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            places = output.movedim(channels, -1).flatten(1, -2)[:, first:]
            seen.append(places.reshape(2, -1, places.shape[-1]).mean(1))

        return module.register_forward_hook(hook)

    tokens, last = network.kind == "vit", network.kind in ("vit", "swin")
    own_first = int(tokens and getattr(getattr(video, "encoder", None), "class_token", True))
    for name, module in video.named_modules():
        if not BLOCK.fullmatch(name):
            continue
        canonical = transfer.rename(f"{name}.").removesuffix(".")
        twin = _twin(network, parent, canonical)
        if twin is None:
            continue
        pair: list[Tensor] = []
        names.append(canonical)
        means.append(pair)
        handles.append(watch(twin, pair, channels=-1 if last else 1, first=int(tokens)))
        handles.append(watch(module, pair, channels=-1 if last else 1, first=own_first))
    layers: list[LayerDifference] = []
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
    for name, (expected, found) in zip(names, means, strict=True):
        layers.append(LayerDifference(name, ((found - expected).abs().max() / expected.abs().max()).item()))


def _twin(network: ImageNetwork, parent: nn.Module, name: str) -> nn.Module | None:
    """Returns a block of the 2D network, which has its kind's names if stvid built it, else its own."""
    modules = dict(parent.named_modules())
    if name in modules:
        return modules[name]
    key = next((key for key in network.names if key.startswith(f"{name}.")), None)
    if key is None:
        return None
    below = key.removeprefix(f"{name}.").count(".") + 1
    return modules.get(network.names[key][0].rsplit(".", below)[0])


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


def _features(video: VideoModel, clip: Tensor) -> Tensor:
    """Returns what the classifier sees, or with a transformer over frames what that sees of each."""
    if not (isinstance(video, XViT) or hasattr(video, "temporal_encoder")):
        video.head = nn.Identity()
        return video(clip)
    layer = video.get_submodule("norm" if isinstance(video, XViT) else "encoder")
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    video(clip)
    handle.remove()
    return seen[0] if seen[0].dim() == 2 else seen[0][:, 0]


def _note_windows(transfer: Transfer, size: tuple[int, int]) -> None:
    """Notes a head that averages over windows smaller than its map, which weighs the middle more."""
    model = transfer.model
    window = WINDOW if isinstance(model, InceptionVideo) else getattr(model, "pool_size", None)
    if window is None:
        return
    divisor = 16 if isinstance(model, VideoResNet) and len(model.stem) < 4 else 32
    height, width = (-(-side // divisor) for side in size)
    if window[1] < height or window[2] < width:
        transfer.note(
            f"the head averages over windows of {window[1]}x{window[2]}, the parent's over all {height}x{width}"
        )


def _replace_gelu(parent: nn.Module, video: nn.Module) -> bool:
    """Gives the 2D network the video model's GELU, in place; False if it has that already."""
    approximate = next(part.approximate for part in video.modules() if isinstance(part, nn.GELU))
    replaced = False
    for module in list(parent.modules()):
        for name, part in module.named_children():
            if gelu_of(part) not in (None, approximate):
                setattr(module, name, nn.GELU(approximate=approximate))
                replaced = True
    return replaced
