"""UniRepLKNet: frames in one image, and branches that are one convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import stvid
from stvid.models.families.unireplknet import BRANCHES, DilatedConv, UniRepLKNet

TINY = {"num_classes": 5, "img_size": 32, "depth": (1, 1, 4, 1), "embed_dim": 16}


def with_statistics(model: nn.Module) -> nn.Module:
    """Gives all norms, factors and gates values that are not those of a new model."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    return model.eval()


@pytest.mark.parametrize("kernel", sorted(BRANCHES))
def test_branches_are_one_convolution(kernel: int) -> None:
    branches = with_statistics(DilatedConv(4, kernel)).double()
    x = torch.randn(1, 4, 19, 21, dtype=torch.float64)
    with torch.no_grad():
        expected = branches(x)
        found = branches.merge()(x)
    assert found.shape == x.shape
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ["unireplknet_video_b", "unireplknet_video_t"])
def test_a_fused_model_has_no_norm_left_and_computes_the_same(name: str) -> None:
    model = with_statistics(stvid.create_model(name, **TINY)).double()
    fused = stvid.fuse(model)
    assert not any(isinstance(module, _BatchNorm | DilatedConv) for module in fused.modules())
    assert fused.fused is not None and not fused.fused.kept
    norms = {path for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    assert set(fused.fused.fused) == norms
    layers = dict(fused.named_modules())
    assert all(isinstance(layers[path], nn.Conv2d | nn.Linear) for path in fused.fused.fused.values())
    clip = torch.randn(2, 3, 16, 24, 40, dtype=torch.float64)
    with torch.no_grad():
        expected, found = model(clip), fused(clip)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_the_kernels_are_those_of_the_authors() -> None:
    def sides(name: str, stage: int) -> list[int]:
        with torch.device("meta"):
            model = stvid.create_model(name)
        blocks = getattr(model, f"layer{stage}")
        return [block.dwconv.kernel if isinstance(block.dwconv, DilatedConv) else 3 for block in blocks]

    assert sides("unireplknet_video_b", 1) == sides("unireplknet_video_t", 1) == [3, 3, 3]
    assert sides("unireplknet_video_b", 2) == sides("unireplknet_video_t", 2) == [13, 13, 13]
    assert sides("unireplknet_video_b", 3) == [13, 3, 3] * 9
    assert sides("unireplknet_video_t", 3) == [13, 3] * 9
    assert (sides("unireplknet_video_b", 4), sides("unireplknet_video_t", 4)) == ([11] * 3, [13] * 3)


def test_frames_are_read_as_one_image_in_the_order_of_memory() -> None:
    model = stvid.create_model("unireplknet_video_b", **TINY).eval()
    seen: list[torch.Tensor] = []
    model.stem.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    clip = torch.arange(16 * 8 * 12, dtype=torch.float32).view(1, 1, 16, 8, 12).expand(1, 3, 16, 8, 12)
    with torch.no_grad():
        model(clip)
    image = seen[0][0, 0]
    assert image.shape == (32, 48)
    assert torch.equal(image[2], clip[0, 0, 1, :4].flatten())  # the second frame begins in the third row


def test_other_numbers_of_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="num_frames 8: UniRepLKNet reads 16 frames as one image"):
        stvid.create_model("unireplknet_video_b", num_frames=8, **TINY)
    model = stvid.create_model("unireplknet_video_b", **TINY)
    with pytest.raises(ValueError, match=r"reads 16 frames as one image of four by four, not 32: .*protocol\.frames"):
        model(torch.randn(1, 3, 32, 32, 32))


def test_wrong_options_are_named() -> None:
    for options, message in [({"kernel_size": 12}, "kernel_size 12: choose 3, 5"), ({"large_every": 0}, "large_every")]:
        with pytest.raises(ValueError, match=message):
            stvid.create_model("unireplknet_video_b", **TINY, **options)


def test_the_options_are_read_off_a_file() -> None:
    small = {**TINY, "num_classes": 3}
    other = stvid.create_model("unireplknet_video_t", **{**small, "kernel_size": 9, "mlp_ratio": 2.0, "in_chans": 2})
    model = stvid.create_model("unireplknet_video_b", **small)
    assert isinstance(model, UniRepLKNet)
    assert model.options_of(other.state_dict()) == {
        "in_chans": 2,
        "mlp_ratio": 2.0,
        "large_every": 2,
        "kernel_size": 9,
        "last_kernel_size": 13,
    }
