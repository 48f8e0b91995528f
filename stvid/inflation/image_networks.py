"""The 2D networks that hand-written families descend from: their published layouts, read into one naming each.

Five kinds of network are known; what each is called afterwards is what its best known code calls it:

- ``resnet``: ResNet and ResNeXt as in torchvision/models/resnet.py (stride at the 3x3 convolution); timm's plain ones
  have the same keys. SlowFast's ImageNet weights (``s1.pathway0_stem.conv``) are renamed.
- ``inception``: torchvision's GoogLeNet, whose "5x5" branch has 3x3 kernels, as I3D's has 3x3x3.
- ``vit``: as in timm/models/vision_transformer.py; torchvision's keys and the authors' flax parameters
  (google-research/vision_transformer, ``ViT-B_16.npz``) are renamed, layer scales are multiplied into their layers.
- ``swin``: as in microsoft/Swin-Transformer; timm's (a merging counts to the next stage) and torchvision's are renamed.
- ``uniformer``: as in Sense-X/UniFormer, image_classification/models/uniformer.py, layer scales multiplied in.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stvid.errors import CheckpointError
from stvid.inflation.uniformer_image import UniFormerImage
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Gelu", "ImageNetwork", "Kind", "gelu_of", "recognise_network", "without_head"]

Kind = Literal["resnet", "inception", "vit", "swin", "uniformer"]
Gelu = Literal["none", "tanh", "quick"]
KINDS: dict[Kind, str] = {
    "resnet": "ResNet",
    "inception": "GoogLeNet",
    "vit": "ViT",
    "swin": "Swin",
    "uniformer": "UniFormer",
}
HALF = (0.5, 0.5, 0.5)
BUFFER = "an index buffer, made anew"


@dataclass
class ImageNetwork:
    """A 2D network in the naming of its kind.

    Attributes:
        kind: See the head of this file.
        layout: Whose keys the source has.
        state: The weights under this kind's names.
        names: For each of these names, the source's tensors that it was made from.
        shapes: Shapes of the source's tensors, under their own names.
        notes: How it was made from them, where that is more than a new name.
        dropped: The source's tensors that no video model takes, with the reason.
        module: The network itself if the source was one, not just its weights.
        mean: Means of the normalisation that the weights were trained with.
        std: Standard deviations of that normalisation.
        norm_eps: Epsilon of its batch norms.
        gelu: torch's name of its GELU, ``none`` or ``tanh``; ``quick`` for CLIP's.
    """

    kind: Kind
    layout: str
    state: dict[str, Tensor]
    names: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    module: nn.Module | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    norm_eps: float = 1e-5
    gelu: Gelu = "none"

    @property
    def head(self) -> str:
        """The classifier's name."""
        return "fc" if self.kind in ("resnet", "inception") else "head"

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None if there is no classifier."""
        weight = self.state.get(f"{self.head}.weight")
        return None if weight is None else weight.shape[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of a ViT's table of positions, which is taken to be square."""
        side = math.isqrt(self.state["pos_embed"].shape[1] - ("cls_token" in self.state))
        return side, side

    @property
    def window(self) -> int:
        """Side of a Swin's windows."""
        table = self.state["layers.0.blocks.0.attn.relative_position_bias_table"]
        return (math.isqrt(table.shape[0]) + 1) // 2

    @property
    def depth(self) -> tuple[int, ...]:
        """Blocks of each stage; one number for a ViT."""
        patterns = {
            "resnet": r"layer(\d)\.(\d+)\.conv1\.weight",
            "vit": r"(blocks)\.(\d+)\.norm1\.weight",
            "swin": r"layers\.(\d)\.blocks\.(\d+)\.norm1\.weight",
            "uniformer": r"blocks(\d)\.(\d+)\.norm1\.weight",
        }
        if self.kind == "inception":
            return (2, 5, 2)
        found: dict[str, int] = {}
        for key in self.state:
            if match := re.fullmatch(patterns[self.kind], key):
                found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
        return tuple(found[stage] for stage in sorted(found))

    def describe(self) -> str:
        """Names the network for a message, such as ``ResNet of depth (3, 4, 6, 3), bottlenecks``."""
        text = KINDS[self.kind]
        if self.kind == "resnet":
            text += f" of depth {self.depth}"
            if "layer1.0.conv3.weight" in self.state:
                kernel = self.state["layer1.0.conv2.weight"]
                groups = kernel.shape[0] // kernel.shape[1]
                text += f", bottlenecks{f' of {groups} groups x {kernel.shape[1]}' if groups > 1 else ''}"
            else:
                text += ", basic blocks"
        elif self.kind == "vit":
            dim, _, *patch = self.state["patch_embed.proj.weight"].shape
            text += f" of {self.depth[0]} blocks, {dim} channels, patches of {patch[0]}x{patch[1]}"
        elif self.kind in ("swin", "uniformer"):
            first = "patch_embed" if self.kind == "swin" else "patch_embed1"
            text += f" of depth {self.depth}, {self.state[f'{first}.proj.weight'].shape[0]} channels at first"
        return text

    def build(
        self,
        *,
        num_heads: Any = None,
        resized: tuple[Tensor, tuple[int, int]] | None = None,
        class_token: bool = True,
    ) -> nn.Module:
        """Returns the 2D network with its weights, in evaluation mode and in float64, to compare with.

        Args:
            num_heads: Heads of a ViT, or of the last two stages of a UniFormer, which weights do not tell.
            resized: A ViT's table of positions at another grid, and the grid; None leaves it as it is.
            class_token: False leaves a ViT's out, and classifies the mean of its patches.
        """
        if self.module is not None and resized is None and class_token:
            network = copy.deepcopy(self.module)
            if isinstance(getattr(network, "transform_input", None), bool):
                setattr(network, "transform_input", False)  # noqa: B010 - the protocol's mean and std take its place
        else:
            changed = copy.copy(self)
            if resized is not None:
                changed.state = {**self.state, "pos_embed": resized[0]}
            if not class_token:
                changed.state = {key: value for key, value in changed.state.items() if key != "cls_token"}
                changed.state["pos_embed"] = changed.state["pos_embed"][:, 1:]
            network = _BUILDERS[self.kind](changed, num_heads)
        return network.double().eval()

    def adopt_settings(self, module: nn.Module) -> None:
        """Takes from a network of this architecture what weights do not tell: normalisation, epsilon and GELU."""
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, Mapping) and "mean" in config and "std" in config:
            self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        if getattr(module, "transform_input", None) is False:
            self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                self.norm_eps = part.eps
            elif (gelu := gelu_of(part)) is not None:
                self.gelu = gelu


def gelu_of(module: nn.Module) -> Gelu | None:
    """Returns how a layer computes GELU: ``none``, ``tanh`` or ``quick``; None if it is another layer."""
    name = type(module).__name__.lower() + str(getattr(module, "approximate", ""))
    if "gelu" not in name:
        return None
    return "tanh" if "tanh" in name else "quick" if "quick" in name else "none"


def without_head(network: nn.Module) -> nn.Module:
    """Replaces the classifier of a 2D network by the identity, in place."""
    reset = getattr(network, "reset_classifier", None)
    if reset is not None:
        reset(0)
        return network
    name = next(name for name in ("fc", "heads", "head") if isinstance(getattr(network, name, None), nn.Module))
    setattr(network, name, nn.Identity())
    return network


# --- recognising layouts ----------------------------------------------------------------------------------------------


def recognise_network(state: Mapping[str, Tensor], *, module: nn.Module | None = None, name: str) -> ImageNetwork:
    """Reads a 2D state without wrappers.

    Args:
        state: Keys and tensors of one of the layouts above.
        module: The network that the state is of, if there is one: it tells epsilons and normalisation.
        name: How messages call the source.

    Raises:
        CheckpointError: If the layout is not known, or the weights are those of a video model.
    """
    for has, read in _LAYOUTS:
        if has(state):
            network = read(state)
            break
    else:
        shown = ", ".join(list(state)[:4])
        raise CheckpointError(
            f"{name}: no known 2D parent (its keys begin with {shown}); known are the plain networks of "
            f"{', '.join(KINDS.values())}. Any other image network: stvid inflate with --temporal instead of --to"
        )
    network.shapes = {key: tuple(value.shape) for key, value in state.items()}
    video = next((key for key, value in network.state.items() if value.dim() == 5 and value.shape[2] > 1), None)
    if video is not None:
        raise CheckpointError(
            f"{name}: {video} has kernels in time {tuple(network.state[video].shape)}: these are weights of a video "
            "model; load them with stvid.load_checkpoint"
        )
    if network.kind == "vit":
        _complete_vit(network, name)
    if module is not None:
        network.module = module
        network.adopt_settings(module)
    return network


def _renamed(
    state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]], dropped: Mapping[str, str] = {}
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]], dict[str, str]]:
    """Applies (pattern, replacement) to all keys, and takes out those that match a pattern of `dropped`."""
    own: dict[str, Tensor] = {}
    names: dict[str, tuple[str, ...]] = {}
    left: dict[str, str] = {}
    for key, value in state.items():
        reason = next((reason for pattern, reason in dropped.items() if re.search(pattern, key)), None)
        if reason is not None:
            left[key] = reason
            continue
        new = key
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        own[new], names[new] = value, (key,)
    return own, names, left


_SLOWFAST = (
    (r"^s1\.pathway0_stem\.conv\.", "conv1."),
    (r"^s1\.pathway0_stem\.bn\.", "bn1."),
    *((rf"^s{stage + 1}\.pathway0_res(\d+)\.", rf"layer{stage}.\1.") for stage in range(1, 5)),
    (r"\.branch1\.", ".downsample.0."),
    (r"\.branch1_bn\.", ".downsample.1."),
    *((rf"\.branch2\.{'abc'[index]}\.", f".conv{index + 1}.") for index in range(3)),
    *((rf"\.branch2\.{'abc'[index]}_bn\.", f".bn{index + 1}.") for index in range(3)),
    (r"^head\.projection\.", "fc."),
)


def _read_slowfast(state: Mapping[str, Tensor]) -> ImageNetwork:
    flat = {
        key: value.squeeze(2) if value.dim() == 5 and value.shape[2] == 1 else value for key, value in state.items()
    }
    own, names, dropped = _renamed(flat, _SLOWFAST)
    return ImageNetwork("resnet", "SlowFast", own, names, dropped=dropped)


def _read_resnet(state: Mapping[str, Tensor]) -> ImageNetwork:
    own, names, dropped = _renamed(state, ())
    return ImageNetwork("resnet", "torchvision and timm", own, names, dropped=dropped)


def _read_googlenet(state: Mapping[str, Tensor]) -> ImageNetwork:
    own, names, dropped = _renamed(state, (), {r"^aux\d\.": "an auxiliary classifier, of training alone"})
    # torchvision's weights are used with transform_input, which turns ImageNet's normalisation into this one
    return ImageNetwork("inception", "torchvision", own, names, dropped=dropped, mean=HALF, std=HALF, norm_eps=1e-3)


_TORCHVISION_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
    (r"^heads\.head\.", "head."),
    (r"^heads\.pre_logits\.", "pre_logits."),
)
PRE_LOGITS = "the layer before the classifier, which video models do not have"


def _read_torchvision_vit(state: Mapping[str, Tensor]) -> ImageNetwork:
    own, names, dropped = _renamed(state, _TORCHVISION_VIT)
    return ImageNetwork("vit", "torchvision", own, names, dropped=dropped)


def _read_timm_vit(state: Mapping[str, Tensor]) -> ImageNetwork:
    own, names, dropped = _renamed(state, ((r"^pre_logits\.fc\.", "pre_logits."),))
    network = ImageNetwork("vit", "timm", own, names, dropped=dropped, mean=HALF, std=HALF)
    for key in [key for key in own if key.endswith((".ls1.gamma", ".ls2.gamma"))]:
        layer = key.replace(".ls1.gamma", ".attn.proj").replace(".ls2.gamma", ".mlp.fc2")
        _fold_scale(network, key, layer)
    return network


_FLAX_VIT = (
    (r"^embedding/", "patch_embed.proj/"),
    (r"^cls$", "cls_token"),
    (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"LayerNorm_0/", "norm1/"),
    (r"LayerNorm_2/", "norm2/"),
    (r"MultiHeadDotProductAttention_1/out/", "attn.proj/"),
    (r"MultiHeadDotProductAttention_1/", "attn."),
    (r"MlpBlock_3/Dense_0/", "mlp.fc1/"),
    (r"MlpBlock_3/Dense_1/", "mlp.fc2/"),
    (r"/(?:kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
)


def _read_flax_vit(state: Mapping[str, Tensor]) -> ImageNetwork:
    """Turns flax's input-first kernels with heads apart into torch's matrices, and stacks queries, keys and values."""
    prefix = next(key for key in state if key.endswith("embedding/kernel")).removesuffix("embedding/kernel")
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    outside = {key: "the state of the optimiser" for key in state if not key.startswith(prefix)}
    own, names, _ = _renamed(inner, _FLAX_VIT)
    for key, value in own.items():
        if not key.endswith(".weight"):
            own[key] = value.flatten() if re.search(r"\.(query|key|value)\.bias$", key) else value
        elif value.dim() == 4:
            own[key] = value.permute(3, 2, 0, 1)
        elif value.dim() == 3:  # (heads, channels, out) of the projection, (in, heads, channels) of the others
            own[key] = (value.flatten(0, 1) if ".proj." in key else value.flatten(1)).t()
        elif value.dim() == 2:
            own[key] = value.t()
    names = {key: tuple(prefix + name for name in parts) for key, parts in names.items()}
    network = ImageNetwork("vit", "flax", own, names, dropped=outside, mean=HALF, std=HALF, gelu="tanh")
    for key in [key for key in own if ".attn.query." in key]:
        parts = [key.replace("query", part) for part in ("query", "key", "value")]
        joined = key.replace("query", "qkv")
        own[joined] = torch.cat([own.pop(part) for part in parts])
        names[joined] = tuple(name for part in parts for name in names.pop(part))
        network.notes[joined] = "stacked"
    return network


def _fold_scale(network: ImageNetwork, gamma: str, layer: str) -> None:
    """Multiplies a layer scale into the layer before it, which gives the same function."""
    scale = network.state.pop(gamma)
    names = network.names.pop(gamma)
    for key in (f"{layer}.weight", f"{layer}.bias"):
        value = network.state[key]
        network.state[key] = scale.reshape(-1, *[1] * (value.dim() - 1)) * value
        network.names[key] += names
        network.notes[key] = "times the layer scale"


def _complete_vit(network: ImageNetwork, name: str) -> None:
    """Takes out what stands between norm and classifier, and gives the class token a position."""
    state = network.state
    for key in [key for key in state if key.startswith("pre_logits.")]:
        for part in network.names.pop(key):
            network.dropped[part] = PRE_LOGITS
        del state[key]
    if any(reason is PRE_LOGITS for reason in network.dropped.values()):
        for key in [key for key in state if key.startswith("head.")]:
            del state[key]
            for part in network.names.pop(key):
                network.dropped[part] = "the classifier behind a layer that video models do not have"
    missing = [key for key in ("cls_token", "pos_embed", "norm.weight") if key not in state]
    added = [key for key in state if "." not in key and key not in ("cls_token", "pos_embed")]
    if missing or added:
        parts = [f"without {', '.join(missing)}"] * bool(missing) + [f"with {', '.join(added)}"] * bool(added)
        raise CheckpointError(
            f"{name}: a ViT {' and '.join(parts)}: video models descend from the plain ViT, with a class token, a "
            "table of positions and a last norm. Any other: stvid inflate with --temporal instead of --to"
        )
    table = state["pos_embed"]
    if math.isqrt(table.shape[1]) ** 2 == table.shape[1]:  # a table for the patches alone (timm's no_embed_class)
        state["pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
        network.notes["pos_embed"] = "with zeros for the class token"
    elif math.isqrt(table.shape[1] - 1) ** 2 != table.shape[1] - 1:
        raise CheckpointError(f"{name}: its table of {table.shape[1]} positions is not one class token and a square")


_SWIN_BUFFERS = {r"relative_position_index$|attn_mask$": BUFFER}


def _read_swin(state: Mapping[str, Tensor]) -> ImageNetwork:
    """microsoft's merging ends a stage, timm's begins the next one."""
    own, names, dropped = _renamed(state, ((r"^head\.fc\.", "head."),), _SWIN_BUFFERS)
    if "layers.0.downsample.reduction.weight" in own:
        return ImageNetwork("swin", "microsoft/Swin-Transformer", own, names, dropped=dropped)

    def earlier(key: str) -> str:
        return re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)

    own = {earlier(key): value for key, value in own.items()}
    names = {earlier(key): parts for key, parts in names.items()}
    return ImageNetwork("swin", "timm", own, names, dropped=dropped)


def _read_torchvision_swin(state: Mapping[str, Tensor]) -> ImageNetwork:
    """features.0 embeds, odd numbers are the stages, even ones the mergings."""
    rules = [
        (r"^features\.0\.0\.", "patch_embed.proj."),
        (r"^features\.0\.2\.", "patch_embed.norm."),
        *((rf"^features\.{2 * stage + 1}\.", f"layers.{stage}.blocks.") for stage in range(4)),
        *((rf"^features\.{2 * stage + 2}\.", f"layers.{stage}.downsample.") for stage in range(4)),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ]
    own, names, dropped = _renamed(state, rules, _SWIN_BUFFERS)
    return ImageNetwork("swin", "torchvision", own, names, dropped=dropped)


def _read_uniformer(state: Mapping[str, Tensor]) -> ImageNetwork:
    own, names, dropped = _renamed(state, (), {r"^aux_head\.": "the token labelling head, of training alone"})
    network = ImageNetwork("uniformer", "Sense-X/UniFormer", own, names, dropped=dropped)
    for key in [key for key in own if key.endswith((".gamma_1", ".gamma_2"))]:
        _fold_scale(network, key, key.replace("gamma_1", "attn.proj").replace("gamma_2", "mlp.fc2"))
    return network


def _has(*keys: str) -> Callable[[Mapping[str, Tensor]], bool]:
    return lambda state: all(key in state for key in keys)


_LAYOUTS: tuple[tuple[Callable[[Mapping[str, Tensor]], bool], Callable[[Mapping[str, Tensor]], ImageNetwork]], ...] = (
    (_has("conv1.weight", "bn1.weight", "layer1.0.conv1.weight"), _read_resnet),
    (_has("s1.pathway0_stem.conv.weight"), _read_slowfast),
    (_has("conv1.conv.weight", "inception3a.branch1.conv.weight"), _read_googlenet),
    (_has("conv_proj.weight", "encoder.ln.weight"), _read_torchvision_vit),
    (_has("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"), _read_timm_vit),
    (lambda state: any(key.endswith("embedding/kernel") for key in state), _read_flax_vit),
    (_has("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table"), _read_swin),
    (_has("features.0.0.weight", "features.1.0.attn.relative_position_bias_table"), _read_torchvision_swin),
    (_has("patch_embed1.proj.weight", "blocks1.0.pos_embed.weight"), _read_uniformer),
)


# --- the networks to compare with -------------------------------------------------------------------------------------


def _build_resnet(network: ImageNetwork, num_heads: Any) -> nn.Module:
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    state = network.state
    options: dict[str, Any] = {}
    if bottleneck := "layer1.0.conv3.weight" in state:
        width, per_group = state["layer1.0.conv2.weight"].shape[:2]
        options = {"cardinality": width // per_group, "base_width": per_group}
    model = ResNet(
        Bottleneck if bottleneck else BasicBlock,
        network.depth,
        num_classes=network.num_classes or 0,
        in_chans=state["conv1.weight"].shape[1],
        **options,
    )
    return _loaded(model, state)


def _build_inception(network: ImageNetwork, num_heads: Any) -> nn.Module:
    from torchvision.models import GoogLeNet

    model = GoogLeNet(network.num_classes or 1, aux_logits=False, transform_input=False, init_weights=False)
    if network.num_classes is None:
        model.fc = nn.Identity()
    return _loaded(model, network.state)


def _build_vit(network: ImageNetwork, num_heads: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    state = network.state
    class_token = "cls_token" in state
    dim, in_chans, *patch = state["patch_embed.proj.weight"].shape
    model = VisionTransformer(
        img_size=(network.grid[0] * patch[0], network.grid[1] * patch[1]),
        patch_size=tuple(patch),
        in_chans=in_chans,
        num_classes=network.num_classes or 0,
        embed_dim=dim,
        depth=network.depth[0],
        num_heads=num_heads,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        act_layer="gelu_tanh" if network.gelu == "tanh" else "gelu",
        class_token=class_token,
        global_pool="token" if class_token else "avg",
        fc_norm=False,
        weight_init="skip",
    )
    return _loaded(model, state)


def _build_swin(network: ImageNetwork, num_heads: Any) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    state = network.state
    dim, in_chans, patch, _ = state["patch_embed.proj.weight"].shape
    tables = [
        state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(len(network.depth))
    ]
    model = SwinTransformer(
        img_size=network.window * patch * 2 ** (len(tables) - 1),
        patch_size=patch,
        in_chans=in_chans,
        num_classes=network.num_classes or 0,
        embed_dim=dim,
        depths=network.depth,
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=network.window,
        mlp_ratio=state["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / dim,
    )

    def later(key: str) -> str:
        key = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", key)
        return re.sub(r"^head\.", "head.fc.", key)

    return _loaded(model, {later(key): value for key, value in state.items()})


def _build_uniformer(network: ImageNetwork, num_heads: Any) -> nn.Module:
    state = network.state
    dims = [state[f"patch_embed{stage}.proj.weight"].shape[0] for stage in range(1, 5)]
    model = UniFormerImage(
        depth=network.depth,
        embed_dim=dims,
        in_chans=state["patch_embed1.proj.weight"].shape[1],
        num_heads=num_heads,
        mlp_ratio=state["blocks1.0.mlp.fc1.weight"].shape[0] / dims[0],
        num_classes=network.num_classes or 0,
    )
    return _loaded(model, state)


_BUILDERS: dict[Kind, Callable[[ImageNetwork, Any], nn.Module]] = {
    "resnet": _build_resnet,
    "inception": _build_inception,
    "vit": _build_vit,
    "swin": _build_swin,
    "uniformer": _build_uniformer,
}


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Loads all of a state; a count of batches may be missing, as in flax and old torch files."""
    own = model.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    model.load_state_dict({**counters, **state})
    return model
