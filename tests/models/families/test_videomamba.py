"""VideoMamba: the selective scan against its definition, its gradients and its memory, and the published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stvid
from stvid.models.blocks import rename_keys
from stvid.models.families import videomamba
from stvid.models.families.videomamba import CHUNK, VideoMamba, selective_scan

TINY: dict[str, Any] = {"num_frames": 4, "img_size": (32, 48), "depth": 2, "embed_dim": 48}


def scan_inputs(tokens: int, *, scale: float = 1.0) -> list[Tensor]:
    """x, steps, decay, b, c of a scan in float64; a large scale makes decays that vanish within a chunk."""
    torch.manual_seed(0)
    x, steps = torch.randn(2, tokens, 6), scale * torch.rand(2, tokens, 6)
    decay = -torch.arange(1.0, 5.0).repeat(6, 1)
    return [tensor.double() for tensor in (x, steps, decay, torch.randn(2, tokens, 4), torch.randn(2, tokens, 4))]


def by_definition(x: Tensor, steps: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    state, outputs = x.new_zeros(x.shape[0], x.shape[2], decay.shape[1]), []
    for token in range(x.shape[1]):
        step = steps[:, token].unsqueeze(-1)
        state = (step * decay).exp() * state + step * x[:, token].unsqueeze(-1) * b[:, token].unsqueeze(1)
        outputs.append((state * c[:, token].unsqueeze(1)).sum(-1))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("tokens", [1, CHUNK, 2 * CHUNK + 3])
@pytest.mark.parametrize("scale", [0.1, 300.0])
@pytest.mark.parametrize("ways", ["in turn", "at once"])
def test_the_scan_is_its_definition_and_so_is_its_gradient(
    tokens: int, scale: float, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ways == "at once":
        monkeypatch.setattr(videomamba, "_states_in_turn", videomamba._states_at_once)
    inputs = scan_inputs(tokens, scale=scale)
    expected = by_definition(*inputs)
    torch.testing.assert_close(selective_scan(*inputs), expected, rtol=1e-9, atol=1e-9)
    gradients = []
    for scan in (selective_scan, by_definition):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        y = scan(*leaves)
        torch.testing.assert_close(y.detach(), expected, rtol=1e-9, atol=1e-9)
        gradients.append(torch.autograd.grad((y * torch.arange(6.0)).sum(), leaves))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_training_keeps_the_states_of_one_chunk_alone() -> None:
    """Each channel has N = 4 states; the backward pass keeps those at the ends of chunks."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept = max(kept, tensor.numel())
        return tensor

    leaves = [tensor.requires_grad_() for tensor in scan_inputs(8 * CHUNK)]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        selective_scan(*leaves)
    assert kept <= leaves[0].numel()  # and not four times as many


def tiny(num_classes: int = 5, **options: Any) -> VideoMamba:
    torch.manual_seed(0)
    model = stvid.create_model("videomamba_t16", num_classes=num_classes, **{**TINY, **options}).eval()
    assert isinstance(model, VideoMamba)
    return model


def authors_state(model: VideoMamba) -> dict[str, Tensor]:
    """The state of a model in the authors' keys."""
    rules = [
        (r"^time_embed$", "temporal_pos_embedding"),
        (r"^blocks\.", "layers."),
        (r"^norm\.", "norm_f."),
        (r"\.ahead\.decay_log$", ".A_log"),
        (r"\.back\.decay_log$", ".A_b_log"),
        (r"\.ahead\.skip$", ".D"),
        (r"\.back\.skip$", ".D_b"),
        (r"\.ahead\.conv\.", ".conv1d."),
        (r"\.back\.conv\.", ".conv1d_b."),
        (r"\.ahead\.x_proj\.", ".x_proj."),
        (r"\.back\.x_proj\.", ".x_proj_b."),
        (r"\.ahead\.step_proj\.", ".dt_proj."),
        (r"\.back\.step_proj\.", ".dt_proj_b."),
        (r"^head\.fc\.", "head."),
    ]
    return rename_keys(model.state_dict(), rules)


def test_the_options_of_a_file_are_read_off_its_tensors(tmp_path: Path) -> None:
    model = tiny(num_frames=6, img_size=(32, 32))
    torch.save({"model": authors_state(model)}, tmp_path / "mamba.pth")
    again = stvid.load_model(tmp_path / "mamba.pth", name="videomamba_s16")
    assert again.default_protocol.frames == 6 and again.num_features == 48
    clip = torch.randn(2, 3, 6, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)


def test_an_image_model_is_the_parent() -> None:
    state = authors_state(tiny(num_classes=7))
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]
    del state["temporal_pos_embedding"]
    model = tiny()
    report = stvid.load_checkpoint(model, state, reset_head=True)
    assert report.format == "OpenGVLab/VideoMamba" and report.reset == ["head.fc.bias", "head.fc.weight"]
    assert not model.time_embed.any()
    assert torch.equal(model.patch_embed.proj.weight[:, :, 0], state["patch_embed.proj.weight"])


def test_both_directions_are_read() -> None:
    """The class token comes first, so that all it knows of the frames comes from the reading backwards."""
    model = tiny(depth=1)
    clip = torch.randn(1, 3, 4, 32, 48)
    changed = clip.clone()
    changed[:, :, 1] += 1.0  # tokens 7 to 12
    with torch.no_grad():
        before, after = model.forward_features(clip), model.forward_features(changed)
        assert not torch.equal(before[:, 0], after[:, 0])
        for parameter in model.blocks[0].mixer.back.parameters():
            parameter.zero_()
        before, after = model.forward_features(clip), model.forward_features(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 13], after[:, 13])


def test_tables_follow_frames_and_size() -> None:
    model, other = tiny(num_frames=8, img_size=(64, 64)), tiny(img_size=(32, 32))
    report = stvid.load_checkpoint(other, authors_state(model))
    assert set(report.resized) == {"time_embed", "pos_embed"}
    assert other.resize_table("pos_embed", torch.zeros(1, 8, 48), {}) is None
    with torch.no_grad():
        assert other(torch.randn(1, 3, 6, 48, 64)).shape == (1, 5)


def test_a_mask_leaves_tokens_out() -> None:
    model = tiny()
    clip = torch.randn(2, 3, 4, 32, 48)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clip, mask=mask), model.forward_features(clip))
        mask[:, ::2] = True
        assert model.forward_features(clip, mask=mask).shape == (2, 13, 48)
