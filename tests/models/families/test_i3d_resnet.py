"""C2D, Slow and I3D on ResNets: the window of their pooling."""

from __future__ import annotations

import torch

import stvid


def test_window_of_the_inflated_resnets() -> None:
    with torch.device("meta"):
        assert stvid.create_model("i3d_r50").head.window == (4, 7, 7)  # 256 pixels: trained at 224
        assert stvid.create_model("i3d_r50", num_frames=16, img_size=112).head.window == (8, 3, 3)
        assert stvid.create_model("slow_r50", num_frames=4, img_size=(112, 160)).head.window == (4, 3, 3)
        assert stvid.create_model("slow_r50", pool_size=(1, 2, 2)).head.window == (1, 2, 2)
