from __future__ import annotations

import pytest
import torch

from stvid.models.heads import LinearHead, NamedHeads, average_windows, mean_of_windows


def test_mean_of_windows() -> None:
    x = torch.arange(3.0).reshape(1, 1, 3, 1, 1)
    assert mean_of_windows(x, None).item() == 1.0
    assert mean_of_windows(x, (5, 7, 7)).item() == 1.0
    y = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 1, 3, 1, 1)
    assert mean_of_windows(y, (2, 7, 7)).item() == 0.25  # windows (1, 0) and (0, 0): the first position weighs half


def test_named_heads_see_the_same_features() -> None:
    heads = {"verb": LinearHead(8, 97), "noun": LinearHead(8, 300)}
    named = NamedHeads(heads).eval()
    x = torch.randn(2, 8, 3, 4, 4)
    logits = named(x)
    assert list(logits) == ["verb", "noun"]
    for name, head in heads.items():
        torch.testing.assert_close(logits[name], head(x))
    pooled = named(x, pre_logits=True)
    torch.testing.assert_close(pooled["verb"], x.mean((2, 3, 4)))
    torch.testing.assert_close(pooled["noun"], pooled["verb"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_windows_of_low_precision(dtype: torch.dtype) -> None:
    """torch has no average of 3D windows for these types on CPUs."""
    x = torch.randn(1, 4, 2, 3, 3)
    found = average_windows(x.to(dtype), (2, 2, 2))
    assert found.dtype == dtype and found.shape == (1, 4, 1, 2, 2)
    torch.testing.assert_close(found.float(), average_windows(x, (2, 2, 2)), rtol=0.02, atol=0.02)
    assert average_windows(x.to(dtype), (9, 9, 9)).shape == (1, 4, 1, 1, 1)
