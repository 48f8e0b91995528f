"""The device of the tests that need a GPU.

``python -m pytest -m gpu`` runs them. ``STVID_TEST_DEVICE=cpu`` runs them on the CPU instead, which shows that they are
right themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that is compared with the CPU; skips the test where there is none."""
    chosen = torch.device(os.environ.get("STVID_TEST_DEVICE", "cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"no CUDA device: torch {torch.__version__} sees none")
    return chosen


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """Products in float32 are computed in float32, and not in the shorter TF32."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed
