"""``stvid demo`` as a user types it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvid.look import demo_page
from stvid.look.demo_models import ModelShelf

Call = Callable[..., tuple[int, str, str]]


def test_demo_without_gradio(checkpoint: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = call("demo", "--checkpoint", checkpoint)
    assert code == 1 and "pip install 'stvid[demo]'" in err


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
def test_demo_bad_calls(checkpoint: str, call: Call) -> None:
    code, _, err = call("demo", "--checkpoint", checkpoint, "--window", "soon")
    assert code == 2 and "soon" in err


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Takes note of the page that a command would serve, and serves nothing."""
    noted: dict[str, Any] = {}

    def build(models: ModelShelf, **options: Any) -> str:
        noted.update(models=models, **options)
        return "page"

    monkeypatch.setattr(demo_page, "build_page", build)
    monkeypatch.setattr(demo_page, "launch_page", lambda page, **options: noted.update(options))
    return noted


def test_demo_offers_checkpoints_and_published_weights(
    checkpoint: str, call: Call, served: dict[str, Any], tmp_path: Path
) -> None:
    other = tmp_path / "other.ckpt"
    other.write_bytes(Path(checkpoint).read_bytes())
    code, _, err = call("demo", "--checkpoint", checkpoint, "--checkpoint", str(other), "--window_stride", "250ms")
    assert code == 0, err
    models = served["models"]
    first = Path(checkpoint).name
    assert models.names[:2] == (first, "other.ckpt") and models.loaded == ("other.ckpt", first)
    assert "uniformer_s.k400_16x4" in models.names and models.downloads
    assert models.get(first).num_classes == models.get("other.ckpt").num_classes > 1
    assert (served["stride"], served["window"], served["host"]) == (0.25, 2.0, "127.0.0.1")


def test_demo_for_others_fetches_nothing(checkpoint: str, call: Call, served: dict[str, Any]) -> None:
    code, _, err = call("demo", "--checkpoint", checkpoint, "--host", "0.0.0.0", "--loaded", "1")
    assert code == 0, err
    assert not served["models"].downloads and served["models"].limit == 1


def test_demo_says_at_once_what_cannot_be_loaded(checkpoint: str, call: Call, served: dict[str, Any]) -> None:
    code, _, err = call("demo", "--checkpoint", checkpoint, "gone.ckpt")
    assert code == 1 and "gone.ckpt: no such checkpoint or run folder" in err and not served
    code, _, err = call("demo", "--checkpoint", checkpoint, checkpoint)
    assert code == 2 and "is named twice" in err
    code, _, err = call("demo", "--checkpoint", checkpoint, "--loaded", "0")
    assert code == 2 and "--loaded: 0 is not a positive number" in err
