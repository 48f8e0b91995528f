"""The answers that the demo page shows: what is kept of each window, the frames that count, where models disagree."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import stvid
from stvid.errors import ConfigError, VideoError
from stvid.evaluation.timeline import TimelineWindow, timeline
from stvid.look import demo_results
from stvid.look.demo_results import Comparison, Lead, ModelRun, compare_runs, results_page
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

NAMES = ("walk & run", "<b>jump</b>", "turn")
PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, class_names=NAMES)


def watched(run: ModelRun, video: Path, folder: Path, *, window: float = 0.5, stride: float = 0.25) -> ModelRun:
    assert list(run.watch(str(video), folder, window=window, stride=stride, precision="32-true"))
    return run


@pytest.fixture(scope="module")
def video(make_video: Callable[..., Path]) -> Path:
    return make_video("results.mp4", frames=50)


class Page(HTMLParser):
    """Collects the tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, Any]]:
        return [
            found
            for name, found in self.tags
            if name == tag and all(wanted[key] in found.get(key.strip("_"), "") for key in wanted)
        ]


def test_the_whole_video_is_the_mean_of_its_windows(
    tiny_model: Callable[[Protocol], VideoModel], video: Path, tmp_path: Path
) -> None:
    model = tiny_model(PROTOCOL)
    run = watched(ModelRun("mine", model, topk=2), video, tmp_path)
    expected = list(timeline(model, video, window=0.5, stride=0.25))
    assert run.windows == len(expected) == 7 and run.end == expected[-1].end
    np.testing.assert_allclose(run.mean, np.mean([item.scores for item in expected], axis=0))
    assert [lead.name for lead in run.leads] == [item.classes[0] for item in expected]
    assert run.shown[0] == NAMES[int(np.argmax(run.mean))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["timeline.csv", "timeline.json", "timeline.svg"]
    assert '"model": "mine"' in (tmp_path / "timeline.json").read_text()


def test_the_frames_that_count_are_those_of_the_surest_window(
    tiny_model: Callable[[Protocol], VideoModel], video: Path, tmp_path: Path
) -> None:
    run = watched(ModelRun("mine", tiny_model(PROTOCOL), topk=2), video, tmp_path)
    run.explain(str(video))
    assert run.counting and not run.not_explained
    for item in run.counting:
        own = [lead for lead in run.leads if lead.name == item.lead.name]
        assert item.lead.probability == max(lead.probability for lead in own)
        found = stvid.explain(run.model, video, class_name=item.lead.name, start=item.lead.start, end=item.lead.end)
        shares = dict(zip(found.clip.indices.tolist(), found.over_time.tolist(), strict=True))
        assert [index for _, _, index, _ in item.frames] == sorted(shares)
        for second, share, index, address in item.frames:
            assert share == pytest.approx(shares[index]) and second == pytest.approx(index / 25, abs=1e-3)
            assert item.lead.start <= second < item.lead.end and address.startswith("data:image/")


def test_only_the_frames_with_the_largest_shares_are_shown(
    tiny_model: Callable[[Protocol], VideoModel], video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_results, "PICTURES", 2)
    run = watched(ModelRun("mine", tiny_model(PROTOCOL), topk=2), video, tmp_path)
    run.explain(str(video))
    item = run.counting[0]
    found = stvid.explain(run.model, video, class_name=item.lead.name, start=item.lead.start, end=item.lead.end)
    largest = np.argsort(-found.over_time, kind="stable")[:2]
    assert [index for _, _, index, _ in item.frames] == sorted(found.clip.indices[largest].tolist())


def test_a_model_without_a_method_is_said_not_to_have_one(
    tiny_model: Callable[[Protocol], VideoModel], video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = watched(ModelRun("mine", tiny_model(PROTOCOL), topk=2), video, tmp_path)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise ConfigError("method gradcam: Network has no feature maps")

    monkeypatch.setattr(demo_results, "explain", refuse)
    run.explain(str(video))
    assert run.counting == []
    page = Page(results_page([run])).text
    assert "cannot be shown for this model: method gradcam: Network has no feature maps" in page
    with pytest.raises(VideoError):
        run.explain(str(tmp_path / "gone.mp4"))


def test_windows_without_scores_are_said(
    tiny_model: Callable[[Protocol], VideoModel], video: Path, tmp_path: Path
) -> None:
    model = tiny_model(PROTOCOL)
    model.register_forward_hook(lambda module, given, logits: logits * float("nan"))
    run = watched(ModelRun("mine", model, topk=2), video, tmp_path)
    assert run.windows == 7 and run.leads == [] and run.shown == []
    run.explain(str(video))
    page = Page(results_page([run])).text
    assert "A window has no scores: the model gives logits that are not finite numbers" in page
    assert "no window has scores" in page


# --- two models -------------------------------------------------------------------------------------------------------


def led(
    tiny_model: Callable[[Protocol], VideoModel], name: str, classes: Sequence[str], names: Sequence[str]
) -> ModelRun:
    """Returns a run whose windows, of a second each and half a second apart, are led by the given classes."""
    run = ModelRun(name, tiny_model(PROTOCOL.replace(class_names=tuple(names))), topk=2)
    run.leads = [Lead(k / 2, k / 2 + 1, label, 0.9) for k, label in enumerate(classes)]
    run.windows, run.end = len(classes), (len(classes) - 1) / 2 + 1
    return run


def test_where_two_models_disagree(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    names = ("walk", "jump", "turn")
    first = led(tiny_model, "a", ["walk", "walk", "jump", "jump", "jump"], names)
    second = led(tiny_model, "b", ["walk", "turn", "turn", "turn", "jump"], names)
    found = compare_runs(first, second, stride=0.5)
    assert found.text == (
        "They disagree in 3 of 5 windows: 0.75 s to 1.25 s (walk / turn); 1.25 s to 2.25 s (jump / turn)."
    )
    assert found.bands == ((0.75, 1.25), (1.25, 2.25))
    assert compare_runs(first, first, stride=0.5) == Comparison("Both name the same class first in all 5 windows.", ())


def test_a_long_list_of_disagreements_is_cut(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    names = ("walk", "jump")
    first = led(tiny_model, "a", ["walk", "walk"] * 20, names)
    second = led(tiny_model, "b", ["walk", "jump"] * 20, names)
    found = compare_runs(first, second, stride=0.5)
    assert found.text.startswith("They disagree in 20 of 40 windows: ")
    assert found.text.endswith("; and in 14 further parts.") and len(found.bands) == 20


def test_models_of_other_classes_cannot_agree(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    first = led(tiny_model, "a", ["walk"], ("walk", "jump"))
    second = led(tiny_model, "b", ["red"], ("red", "green", "blue"))
    text = compare_runs(first, second, stride=0.5).text
    assert "no class in common (2 and 3 classes)" in text
    second.leads = []
    assert compare_runs(first, second, stride=0.5).text == "There is no window to which both give scores."


# --- the page ---------------------------------------------------------------------------------------------------------


def sure(model: VideoModel, factor: float) -> VideoModel:
    """Makes a model surer of itself, so that its classes change over a video."""

    def scale(module: VideoModel, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        return logits * factor

    model.register_forward_hook(scale)
    return model


def test_two_models_stand_side_by_side_on_one_axis(
    tiny_model: Callable[[Protocol], VideoModel], video: Path, tmp_path: Path
) -> None:
    runs = [
        watched(ModelRun(f"model <{k}>", sure(tiny_model(PROTOCOL), factor), topk=2), video, tmp_path / str(k))
        for k, factor in enumerate((50.0, -50.0))
    ]
    for run in runs:
        run.explain(str(video))
    compared = compare_runs(*runs, stride=0.25)
    text = results_page(runs, compared)
    page = Page(text)
    assert compared.bands and compared.text in page.text
    assert len(page.all("section")) == 2 and "model <0>" in page.text and "<b>jump" not in text
    plots = page.all("svg", role="img")
    assert len(plots) == 4 and {plot["data-end"] for plot in plots} == {str(runs[0].end)}  # each wide and narrow
    assert len(page.all("rect", class_="band")) == 4 * len(compared.bands)
    frames = page.all("button", class_="stvid-frame")
    assert len(frames) == sum(len(item.frames) for run in runs for item in run.counting) > 0
    for button in page.all("button"):
        assert button["type"] == "button" and button["aria-label"] and 0 <= float(button["data-second"]) < runs[0].end
    assert len(page.all("path", class_="mark")) == 2 * len(frames)


def test_the_same_class_has_the_same_colour_in_both_plots(
    tiny_model: Callable[[Protocol], VideoModel], video: Path, tmp_path: Path
) -> None:
    other = PROTOCOL.replace(class_names=("turn", "sit", "walk & run"))
    runs = [
        watched(ModelRun(str(k), tiny_model(protocol), topk=3), video, tmp_path / str(k))
        for k, protocol in enumerate((PROTOCOL, other))
    ]
    rows = re.findall(r'stroke="(#\w+)" stroke-width="5"[^>]*/></svg>([^\n]+)', results_page(runs))
    colours: dict[str, set[str]] = {}
    for colour, name in rows:
        colours.setdefault(name, set()).add(colour)
    assert sorted(colours) == ["&lt;b&gt;jump&lt;/b&gt;", "sit", "turn", "walk &amp; run"] and len(rows) == 6
    assert all(len(found) == 1 for found in colours.values())


def test_without_names_the_logits_are_numbered(
    tiny_model: Callable[[Protocol], VideoModel], video: Path, tmp_path: Path
) -> None:
    model = tiny_model(PROTOCOL)
    model.default_protocol = PROTOCOL.replace(class_names=())
    run = watched(ModelRun("mine", model, topk=2), video, tmp_path)
    run.explain(str(video))
    page = Page(results_page([run])).text
    assert "The order of the classes is not known" in page and re.search(r"class [012]", page)


def test_nothing_is_drawn_before_there_is_an_answer(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    assert "<section" not in results_page([]) + results_page([ModelRun("mine", tiny_model(PROTOCOL), topk=2)])


def test_changes_join_windows_with_one_class(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    run = led(tiny_model, "a", ["walk", "walk", "jump", "walk"], ("walk", "jump"))
    assert [(part.start, part.end, part.name) for part in run.changes()] == [
        (0.0, 1.5, "walk"),
        (1.0, 2.0, "jump"),
        (1.5, 2.5, "walk"),
    ]


def test_memory_does_not_grow_with_scores(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    run = ModelRun("mine", tiny_model(PROTOCOL), topk=2)
    scores = np.array([0.1, 0.2, 0.7])
    for k in range(100):
        run._take(TimelineWindow(float(k), k + 1.0, ("turn",), (0.7,), scores))
    assert not any(isinstance(value, np.ndarray) and value.size > 3 for value in vars(run).values())
    np.testing.assert_allclose(run.mean, scores)
