"""Published numbers stand beside measured ones, if what was measured is what was published."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stvid.classes import class_list
from stvid.evaluation.published import compare_with_published
from stvid.evaluation.result import EvaluationResult, ViewAccumulator
from stvid.look.report import report_html
from stvid.models.weights import Weights
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

NAMES = class_list("jester")
PROTOCOL = Protocol(frames=8, stride=8, views="2x3", mean=IMAGENET_MEAN, std=IMAGENET_STD, class_names=NAMES)
WEIGHTS = Weights(
    model="uniformer_s",
    tag="jester_8x8",
    url="https://example.org/w.pth",
    protocol=PROTOCOL.replace(class_names=()),
    num_classes=len(NAMES),
    classes="jester",
    top1=80.8,
    top5=94.7,
    views="2x3",
    source="Sense-X/UniFormer@0123abc:video_classification/README.md",
)


def measured(protocol: Protocol = PROTOCOL, *, labels: Any = None, **options: Any) -> EvaluationResult:
    """An evaluation of two videos of each class; every fourth is taken for another class."""
    accumulator = ViewAccumulator(protocol, **options)
    wanted = [n // 2 for n in range(2 * len(NAMES))] if labels is None else labels
    for index, label in enumerate(wanted):
        logits = torch.zeros(len(accumulator.layout.views), len(protocol.class_names))
        logits[:, label] = 5.0
        logits[:, (label + 1) % len(NAMES)] = 9.0 if index % 4 == 0 else 0.0
        accumulator.add(index, logits, np.array(label), path=f"{index}.mp4")
    return accumulator.result()


def compare(result: EvaluationResult, **changes: Any) -> EvaluationResult:
    result.published = compare_with_published(dataclasses.replace(WEIGHTS, **changes), result)
    return result


def test_numbers_of_the_same_protocol_are_compared() -> None:
    result = compare(measured())
    top1 = 100 * result.metric("top1")
    assert result.published is not None and result.published["differs"] == []
    assert result.published["difference"]["top1"] == pytest.approx(top1 - 80.8)
    assert result.published["measured"] == pytest.approx({"top1": top1, "top5": 100.0})
    assert result.published_lines() == [
        f"published  top1@2x3 80.8% (Sense-X/UniFormer): measured {top1:.1f}%, {top1 - 80.8:+.1f}",
        "published  top5@2x3 94.7% (Sense-X/UniFormer): measured 100.0%, +5.3",
    ]
    assert result.published_lines()[0] in result.summary().splitlines()


def test_rounded_means_other_spellings_and_further_views_are_the_same() -> None:
    spelled = tuple(name.replace(" ", "_").lower() for name in NAMES)
    result = measured(PROTOCOL.replace(class_names=spelled, mean=(0.4851, 0.4559, 0.406), views="1x1"), also=("2x3",))
    record = compare(result).published
    assert record is not None and record["differs"] == []
    assert record["measured"]["top1"] == pytest.approx(100 * result.metrics["top1@2x3"])
    segments = PROTOCOL.replace(sampling="segment", stride=2)
    record = compare(measured(segments), protocol=segments.replace(stride=1)).published
    assert record is not None and record["differs"] == []  # segment sampling has no stride


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 16}, "frames 16 instead of 8"),
        ({"stride": 2}, "stride 2 instead of 8"),
        ({"fps": 15.0}, "fps 15 instead of none"),
        ({"sampling": "segment"}, "sampling segment instead of dense"),
        ({"short_side": 224}, "short_side 224 instead of 256"),
        ({"crop": 256}, "crop 256 instead of 224"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean (0.5, 0.5, 0.5) instead of (0.485, 0.456, 0.406)"),
        ({"std": (0.225,) * 3}, "std (0.225, 0.225, 0.225) instead of (0.229, 0.224, 0.225)"),
        ({"channels": "bgr"}, "channels bgr instead of rgb"),
        ({"views": "4x3"}, "views 4x3 instead of 2x3"),
    ],
)
def test_each_field_of_the_protocol_counts(change: dict[str, Any], words: str) -> None:
    result = compare(measured(PROTOCOL.replace(**change)))
    assert result.published is not None and result.published["differs"] == [words]
    assert result.published["measured"] == {} == result.published["difference"]
    (line,) = result.published_lines()
    assert line == f"published  top1@2x3 80.8%, top5@2x3 94.7% (Sense-X/UniFormer), not compared: {words}"


def test_other_classes_and_other_orders_of_frames_are_not_compared() -> None:
    few = compare(measured(labels=[0, 1, 2]))
    assert few.published is not None
    assert few.published["differs"] == [f"classes: the videos show 3 of the {len(NAMES)} of jester"]
    others = compare(measured(PROTOCOL.replace(class_names=(*NAMES[:-1], "something else"))))
    assert others.published is not None
    assert others.published["differs"] == [f"classes: 1 of {len(NAMES)} are none of jester"]
    no_views = compare(measured(), views="")
    assert no_views.published is not None
    assert no_views.published["differs"] == ["views: those of the published number are not known"]
    assert "top1 80.8%" in no_views.published_lines()[0] and "@" not in no_views.published_lines()[0]
    unknown = compare(measured(), classes="")
    assert unknown.published is not None and "order" in unknown.published["differs"][0]
    frozen = compare(measured(temporal="frozen"))
    assert frozen.published is not None and frozen.published["differs"] == ["frames frozen"]


def test_without_a_published_number_there_is_no_line() -> None:
    result = compare(measured(), top1=None)
    assert result.published is None and result.published_lines() == [] and "published" not in result.summary()
    result = compare(measured(), top5=None)
    assert len(result.published_lines()) == 1


def test_files_hold_it(tmp_path: Path) -> None:
    result = compare(measured())
    result.save(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["published"] == result.published
    assert EvaluationResult.load(tmp_path).published == result.published
    assert result.published_lines()[0] in html.unescape(report_html(result))
    record = json.loads((tmp_path / "result.json").read_text())
    del record["published"]  # as earlier versions wrote it
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert EvaluationResult.load(tmp_path).published is None
