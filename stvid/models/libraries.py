"""Names that the video models of other libraries have there, for messages to who looks for them here.

stvid has all of them itself, and loads the libraries' files. Left out are PyTorchVideo's ``slow_r50_detection`` and
``slowfast_r50_detection``, which take boxes besides the clip.
"""

from __future__ import annotations

__all__ = ["NATIVE"]

NATIVE: dict[str, dict[str, str]] = {
    "torchvision": {
        **{name: name for name in ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "swin3d_b", "swin3d_s", "swin3d_t")},
        "mvit_v1_b": "mvit_b_16x4",
        "mvit_v2_s": "mvitv2_s_16x4",
    },
    "pytorchvideo": {
        "c2d_r50": "c2d_r50",
        "csn_r101": "ir_csn_101",
        "efficient_x3d_s": "x3d_s",
        "efficient_x3d_xs": "x3d_xs",
        "i3d_r50": "i3d_r50",
        "mvit_base_16": "mvit_b_16",
        "mvit_base_16x4": "mvit_b_16x4",
        "mvit_base_32x3": "mvit_b_32x3",
        "r2plus1d_r50": "r2plus1d_50",
        "slow_r50": "slow_r50",
        "slowfast_16x8_r101_50_50": "slowfast_r101_8x8",
        "slowfast_r101": "slowfast_r101_8x8",
        "slowfast_r50": "slowfast_r50_8x8",
        **{name: name for name in ("x3d_l", "x3d_m", "x3d_s", "x3d_xs")},
    },
}
"""For each library the names that its models have there, with the names that they have here."""
