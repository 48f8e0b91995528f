"""report.html: whole, self-contained and escaped, with few classes and with many."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stvid.data.dataset import EvalDataset
from stvid.data.manifest import Manifest, VideoEntry
from stvid.evaluation.result import EvaluationResult, ViewAccumulator
from stvid.look.report import Example, find_examples, report_html, write_report
from stvid.protocol import Protocol

EVIL = "<b>left</b> & \"right\" </td><script>alert('x')</script>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Fails if tags do not match; collects the text, the tags and what is referred to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def make(classes: int, *, videos: int = 60, probe: bool = True, task: str = "multiclass") -> EvaluationResult:
    rng = np.random.default_rng(0)
    names = (EVIL, *(f"class {k}" for k in range(1, classes)))
    also = ("1x1", "1x3") if probe else ()
    accumulator = ViewAccumulator(Protocol(class_names=names), views="2x3", also=also, task=task)  # type: ignore[arg-type]
    for index in range(videos):
        label = int(rng.integers(classes))
        target = np.eye(classes, dtype=np.int64)[label]
        logits = 2 * target + rng.normal(size=(len(accumulator.layout.views), classes))
        probes = {name: rng.normal(size=(6, classes)) for name in ("reversed", "frozen")} if probe else {}
        given = target if task == "multilabel" else label
        accumulator.add(index, logits, given, path=f"/v/{EVIL}{index}.mp4", probes=probes, distinct=6 - index % 2)
    accumulator.add_failure(videos, "/v/bad \udcff.mp4", EVIL, labels=target if task == "multilabel" else 0)
    result = accumulator.result()
    result.command = f"stvid test --data '{EVIL}'"
    return result


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("classes", [1, 2, 8, 400])
@pytest.mark.parametrize("probe", [True, False])
def test_page_is_whole_and_needs_nothing_else(classes: int, probe: bool, task: str) -> None:
    if task == "multiclass" and classes == 1:
        pytest.skip("one class is no choice")
    result = make(classes, probe=probe, task=task)
    result.cost = {"params": 1e6, "gflops": 2.5, "seconds": 3.0}
    text = report_html(result, title=EVIL)
    page = Page(text)
    assert page.references == [] and "script" not in page.tags and "b" in page.tags
    assert "http" not in text and "url(" not in text and "@import" not in text and EVIL not in text
    assert EVIL in page.text
    assert len(text.encode()) < 300_000
    main = "mAP@2x3" if task == "multilabel" else "top1@2x3"
    assert main in page.text and f"{100 * result.metrics[main]:.2f}%" in page.text
    assert "1 could not be read" in page.text and "bad \ufffd.mp4" in page.text
    assert ("Does it use time?" in page.text) == probe
    assert (f"{classes} classes, of which guessing finds" in page.text) == (task == "multiclass")
    assert ("top5@2x3" in page.text) == (task == "multiclass" and classes > 5)
    assert ("Reliability" in page.text) == (task == "multiclass")
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    if probe:
        assert "2.5 × 3 = 7.5" in page.text and "2.5 × 6 = 15" in page.text
        assert f"{100 * result.metrics[main.replace('2x3', '1x3')]:.2f}%" in page.text
        assert f"{100 * result.probe['frozen']['metrics'][main]:.2f}%" in page.text
        assert "30 short or square videos have equal views" in page.text


def test_confusions_of_few_and_of_many_classes() -> None:
    few, many = make(8), make(400, videos=900)
    page = report_html(few)
    assert few.confusion is not None and many.confusion is not None
    cells = re.findall(r'<td class="(hit|miss)" style="--share:([\d.]+)" title="[^"]*: (\d+)"', page)
    assert [int(count) for _, _, count in cells] == few.confusion.ravel().tolist()
    shares = np.array([float(share) for _, share, _ in cells]).reshape(8, 8)
    np.testing.assert_allclose(shares, few.confusion / few.confusion.sum(axis=1, keepdims=True), atol=6e-4)
    page = report_html(many)
    assert 'class="matrix"' not in page and "The most frequent of the confusions among 400 classes" in page
    off = many.confusion - np.diag(many.confusion.diagonal())
    true, predicted = divmod(int(off.argmax()), 400)
    row = [many.class_names[true], many.class_names[predicted], str(off.max())]
    assert " ".join(row) in Page(page).text


def test_a_perfect_model() -> None:
    accumulator = ViewAccumulator(Protocol(class_names=("a", "b")))
    for index in range(4):
        accumulator.add(index, np.eye(2)[[index % 2]] * 9, index % 2, path=f"/v/{index}.mp4")
    page = Page(report_html(accumulator.result()))
    assert "No video is taken for one of another class" in page.text and "100.00%" in page.text


@pytest.mark.parametrize("temporal", ["normal", "reversed"])
def test_strips_show_what_the_model_saw(
    make_video: Callable[..., Path], frame_number: Callable[[np.ndarray], int], tmp_path: Path, temporal: str
) -> None:
    files = [make_video(f"{n}.mp4", width=96, height=96, frames=40, first=100 * n) for n in range(3)]
    manifest = Manifest.from_entries([VideoEntry(str(path), ("a",)) for path in files], class_names=("a", "b"))
    protocol = Protocol(frames=4, stride=2, short_side=96, crop=96, views="2x1", class_names=("a", "b"))
    accumulator = ViewAccumulator(protocol, temporal=temporal)  # type: ignore[arg-type]
    wrong = [np.array([[0, 1.0], [0, 3.0]]), np.array([[0, 9.0], [0, 8.0]]), np.array([[5.0, 0], [5.0, 0]])]
    for index, logits in enumerate(wrong):
        accumulator.add(index, logits, 0, path=str(files[index]))
    result = accumulator.result()
    dataset = EvalDataset(manifest, protocol, views="2x1")
    examples = find_examples(result, dataset, count=1, size=96)
    assert [(item.kind, item.number, item.view) for item in examples] == [("confident", 1, 0), ("hard", 0, 1)]
    for item, first in zip(examples, (100, 33), strict=True):
        strip = np.asarray(Image.open(io.BytesIO(item.strip)).convert("RGB"))
        assert strip.shape == (96, 4 * 98 - 2, 3)
        seen = [frame_number(strip[:, 98 * n : 98 * n + 96]) for n in range(4)]
        expected = [first + 2 * n for n in range(4)]
        assert seen == (expected if temporal == "normal" else expected[::-1])
    page = write_report(result, tmp_path, examples=examples)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    assert [base64.b64decode(picture) for picture in pictures] == [item.strip for item in examples]
    assert list(tmp_path.iterdir()) == [page]


def test_a_video_that_is_gone_when_the_report_is_made() -> None:
    page = Page(report_html(make(2), examples=[Example("hard", 0, 0, b"")]))
    assert "cannot be read any more" in page.text
