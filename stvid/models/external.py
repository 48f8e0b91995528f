"""Video models of other libraries behind stvid's API: ``torchvision/<name>`` and ``pytorchvideo/<name>``.

A network is built by the library's own function (`torchvision.models.video`; `pytorchvideo.models.hub`, whose models
are those of PyTorchVideo's model zoo), which also decides which hyperparameters there are. The wrapper adds the rest of
the API: one clip in, logits out, features, layer groups, recomputed activations, the published protocol, checkpoints.

What a wrapper changes in a network:

- The classifier moves to `head`; all other weights keep the library's names behind ``network.``, and the library's
  checkpoints load as they are. Those of facebookresearch/SlowFast (``MODEL_ZOO.md``) load in torchvision's MViT;
  PyTorchVideo's has another epsilon in its pools (1e-5 for 1e-6): there they are refused.
- A final softmax is left out: the output is logits.

Two groups of models are left out: those that stvid has itself (`NATIVE` says under which name; the libraries' files
load there), and PyTorchVideo's ``slow_r50_detection`` and ``slowfast_r50_detection``, which take boxes besides the
clip. `pytorchvideo.transforms`, which does not import with a current torchvision, is never imported.

The published facts about them stand in libraries.py, so that listing them imports neither library.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, rename_keys, resize_grid, run_blocks
from stvid.models.following import follow_norms
from stvid.models.heads import LinearHead

__all__ = ["LibraryModel", "build_library_model"]

Rules = Sequence[tuple[str, str]]
MODULES = {"pytorchvideo": "pytorchvideo.models.hub", "torchvision": "torchvision.models.video"}


class LibraryModel(VideoModel):
    """A network of another library; a subclass says where the parts of one architecture are.

    Args:
        network: The network that the library built.
        num_classes: Number of logits.
        in_chans: Channels of the clip.
        num_frames: Frames of a clip.
        img_size: (height, width) in pixels.

    Attributes:
        network: The network without its classifier.
        classifier: Dotted name that the classifier has in the library's network.
        minimum: The smallest clip (T, H, W).
        reduction: Strides of the whole network in time, height and width.
        groups: The layer groups that `group_matcher` returns.
        slowfast_rules: From the keys of facebookresearch/SlowFast to the library's; empty if there is no such layout.
        refused: Arguments of the library's function that would make another head than the wrapper expects.
    """

    classifier: ClassVar[str]
    names_attention = False  # the library's own attention is not stvid's
    minimum: tuple[int, int, int]
    reduction: tuple[int, int, int]
    groups: ClassVar[dict[str, Any]]
    slowfast_rules: ClassVar[Rules] = ()
    refused: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, network: nn.Module, *, num_classes: int, in_chans: int, num_frames: int, img_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.clip_size = (num_frames, *img_size)
        parent, _, leaf = self.classifier.rpartition(".")
        classifier = network.get_submodule(self.classifier)
        setattr(network.get_submodule(parent), leaf, nn.Identity())
        self.network = network
        if not isinstance(classifier, nn.Linear):
            raise TypeError(f"{type(self).__name__}: the classifier {self.classifier} is no linear layer")
        self.head = LinearHead(classifier.in_features, num_classes)
        if num_classes:
            self.head.fc = classifier
        self.num_features = self.feature_channels()
        self.feature_info = [FeatureInfo("network", self.num_features, self.reduction)]

    @classmethod
    def arguments(
        cls, *, num_classes: int, in_chans: int, num_frames: int, img_size: tuple[int, int]
    ) -> dict[str, Any]:
        """Returns these settings under the names that the library's function has for them.

        Raises:
            ConfigError: If the architecture cannot be built like this.
        """
        if in_chans != 3:
            raise ConfigError(f"in_chans {in_chans}: the library builds this model for 3 channels only")
        return {"num_classes": num_classes}

    def blocks(self) -> list[Callable[[Any], Any]]:
        """Returns the parts that a clip goes through before the pool, in order; each can be recomputed on its own."""
        raise TypeError(f"{type(self).__name__} does not implement blocks")

    def pool(self, features: Tensor) -> Tensor:
        """Pools the output of `forward_features` to the input of the classifier, (B, head_features)."""
        raise TypeError(f"{type(self).__name__} does not implement pool")

    def feature_channels(self) -> int:
        """Returns the channels of the features: as many as the classifier takes."""
        return self.head_features

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the network up to its pooling: maps (B, C, T', H', W'), or for MViT tokens, the class token first."""
        return tap(0, self.run(clip))

    def run(self, clip: Tensor) -> Tensor:
        """Runs all blocks over a clip (B, in_chans, T, H, W)."""
        self._check_clip(clip, minimum=self.minimum)
        return run_blocks(self.blocks(), clip, recompute=self.grad_checkpointing)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Returns the logits of features, or the input of the classifier, by the library's own pooling."""
        return self.head(self.pool(features), pre_logits=pre_logits)

    def norm_pairs(self, clip: Tensor | None = None) -> list[tuple[str, str]]:
        """Returns which batch norm stands beside which convolution, found by following one forward pass."""
        return follow_norms(self, (2, self.in_chans, *self.clip_size), clip)

    def reset_classifier(self, num_classes: int, *, head: Literal["default", "attentive"] = "default") -> None:
        """Replaces the classifier by a freshly initialised one.

        Raises:
            ConfigError: If another head than the library's is asked for.
        """
        if head != "default":
            raise ConfigError(f"head {head!r}: a model of another library keeps the head that it has there")
        super().reset_classifier(num_classes)

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every block in order."""
        return self.groups

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the library's layout, and SlowFast's where it is the same network, into our keys."""
        if any(key.startswith("network.") for key in state):
            return "stvid", dict(state)
        name = str(self.recipe.get("name", "library")).partition("/")[0]
        if self.slowfast_rules and "head.projection.weight" in state:
            name, state = "SlowFast", rename_keys(state, self.slowfast_rules)
        own = {}
        for key, value in state.items():
            if key.startswith(f"{self.classifier}."):
                own[f"head.fc{key[len(self.classifier) :]}"] = value
            else:
                own[f"network.{key}"] = value
        return name, own


# --- MViT, of both libraries ------------------------------------------------------------------------------------------


class _MViT(LibraryModel):
    """Base of the MViTs, whose tables of positions fix the size of the clip.

    Attributes:
        strides: Frames and pixels of a token of the first block.
    """

    gives_maps = False
    num_prefix_tokens = 1
    minimum = (1, 1, 1)
    reduction = (2, 32, 32)
    strides: ClassVar[tuple[int, int, int]] = (2, 4, 4)

    @classmethod
    def _check_size(cls, num_frames: int, img_size: tuple[int, int]) -> None:
        if any(size % stride for size, stride in zip((num_frames, *img_size), cls.strides, strict=True)):
            raise ConfigError(
                f"{num_frames} frames of {img_size[0]}x{img_size[1]} pixels: this MViT takes multiples of "
                f"{cls.strides[0]} frames and of {cls.strides[1]} pixels"
            )

    def _check_clip(self, clip: Tensor, *, minimum: tuple[int, int, int] = (1, 1, 1)) -> None:
        super()._check_clip(clip, minimum=minimum)
        if tuple(clip.shape[2:]) != self.clip_size:
            built, given = (f"{t} frames of {h}x{w} pixels" for t, h, w in (self.clip_size, clip.shape[2:]))
            raise ValueError(
                f"this MViT was built for {built}, not {given}; build it with other num_frames and img_size"
            )

    def _run(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Takes tokens (B, 1 + T'H'W', C) of a grid (T', H', W') through all blocks."""
        network: Any = self.network
        blocks: Any = [functools.partial(_run_block, block) for block in network.blocks]
        state: Any = (tokens, grid)
        return run_blocks(blocks, state, recompute=self.grad_checkpointing)[0]

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of absolute positions linearly; a published one is that of a square.

        The tables of relative positions (MViTv2) keep their length: torchvision resizes them in each forward pass.
        """
        own = self.state_dict()[key].shape
        leaf = key.rpartition(".")[2]
        cells = table.numel() // table.shape[-1]
        if "temporal" in leaf:
            old, new = [cells], [own.numel() // own[-1]]
        elif "spatial" in leaf:
            height, width = built["img_size"] if "img_size" in built else [self.strides[1] * math.isqrt(cells)] * 2
            old = [height // self.strides[1], width // self.strides[2]]
            new = [self.clip_size[1] // self.strides[1], self.clip_size[2] // self.strides[2]]
        else:
            return None
        if math.prod(old) != cells:
            return None
        return resize_grid(table.reshape(1, cells, -1), old, new, mode="linear").reshape(own)


def _run_block(block: nn.Module, state: tuple[Tensor, Sequence[int]]) -> tuple[Tensor, Sequence[int]]:
    return block(*state)


class TorchvisionMViT(_MViT):
    """MViT and MViTv2 of torchvision/models/video/mvit.py."""

    classifier = "head.1"
    groups: ClassVar[dict[str, Any]] = {
        "stem": r"^network\.(?:conv_proj|pos_encoding)\.",
        "blocks": [(r"^network\.blocks\.(\d+)\.", None), (r"^network\.norm\.", (99999,))],
    }
    slowfast_rules: ClassVar[Rules] = (
        (r"^patch_embed\.proj\.", "conv_proj."),
        (r"^cls_token$", "pos_encoding.class_token"),
        (r"^pos_embed_(spatial|temporal|class)$", r"pos_encoding.\1_pos"),
        (r"\.attn\.proj\.", ".attn.project.0."),
        (r"\.attn\.pool_([qkv])\.", r".attn.pool_\1.pool."),
        (r"\.attn\.norm_([qkv])\.", r".attn.pool_\1.norm_act.0."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^(blocks\.\d+)\.proj\.", r"\1.project."),
        (r"^head\.projection\.", "head.1."),
    )

    def __init__(self, network: nn.Module, **arguments: Any) -> None:
        super().__init__(network, **arguments)
        frames, *side = (size // stride for size, stride in zip(self.clip_size, self.strides, strict=True))
        old: Any = network.get_submodule("pos_encoding")
        if (old.temporal_size, *old.spatial_size) != (frames, *side):  # the builders take one size only
            new = type(old)(
                embed_size=old.class_token.numel(),
                spatial_size=tuple(side),
                temporal_size=frames,
                rel_pos_embed=old.spatial_pos is None,
            )
            for table in new.parameters():
                nn.init.trunc_normal_(table, std=0.02)
            network.pos_encoding = new

    @classmethod
    def arguments(
        cls, *, num_classes: int, in_chans: int, num_frames: int, img_size: tuple[int, int]
    ) -> dict[str, Any]:
        """Returns the arguments of the library's function."""
        cls._check_size(num_frames, img_size)
        return super().arguments(num_classes=num_classes, in_chans=in_chans, num_frames=num_frames, img_size=img_size)

    def run(self, clip: Tensor) -> Tensor:
        """Returns the normalised tokens."""
        self._check_clip(clip)
        network: Any = self.network
        patches = network.conv_proj(clip)
        tokens = network.pos_encoding(patches.flatten(2).transpose(1, 2))
        return network.norm(self._run(tokens, patches.shape[2:]))

    def pool(self, features: Tensor) -> Tensor:
        """Takes the class token."""
        network: Any = self.network
        return network.head(features[:, 0].contiguous())

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of torchvision and SlowFast into our keys."""
        name, own = super().convert_checkpoint(state)
        if name == "SlowFast":  # its tables have an axis for the batch, of length 1
            for key in own:
                if key.startswith("network.pos_encoding."):
                    own[key] = own[key].squeeze(0).squeeze(0) if "class" in key else own[key].squeeze(0)
        return name, own


class PyTorchVideoMViT(_MViT):
    """MViT of pytorchvideo/models/vision_transformers.py."""

    classifier = "head.proj"
    refused = ("cls_embed_on", "enable_patch_embed", "head", "head_activation", "use_2d_patch")
    groups: ClassVar[dict[str, Any]] = {
        "stem": r"^network\.(?:patch_embed|cls_positional_encoding)\.",
        "blocks": [(r"^network\.blocks\.(\d+)\.", None), (r"^network\.norm_embed\.", (99999,))],
    }

    @classmethod
    def arguments(
        cls, *, num_classes: int, in_chans: int, num_frames: int, img_size: tuple[int, int]
    ) -> dict[str, Any]:
        """Returns the arguments of the library's function."""
        cls._check_size(num_frames, img_size)
        return {
            "head_num_classes": num_classes,
            "input_channels": in_chans,
            "spatial_size": img_size,
            "temporal_size": num_frames,
        }

    def _patches(self, clip: Tensor) -> Tensor:
        network: Any = self.network
        return network.patch_embed(clip)

    def run(self, clip: Tensor) -> Tensor:
        """Returns the normalised tokens."""
        self._check_clip(clip)
        network: Any = self.network
        tokens = network.cls_positional_encoding(self._patches(clip))
        for layer in (network.pos_drop, network.norm_patch_embed):
            tokens = tokens if layer is None else layer(tokens)
        return network.norm_embed(self._run(tokens, network.cls_positional_encoding.patch_embed_shape))

    def pool(self, features: Tensor) -> Tensor:
        """Takes the class token."""
        network: Any = self.network
        return network.head(features)


class PyTorchVideoImageMViT(PyTorchVideoMViT):
    """MViT for images: its clips have one frame."""

    reduction = (1, 32, 32)
    strides: ClassVar[tuple[int, int, int]] = (1, 4, 4)

    @classmethod
    def _check_size(cls, num_frames: int, img_size: tuple[int, int]) -> None:
        if num_frames != 1:
            raise ConfigError(f"num_frames {num_frames}: this MViT takes images, that is clips of 1 frame")
        super()._check_size(num_frames, img_size)

    def _patches(self, clip: Tensor) -> Tensor:
        return super()._patches(clip[:, :, 0])


# --- how they are built ----------------------------------------------------------------------------------------------

# Arguments of the libraries' functions that fetch weights.
_WEIGHT_ARGUMENTS = ("checkpoint_path", "pretrained", "progress", "weights")


def build_library_model(
    library: str,
    name: str,
    wrapper: type[LibraryModel],
    *,
    num_classes: int,
    num_frames: int,
    img_size: tuple[int, int],
    in_chans: int = 3,
    **hyperparameters: Any,
) -> LibraryModel:
    """Builds a network of a library and wraps it; `hyperparameters` are those of the library's function."""
    for key, value in hyperparameters.items():
        if key in _WEIGHT_ARGUMENTS:
            raise TypeError(f"{library}/{name} takes no {key!r}: weights are read from a file (checkpoint)")
        if callable(value):
            raise TypeError(f"{library}/{name}: {key!r} is an object, which cannot be stored with the weights")
    fixed = wrapper.arguments(num_classes=num_classes or 1, in_chans=in_chans, num_frames=num_frames, img_size=img_size)
    for key in hyperparameters:
        if key in fixed or key in wrapper.refused:
            raise TypeError(f"{library}/{name} takes no {key!r}: stvid sets the head, the classes and the clip's size")
    function = getattr(_load_library(library), name)
    device = torch.empty(0).device
    with torch.device("cpu"):  # MViT's builders compute with tensors, which fails on the meta device
        network = function(**fixed, **hyperparameters)
    return wrapper(
        network.to(device), num_classes=num_classes, in_chans=in_chans, num_frames=num_frames, img_size=img_size
    )


def _load_library(library: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of modules that PyTorchVideo imports
            return importlib.import_module(MODULES[library])
    except ImportError as error:
        if importlib.util.find_spec(library) is None:
            raise ConfigError(f"{library} is not installed: pip install 'stvid[{library}]'") from error
        raise ConfigError(f"{library} is installed but does not import: {error}") from error
