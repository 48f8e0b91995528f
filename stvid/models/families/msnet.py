"""MSNet: TSM with a module that squeezes the motion between neighbouring frames out of how well their places match.

Kwon et al., "MotionSqueeze: Neural Motion Feature Learning for Video Understanding", ECCV 2020, arXiv:2007.09933;
official code: arunos728/MotionSqueeze, models.py and resnet_TSM.py.

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, stages 2 to 4 by 2 each; time stays. Stage i
holds (B, 256 * 2^i, T, H/2^(i+2), W/2^(i+2)), with basic blocks a quarter of the channels. Every block has the shift of
TSM in front of its branch.

Behind stage 2, every place of a frame is compared with the places around it in the next frame. Where it fits best says
how far it moved; this and how well it fits go through a few convolutions, and are added to the features. The last frame
has the motion of the one before.

The authors' files have a norm, `bn2`, that nothing uses. Their classifier is a convolution of one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.blocks import init_conv_weights, rename_keys
from stvid.models.family import Family, Variant
from stvid.models.segments import (
    RESNET_RULES,
    BlockParts,
    BlockPlace,
    SegmentResNet,
    TemporalShift,
    conv_norm,
)
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["MSNet", "MotionSqueeze"]


class MotionSqueeze(nn.Module):
    """Motion features of frames, from how well each place matches those around it in the next frame (section 3).

    Args:
        dim: Channels.
        patch: Side of the square of displacements that are tried, an odd number.
        matched_dim: Channels that are compared.
        sigma: Spread, in places, of the Gaussian around the best match that limits the mean displacement to its mode.
        temperature: By which matches are multiplied before the softmax.
    """

    def __init__(
        self, dim: int, *, patch: int = 15, matched_dim: int = 64, sigma: float = 5.0, temperature: float = 100.0
    ) -> None:
        super().__init__()
        if patch < 3 or patch % 2 == 0:
            raise ValueError(f"patch {patch}: must be an odd number of at least 3")
        self.patch, self.sigma, self.temperature = patch, sigma, temperature
        self.squeeze = conv_norm(dim, matched_dim, 1)
        sizes = (3, 16, 32, 64, dim)
        self.refine = nn.Sequential(
            *(
                nn.Sequential(
                    conv_norm(sizes[step], sizes[step], 3 if step else 7, groups=sizes[step]),
                    conv_norm(sizes[step], sizes[step + 1], 1),
                )
                for step in range(4)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to their motion features, of the same shape."""
        features = self.squeeze(x)
        if features.dtype in (torch.bfloat16, torch.float16):
            features = features.float()
        features = features / (features.square().sum(2, keepdim=True) + 1e-6).sqrt()
        first, second = features[:, :-1].flatten(0, 1), features[:, 1:].flatten(0, 1)
        flow = self.displacements(self.match(first, second)).unflatten(0, (x.shape[0], x.shape[1] - 1))
        return self.refine(torch.cat((flow, flow[:, -1:]), dim=1).to(x.dtype))

    def match(self, first: Tensor, second: Tensor) -> Tensor:
        """Compares every place of frames with those around it in others.

        Args:
            first: (N, C, H, W).
            second: The same shape.

        Returns:
            (N, patch * patch, H, W): the products, no smaller than 0, the vertical displacement slowest. Places beyond
            the frame match with 0.
        """
        height = first.shape[2]
        far = self.patch // 2
        first = first.permute(0, 2, 3, 1).unsqueeze(3)
        rows = F.pad(second, (far, far, far, far)).permute(0, 2, 3, 1).contiguous()
        rows = rows.unfold(2, self.patch, 1).transpose(3, 4)  # (N, H + 2 far, W, patch, C), a view
        found = [(first * rows[:, shift : shift + height]).sum(4) for shift in range(self.patch)]
        return torch.stack(found, dim=3).flatten(3).permute(0, 3, 1, 2).relu()

    def displacements(self, matches: Tensor) -> Tensor:
        """Returns the mean displacement around the best match, and how good that is.

        Args:
            matches: From `match`.

        Returns:
            (N, 3, H, W): to the right, down, from -1 to 1 each, and the confidence.
        """
        far = self.patch // 2
        steps = torch.arange(-far, far + 1, device=matches.device, dtype=matches.dtype)
        confidence, best = matches.max(1, keepdim=True)
        down, right = best // self.patch - far, best % self.patch - far
        grid = matches.unflatten(1, (self.patch, self.patch))
        vertical, horizontal = steps.view(1, -1, 1, 1, 1), steps.view(1, 1, -1, 1, 1)
        distance = (vertical - down.unsqueeze(1)).square() + (horizontal - right.unsqueeze(1)).square()
        near = grid * torch.exp(-distance / (2 * self.sigma**2))
        share = (self.temperature * near).flatten(1, 2).softmax(1).unflatten(1, (self.patch, self.patch))
        flow = [(share * axis).sum((1, 2)) / far for axis in (horizontal, vertical)]
        return torch.cat((*(part.unsqueeze(1) for part in flow), confidence), dim=1)


class MSNet(SegmentResNet):
    """Motion squeeze network on a ResNet with temporal shifts.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        bottleneck: Whether blocks are bottlenecks, with a quarter of the channels inside, or basic blocks.
        patch: Side of the square of displacements that are tried, an odd number.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T, ceil(H/32), ceil(W/32)). A clip has at least 2 frames, and 32 pixels in
    height and width.

    Attributes:
        bn2: A norm in the authors' files, which nothing uses and which is not trained.
    """

    published_as = "arunos728/MotionSqueeze"
    min_clip = (2, 32, 32)  # with a single frame there is no difference

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        bottleneck: bool = True,
        patch: int = 15,
        drop_rate: float = 0.5,
    ) -> None:
        def make_parts(place: BlockPlace) -> BlockParts:
            return BlockParts(before=TemporalShift())

        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            bottleneck=bottleneck,
            make_parts=make_parts,
            drop_rate=drop_rate,
        )
        self.bn2 = nn.BatchNorm2d(128).requires_grad_(False)
        self.motion = MotionSqueeze(2 * embed_dim, patch=patch).apply(init_conv_weights)

    def behind_stage(self, number: int, x: Tensor) -> Tensor:
        """Adds the motion behind stage 2."""
        return x + self.motion(x) if number == 2 else x

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every block in order, the motion with the last block of stage 2."""
        groups = super().group_matcher()
        return {**groups, "blocks": [*groups["blocks"], (r"^(?:motion|bn2)\.", (2, 99999))]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the authors' layout into our keys."""
        if not any("flow_refinement." in key for key in state):
            return super().convert_checkpoint(state)
        own = rename_keys(state, (*MSNET_RULES, *RESNET_RULES))
        if "head.fc.weight" in own:
            own["head.fc.weight"] = own["head.fc.weight"].flatten(1)
        return self.published_as, own


# --- published keys ---------------------------------------------------------------------------------------------------

MSNET_RULES = (
    (r"^base_model\.", ""),
    (r"^(?:new_fc|fc1)\.", "fc."),
    (r"^chnl_reduction\.", "motion.squeeze."),
    *(
        (rf"^flow_refinement\.conv{step + 1}\.{3 * layer + part}\.", f"motion.refine.{step}.{layer}.{part}.")
        for step in range(4)
        for layer in range(2)
        for part in range(2)
    ),
)

# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: scripts/test_TSM_Something_v1.sh (one clip, one crop of 224 pixels), models.py (`input_mean`,
# `input_std`, `scale_size`). The frames are one of each part of the video.
_SSV1 = Protocol(frames=8, sampling="segment", short_side=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)

FAMILY = Family(
    model="MSNet",
    paper="Kwon et al. 2020, arXiv:2007.09933",
    small_clip=(4, 32, 32),
    min_clip=(2, 32, 32),
    formats=("arunos728/MotionSqueeze", "torchvision ResNet"),
    tiny={"depth": (1, 2, 1, 1), "embed_dim": 64, "patch": 5},
    slow_goldens=("msnet_r50_8f__8x64",),
    golden_options={
        "msnet_r18_8f__8x64": {"name": "msnet_r18", "img_size": 64},
        "msnet_r50_8f__8x64": {"name": "msnet_r50", "img_size": 64},
    },
    variants=(
        Variant("msnet_r50", "MSNet on a ResNet of 50 layers.", _SSV1),
        Variant(
            "msnet_r18",
            "MSNet on a ResNet of 18 layers.",
            _SSV1,
            {"depth": (2, 2, 2, 2), "embed_dim": 64, "bottleneck": False},
        ),
    ),
)
