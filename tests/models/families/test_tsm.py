"""TSM on ResNets: where the shifts stand, non-local blocks, and the names of published files."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import stvid
from stvid.errors import StvidError
from stvid.models.nonlocal_block import NonLocal
from stvid.models.segments import TemporalShift

TINY: dict[str, Any] = {"num_classes": 5, "depth": (1, 3, 5, 1), "embed_dim": 64}


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    return stvid.create_model("tsm_r50", **{**TINY, **options}).eval()


def places(model: Any, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_networks_of_101_layers_shift_in_every_second_block() -> None:
    with torch.device("meta"):
        deep = stvid.create_model("tsm_r101")
        in_place = stvid.create_model("tsm_r101", shift_place="block")
    found = places(deep, TemporalShift)
    assert len(found) == 2 + 2 + 12 + 2 and "layer1.1.before" not in found and "layer1.2.before" in found
    assert len(places(in_place, TemporalShift)) == 33
    assert len(places(tiny(), TemporalShift)) == 10
    with pytest.raises(ValueError, match="shift_place 'stage': must be blockres or block"):
        tiny(shift_place="stage")


def test_time_pool() -> None:
    model = tiny(temporal_pool=True)
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 8, 32, 32)).shape[2] == 4


@pytest.mark.parametrize("kind", [True, "softmax", "dot_product", "gaussian"])
def test_nonlocal_blocks(kind: Any) -> None:
    model = tiny(non_local=kind)
    assert places(model, NonLocal) == [f"layer{place}.after" for place in ("2.0", "2.2", "3.0", "3.2", "3.4")]
    clip = torch.randn(1, 3, 4, 64, 64)
    plain = tiny()
    with torch.no_grad():
        report = plain.load_state_dict(model.state_dict(), strict=False)
        assert not report.missing_keys
        torch.testing.assert_close(plain(clip), model(clip))  # the blocks start as the identity
        for name in places(model, NonLocal):
            model.get_submodule(name).norm.weight.fill_(1.0)
        assert not torch.allclose(plain(clip), model(clip))


def _published(own: dict[str, torch.Tensor], nl: str) -> dict[str, torch.Tensor]:
    """Renames a tiny model's state as the authors (`nl`) or mmaction2 (`non_local_block`) name theirs."""
    authors = nl == "nl"
    blocks = {key.partition(".after.")[0] for key in own if ".after." in key}
    state = {}
    for old, value in own.items():
        key = old
        block = ".".join(key.split(".")[:2])
        if block in blocks and ".after." not in key:
            key = key.replace(block, f"{block}.block", 1)
        conv, norm = (r".conv\1.net.", r".bn\1.") if authors else (r".conv\1.conv.net.", r".conv\1.bn.")
        key = re.sub(r"\.conv(1)\.0\.", conv, key)
        key = re.sub(r"\.conv(\d)\.0\.", conv.replace("net.", ""), key)
        key = re.sub(r"\.conv(\d)\.1\.", norm, key)
        if authors:
            for new, name in (("W.0", "out"), ("W.1", "norm"), ("g.0", "g"), ("phi.0", "phi"), ("theta", "theta")):
                key = key.replace(f".after.{name}.", f".nl.{new}.")
            key = key.replace("stem.0", "conv1").replace("stem.1", "bn1")
            key = f"base_model.{key}" if not key.startswith("head.") else key.replace("head.fc", "new_fc")
        else:
            for new, name in (("conv_out.conv", "out"), ("conv_out.bn", "norm"), ("g.0.conv", "g")):
                key = key.replace(f".after.{name}.", f".non_local_block.{new}.")
            key = key.replace(".after.phi.", ".non_local_block.phi.0.conv.")
            key = key.replace(".after.theta.", ".non_local_block.theta.conv.")
            key = re.sub(r"\.downsample\.([01])\.", lambda m: f".downsample.{['conv', 'bn'][int(m[1])]}.", key)
            key = key.replace("stem.0", "conv1.conv").replace("stem.1", "conv1.bn")
            key = f"backbone.{key}" if not key.startswith("head.") else key.replace("head.fc", "cls_head.fc_cls")
        state[key] = value
    return state


@pytest.mark.parametrize("nl", ["nl", "non_local_block"])
def test_names_of_nonlocal_blocks(nl: str) -> None:
    built = tiny(non_local=True)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    own = dict(built.state_dict())
    published = _published(own, nl)
    if nl == "non_local_block":  # mmaction2's last convolution has no bias
        published = {key: value for key, value in published.items() if not key.endswith("conv_out.conv.bias")}
    layout, found = tiny(non_local=True).convert_checkpoint(published)
    assert layout == ("mit-han-lab/temporal-shift-module" if nl == "nl" else "mmaction2")
    assert set(found) == set(own)
    for key, value in own.items():
        expected = torch.zeros_like(value) if nl != "nl" and key.endswith("after.out.bias") else value
        assert torch.equal(found[key], expected), key
    options = {} if nl == "nl" else {"nonlocal_bias": False}
    assert tiny().options_of(published) == {"non_local": True, "nonlocal_bias": nl == "nl"}
    assert tiny(non_local=True, **options).options_of(published) in ({}, {"nonlocal_bias": True})


@pytest.mark.parametrize("name", ["tsm_r18", "tsm_mobilenet_v2"])
def test_causal_networks_see_no_later_frame(name: str) -> None:
    options: dict[str, Any] = {"depth": (1, 2, 1, 1), "embed_dim": 16} if name == "tsm_r18" else {"width": 0.25}
    torch.manual_seed(0)
    model = stvid.create_model(name, num_classes=3, causal=True, **options).eval()
    clip = torch.randn(1, 3, 5, 64, 64)
    other = clip.clone()
    other[:, :, 3:] = 0.0
    with torch.no_grad():
        whole, cut = model.forward_features(clip), model.forward_features(other)
        torch.testing.assert_close(whole[:, :, :3], cut[:, :, :3])
        assert not torch.allclose(whole[:, :, 3:], cut[:, :, 3:])
        later = clip.clone()
        later[:, :, 2] = 0.0
        assert not torch.allclose(model.forward_features(later)[:, :, 3], whole[:, :, 3])  # the next frame sees it
    if name == "tsm_r18":
        with pytest.raises(ValueError, match="causal: non_local and temporal_pool see later frames"):
            tiny(causal=True, non_local=True)


@pytest.mark.parametrize("name", ["tsm_r18", "tsm_mobilenet_v2"])
@pytest.mark.parametrize("chunks", [[1, 1, 1, 1, 1, 1], [2, 3, 1], [6]])
def test_a_stream_in_chunks_gives_the_logits_of_one_pass(name: str, chunks: list[int]) -> None:
    options: dict[str, Any] = {"depth": (1, 2, 1, 1), "embed_dim": 16} if name == "tsm_r18" else {"width": 0.25}
    torch.manual_seed(0)
    model = stvid.create_model(name, num_classes=3, causal=True, **options).double().eval()
    clip = torch.randn(2, 3, 6, 64, 64, dtype=torch.float64)
    state, seen = model.init_state(2), 0
    sizes = set()
    with torch.no_grad():
        for chunk in clip.split(chunks, dim=2):
            logits, state = model.step(chunk, state)
            seen += chunk.shape[2]
            torch.testing.assert_close(logits, model(clip[:, :, :seen]))
            sizes.add(sum(buffer.numel() for buffer in state.buffers))
    assert state.frames == 6 and len(sizes) == 1  # what is kept does not grow


def test_only_causal_networks_run_over_a_stream() -> None:
    model = tiny()
    assert not model.streams
    with pytest.raises(StvidError, match="TSM does not run over a stream"):
        model.init_state()
    causal = stvid.create_model("tsm_r18", num_classes=3, depth=(1, 1, 1, 1), embed_dim=16, causal=True).eval()
    with pytest.raises(ValueError, match="the state is for 2 streams side by side, the frames are of 1"):
        causal.step(torch.randn(1, 3, 1, 32, 32), causal.init_state(2))
    causal.reset_classifier(3, head="attentive")
    with pytest.raises(StvidError, match="a head that pools by attention"):
        causal.step(torch.randn(1, 3, 1, 32, 32), causal.init_state())
