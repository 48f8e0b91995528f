"""V-JEPA 2: its rotary positions, several clips through one probe, masks, and the layouts of its published files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stvid
from stvid.errors import CheckpointError
from stvid.models.blocks import Block
from stvid.models.families.vjepa2 import VJEPA2, RotaryAttention, rotation
from stvid.models.heads import AttentivePoolHead

GOLDENS = Path(__file__).parent.parent.parent / "goldens" / "vjepa2"
TINY: dict[str, Any] = {"num_frames": 4, "img_size": (48, 32), "depth": 2, "embed_dim": 96, "num_heads": 6}


def tiny(num_classes: int = 5, **options: Any) -> VJEPA2:
    torch.manual_seed(0)
    model = stvid.create_model("vjepa2_vit_l", num_classes=num_classes, **{"head_depth": 2, **TINY, **options}).eval()
    assert isinstance(model, VJEPA2)
    for parameter in model.parameters():  # biases start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def encoder_state(model: VJEPA2) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}


def probe_state(model: VJEPA2) -> dict[str, Tensor]:
    """The probe in the authors' keys."""
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if not key.startswith("head."):
            continue
        rest = key.removeprefix("head.")
        if rest.startswith("fc."):
            name = f"linear.{rest[3:]}"
        elif rest.startswith("blocks."):
            name = f"pooler.{rest}"
        elif rest == "query":
            name = "pooler.query_tokens"
        else:
            name = f"pooler.cross_attention_block.{rest.replace('cross_attn.', 'xattn.')}"
        state[name] = value
    return state


def test_several_clips_and_crops_give_the_recorded_logits() -> None:
    record = json.loads((GOLDENS / "vjepa2_vit_l_d2__2clips_3views_8x64.json").read_text())
    model = stvid.create_model("vjepa2_vit_l", num_classes=174, depth=2, num_frames=8, img_size=64)
    report = stvid.load_checkpoint(model, fill.fill_state(record["state"]))
    assert report.format == "facebookresearch/vjepa2"
    assert sum(parameter.numel() for parameter in model.parameters()) == record["params"]
    assert isinstance(model, VJEPA2)
    clips = torch.from_numpy(fill.make_input(record["input_shape"])).double()  # clips, views, N, C, T, H, W
    with torch.no_grad():
        logits = model.double().eval().forward_clips(clips[:, :, 0].transpose(0, 1))
    expected = np.array(record["logits"]).reshape(3, 174)
    assert np.abs(logits.numpy() - expected).max() < 1e-7 * record["logits_std"]
    scores = logits.softmax(1).mean(0).numpy()
    assert np.abs(scores - np.array(record["view_mean_probabilities"])).max() < 1e-8
    with pytest.raises(ValueError, match="forward_clips takes"):
        model.forward_clips(clips[0, :, 0])


def test_places_are_counted_in_the_clip_s_own_grid() -> None:
    cosines, sines = rotation((2, 3, 4), 14, torch.zeros(1, dtype=torch.float64))
    assert cosines.shape == (24, 14)
    assert torch.equal(cosines[:, 12:], torch.ones(24, 2, dtype=torch.float64)) and not sines[:, 12:].any()
    place = (1 * 3 + 2) * 4 + 3  # frame 1, row 2, column 3; each has four channels, at the frequencies 1 and 0.01
    angles = torch.tensor([f * n for n in (1, 2, 3) for f in (1.0, 0.01, 1.0, 0.01)], dtype=torch.float64)
    signs = torch.tensor([-1.0, 1.0] * 6, dtype=torch.float64)
    torch.testing.assert_close(cosines[place, :12], angles.cos())
    torch.testing.assert_close(sines[place, :12], angles.sin() * signs)


def test_a_mask_keeps_the_places_of_the_other_tokens() -> None:
    model = tiny()
    clip = torch.randn(2, 3, 4, 48, 32)
    cells = 2 * 3 * 2
    mask = torch.zeros(2, cells, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clip, mask=mask), model.forward_features(clip))
        mask[0, :4], mask[1, 5:9] = True, True  # other tokens in each clip
        some = model.forward_features(clip, mask=mask)
        assert some.shape == (2, cells - 4, 96)
        for row in range(2):
            torch.testing.assert_close(
                model.forward_features(clip[row : row + 1], mask=mask[row : row + 1]), some[row : row + 1]
            )
        hidden = clip.clone()
        hidden[0, :, :2, :16, :16] = 9.0  # its token is left out
        torch.testing.assert_close(model.forward_features(hidden, mask=mask)[0], some[0])


def test_the_authors_files_of_encoder_and_probe(tmp_path: Path) -> None:
    trained = tiny()
    clip = torch.randn(2, 3, 4, 48, 32)
    encoder = {f"module.backbone.{key}": value for key, value in encoder_state(trained).items()}
    encoder["module.backbone.pos_embed"] = torch.zeros(1, 12, 96)
    other = {key: value + 1 for key, value in encoder.items()}
    predictor = {"module.backbone.predictor_embed.weight": torch.zeros(8, 96)}
    torch.save(
        {"encoder": other, "predictor": predictor, "target_encoder": encoder, "epoch": 3}, tmp_path / "encoder.pt"
    )
    probe = {f"module.{key}": value for key, value in probe_state(trained).items()}
    torch.save({"classifiers": [probe], "epoch": 20, "opt": [{"state": {}, "param_groups": []}]}, tmp_path / "probe.pt")

    model = tiny()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(CheckpointError, match="holds the probe alone: load the file of its encoder first"):
        stvid.load_checkpoint(model, tmp_path / "probe.pt")
    report = stvid.load_checkpoint(model, tmp_path / "encoder.pt", reset_head=True)
    assert report.format == "facebookresearch/vjepa2 encoder"
    assert stvid.load_checkpoint(model, tmp_path / "probe.pt").format == "facebookresearch/vjepa2 probe"
    with torch.no_grad():
        torch.testing.assert_close(model(clip), trained(clip), rtol=0, atol=0)
        features = tiny(num_classes=0)
        stvid.load_checkpoint(features, tmp_path / "encoder.pt")
        torch.testing.assert_close(features(clip), trained.forward_features(clip).mean(1))


def probe_of(model: VJEPA2) -> tuple[int, float]:
    assert isinstance(model.head, AttentivePoolHead)
    return model.head.cross_attn.num_heads, model.head.norm1.eps


def transformers_state(model: VJEPA2) -> dict[str, Tensor]:
    """The state of a model in the keys of transformers, made by undoing one rule after the other."""
    state: dict[str, Tensor] = {}
    for key, value in {**encoder_state(model), **probe_state(model)}.items():
        if key.startswith("linear."):
            state[key.replace("linear.", "classifier.")] = value
            continue
        if key.startswith("pooler."):
            name = key.replace("pooler.blocks.", "pooler.self_attention_layers.").replace(".attn.proj.", ".out_proj.")
            name = name.replace("cross_attention_block", "cross_attention_layer").replace(".norm", ".layer_norm")
            name = name.replace(".out_proj.", ".self_attn.out_proj.")
            name = name.replace(".attn.qkv.", ".self_attn.qkv.").replace(".xattn.", ".cross_attn.")
            names = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
        else:
            name = key.replace("patch_embed.", "vjepa2.encoder.embeddings.patch_embeddings.")
            name = name.replace("blocks.", "vjepa2.encoder.layer.").replace(".attn.", ".attention.")
            name = f"vjepa2.encoder.layernorm.{name[5:]}" if name.startswith("norm.") else name
            names = {"q": "query", "k": "key", "v": "value"}
        stem, part, kind = name.rsplit(".", 2) if name.count(".") > 1 else (name, "", "")
        if part in ("q", "kv", "qkv"):
            for letter, rows in zip(part, value.chunk(len(part)), strict=True):
                state[f"{stem}.{names[letter]}.{kind}"] = rows
        else:
            state[name] = value
    state["vjepa2.predictor.proj.bias"] = torch.zeros(96)
    return state


def test_the_probe_s_heads_are_those_of_the_code_that_a_file_is_for(tmp_path: Path) -> None:
    trained = tiny()
    theirs = transformers_state(trained)
    model = tiny()
    assert probe_of(model) == (16, 1e-5)
    assert stvid.load_checkpoint(model, theirs).format == "transformers VJEPA2"
    assert probe_of(model) == (6, 1e-6)  # as many heads as the encoder
    stvid.save_model(model, tmp_path / "weights.safetensors")
    again = stvid.load_model(tmp_path / "weights.safetensors")
    assert isinstance(again, VJEPA2) and probe_of(again) == (6, 1e-6)
    stvid.load_checkpoint(model, {**{f"encoder.{k}": v for k, v in encoder_state(trained).items()}, **{
        f"classifier.{k}": v for k, v in probe_state(trained).items()
    }})  # fmt: skip
    assert probe_of(model) == (16, 1e-5)
    chosen = tiny(head_num_heads=16, head_norm_eps=1e-5)  # the authors' function of transformers' file
    stvid.load_checkpoint(chosen, theirs)
    assert probe_of(chosen) == (16, 1e-5)
    clip = torch.randn(1, 3, 4, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(chosen(clip), trained(clip), rtol=0, atol=0)


def test_options_are_read_off_a_file() -> None:
    trained = tiny(head_depth=3, mlp_ratio=3.0, patch_size=8)
    outline = tiny(embed_dim=96)
    own = {f"encoder.{k}": v for k, v in encoder_state(trained).items()}
    own |= {f"classifier.{k}": v for k, v in probe_state(trained).items()}
    assert outline.options_of(own) == {"patch_size": 8, "mlp_ratio": 3.0, "head_depth": 3}


class Predictor(nn.Module):
    """The pretraining's predictor, made of the encoder's blocks: it guesses features of tokens that were left out."""

    def __init__(self, state: dict[str, Tensor], depth: int) -> None:
        super().__init__()
        self.embed, self.proj = nn.Linear(1024, 384), nn.Linear(384, 1024)
        self.blocks = nn.ModuleList(
            Block(384, attention=RotaryAttention(384, num_heads=12), mlp_ratio=4.0) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(384, eps=1e-6)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, 384)) for _ in range(10))
        names = {"predictor_blocks": "blocks", "predictor_embed": "embed", "predictor_norm": "norm"}
        names["predictor_proj"] = "proj"
        parts = {key.removeprefix("predictor."): value for key, value in state.items() if key.startswith("predictor.")}
        self.load_state_dict({re.sub(r"^\w+", lambda m: names.get(m[0], m[0]), key): parts[key] for key in parts})

    def forward(self, seen: Tensor, context: Tensor, targets: Tensor, *, mask: int, grid: tuple[int, ...]) -> Tensor:
        wanted = self.mask_tokens[mask].expand(1, len(targets), -1)
        order = torch.cat((context, targets)).argsort()
        x = torch.cat((self.embed(seen), wanted), dim=1)[:, order]
        cosines, sines = (table[: len(order)] for table in rotation(grid, 32, x))
        for block in self.blocks:
            x = block(x, cosines=cosines, sines=sines)
        return self.proj(self.norm(x)[:, targets])


@pytest.mark.slow
def test_the_pretraining_of_the_authors() -> None:
    """Features of some tokens alone, and of the moving average, reproduce the recorded predictions and loss."""
    record = json.loads((GOLDENS / "vjepa2_pretrain_vit_l_d2__8x96.json").read_text())
    state = {key: torch.from_numpy(value).double() for key, value in fill.fill_state(record["state"]).items()}
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    encoders = []
    for part in ("encoder.", ""):
        model = stvid.create_model("vjepa2_vit_l", num_classes=0, depth=2, num_frames=8, img_size=96).double().eval()
        report = stvid.load_checkpoint(model, {key: value for key, value in state.items() if key.startswith(part)})
        assert report.format == "facebookresearch/vjepa2 encoder"
        encoders.append(model)
    encoder, average = encoders
    predictor = Predictor(state, depth=4).double()
    losses = []
    with torch.no_grad():
        features = average.forward_features(clip)
        goal = torch.nn.functional.layer_norm(features, features.shape[-1:])
        for number, (context, targets) in enumerate(zip(record["context_ids"], record["target_ids"], strict=True)):
            assert sorted(context + targets) == list(range(4 * 6 * 6))
            mask = torch.zeros(1, 4 * 6 * 6, dtype=torch.bool)
            mask[0, targets] = True
            seen = encoder.forward_features(clip, mask=mask)
            places = torch.tensor(context), torch.tensor(targets)
            guess = predictor(seen, *places, mask=number, grid=(4, 6, 6))
            losses.append((guess - goal[:, places[1]]).abs().mean())
            if number == 0:
                rows, columns = record["config"]["output_stride"]
                found = guess[0, ::rows, ::columns].flatten().numpy()
                expected = np.array(record["logits"]).flatten()
                assert np.abs(found - expected).max() < 1e-7 * record["logits_std"]
    assert float(sum(losses) / len(losses)) == pytest.approx(record["loss"], rel=1e-7)
