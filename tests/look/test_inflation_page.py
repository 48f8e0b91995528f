"""The page of an inflation: every tensor, the layers, the filters, and all of it escaped."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from stvid.errors import StvidError
from stvid.inflation.inflate import inflate_with_report
from stvid.inflation.report import FilterPair, InflationReport, LayerDifference
from stvid.look.inflation_page import inflation_page, write_inflation_page

EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def report() -> InflationReport:
    """A real inflation, with names that must be escaped and filters of known values."""
    torch.manual_seed(0)
    found = inflate_with_report(timm.create_model("test_resnet"), num_frames=4, img_size=64).report
    kept = next(rule for rule in found.rules if rule.target)
    dropped = dataclasses.replace(kept, source="fc.bias", target="", rule=EVIL, source_shape="(5,)", target_shape=())
    return dataclasses.replace(
        found,
        source=EVIL,
        rules=[*found.rules, dropped],
        difference=1e-4,
        reasons=["its padding differs"],
        layers=[LayerDifference("layer1.0", 1e-9), LayerDifference(f"layer4.0{EVIL}", 1e-3)],
        filters=[
            FilterPair("stem", torch.full((20, 3, 7, 7), 0.5), torch.full((20, 3, 3, 7, 7), -0.25)),
            FilterPair("deep", torch.randn(4, 8, 3, 3), torch.randn(4, 8, 1, 3, 3)),
        ],
    )


def test_it_has_every_tensor_filters_and_layers(report: InflationReport, tmp_path: Path) -> None:
    write_inflation_page(report, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text == inflation_page(report) and "http" not in text and "<script" not in text
    words = html.unescape(text)
    assert all(rule.target in words and rule.source in words and rule.rule in words for rule in report.rules)
    assert (
        text.count("<tr>") > len(report.rules)
        and "layer1.0" in words
        and report.verdict() in words
        and 'class="verdict fair"' in text
    )
    assert text.count("<rect") == 2 and text.count("<img") == 2
    picture = base64.b64decode(re.findall(r'src="data:image/png;base64,([^"]+)"', text)[0])
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    side = 7 * (48 // 7) + 2  # scaled, with a border
    assert pixels.shape == (4 * side, 16 * side, 3)  # the 2D kernel and three taps of the first 16 filters
    tiles = pixels.reshape(4, side, 16, side, 3)[:, side // 2, :, side // 2]
    assert (tiles[0] == 255).all() and (tiles[1:] == 64).all()


def test_a_report_without_proof() -> None:
    text = inflation_page(InflationReport("a", "b", []))
    assert "not compared" in text and "<svg" not in text and "<img" not in text


def test_a_page_that_cannot_be_written(report: InflationReport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StvidError, match="the report cannot be written"):
        write_inflation_page(report, tmp_path / "file" / "page.html")
