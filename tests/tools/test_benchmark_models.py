"""The parts of the model benchmark that decide what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

import stvid


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], Any]) -> Any:
    return load_tool("benchmark_models")


def test_every_peer_is_of_a_model_that_exists(tool: Any) -> None:
    pairs = [(peer.model, peer.library) for peer in tool.PEERS]
    assert len(set(pairs)) == len(pairs) and {model for model, _ in pairs} <= set(stvid.list_models())
    assert [peer.model for peer in tool.find_peers(["i3d_*", "s3d"])] == ["s3d", "i3d_r50"]
    with pytest.raises(SystemExit, match=r"nothing_\* matches none of .*r3d_18"):
        tool.find_peers(["nothing_*"])


def test_both_sides_have_the_same_weights(tool: Any) -> None:
    pytest.importorskip("torchvision")
    peer = tool.Peer("r3d_18", "torchvision", tool.torchvision("r3d_18"), (4, 32, 32))
    network = tool.build_peer(peer)
    model = tool.build_own(peer, network)
    clip = torch.randn(1, 3, *peer.clip)
    expected = tool.forward_step(network, peer.call, clip, "float32")()
    torch.testing.assert_close(tool.forward_step(model, peer.call, clip, "float32")(), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-3
    before = model.head.fc.weight.clone()
    tool.train_step(model, peer.call, clip, "float32")()
    assert not torch.equal(model.head.fc.weight, before)


def test_a_stream_goes_on_from_call_to_call(tool: Any) -> None:
    model = stvid.create_model("movinet_xxs", num_classes=3).eval()
    clip = torch.randn(1, 3, 2, 32, 32)
    call = tool.call_stream()
    with torch.no_grad():
        torch.testing.assert_close(call(model, clip[:, :, :1]), model(clip[:, :, :1]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(call(model, clip[:, :, 1:]), model(clip), rtol=1e-4, atol=1e-4)


def test_an_absent_library_is_named(tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    absent = tool.Peer("r3d_18", "no_such_library", tool.torchvision("r3d_18"), (4, 32, 32))
    monkeypatch.setattr(tool, "PEERS", (absent,))
    assert tool.main(["--threads", str(torch.get_num_threads())]) == 0
    assert "left out: no_such_library is not installed" in capsys.readouterr().err


def test_the_table_shows_ratios(tool: Any) -> None:
    row = {"model": "s3d", "peer": "torchvision 1.0", "batch": 4, "dtype": "bf16", "step": "forward"}
    speed = {
        "stvid_s": 0.1,
        "peer_s": 0.25,
        "ratio": 2.5,
        "cpu_ratio": 2.4,
        "gflops_per_s": 123.0,
        "matmul_share": 0.5,
        "largest_difference": 1e-6,
        "same_top1": False,
    }
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tool.make_table([row | speed], memory=False))
        console.print(tool.make_table([row | {"stvid_mb": 400.0, "peer_mb": 600.0, "ratio": 1.5}], memory=True))
    text = capture.get()
    assert "stvid MB" in text and "stvid s" in text
    assert "2.50" in text and "50%" in text and "DIFFERENT" in text and "1.50" in text
