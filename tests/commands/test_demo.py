"""``stvid demo`` as a user types it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

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
