"""Parts of an evaluation, and of predictions, join to what one process gives, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stvid
from stvid.data.parts import Part
from stvid.errors import ConfigError, StvidError
from stvid.evaluation import parts
from stvid.evaluation.evaluate import Evaluation, Execution, evaluate, prepare
from stvid.evaluation.predict import Classification, predict
from stvid.evaluation.record import EvaluationResult
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, views="1x3", class_names=("left", "right", "turn"))
# Ten videos of 3 + 2 views: batches of 3 videos, the last of one.
MEASURED: dict[str, Any] = {"also": ["2x1"], "probe": ("shuffled",), "batch_size": 15, "seed": 3}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[Protocol], VideoModel]) -> VideoModel:
    return tiny_model(PROTOCOL)


@pytest.fixture(scope="module")
def videos(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_dataset(tmp_path_factory.mktemp("parts") / "videos", per_class=3)
    (folder / "left" / "bad.mp4").write_text("no video")
    return folder


def same(found: EvaluationResult, expected: EvaluationResult) -> bool:
    """Whether two results are equal in all but the time that they took."""
    pairs = []
    for result in (found, expected):
        plain = dataclasses.replace(result, cost={}, progress_file=None)
        pairs.append({field.name: getattr(plain, field.name) for field in dataclasses.fields(plain) if field.compare})
    for name, value in pairs[0].items():
        np.testing.assert_equal(value, pairs[1][name], err_msg=name)
    return True


def work_of(evaluation: Evaluation, folder: Path) -> parts.BatchWork:
    return parts.work_of(evaluation, folder, weights=evaluation.model, optimize=False)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_joined_parts_are_the_result_of_one_process(
    count: int, model: VideoModel, videos: Path, tmp_path: Path
) -> None:
    expected = evaluate(model, videos, **MEASURED)
    evaluation = prepare(model, videos, **MEASURED)
    assert [len(batch) for batch in evaluation.batches()] == [3, 3, 3, 1]
    work = work_of(evaluation, tmp_path)
    reports = [parts.evaluate_part(evaluation, work, Part(number, count)) for number in range(count, 0, -1)]
    assert sum(report.videos for report in reports) == 10 and sum(report.failed for report in reports) == 1
    result, joined = parts.join_evaluation(evaluation, work)
    assert same(result, expected) and result.counted == 9 and len(result.failures) == 1
    assert "top1@1x3_low" in result.metrics and result.probe_logits.keys() == {"shuffled"}
    assert len(joined.journals) == count + 1 and joined.notes == []


def test_an_interrupted_part_goes_on(
    model: VideoModel, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(model, videos, **MEASURED)
    evaluation = prepare(model, videos, **MEASURED)
    work = work_of(evaluation, tmp_path)
    measure, seen = Evaluation.measure, []

    def stopped(self: Evaluation, samples: Any, place: Any) -> Any:
        seen.append([sample.index for sample in samples])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(self, samples, place)

    monkeypatch.setattr(Evaluation, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        parts.evaluate_part(evaluation, work, Part(2, 2))
    with pytest.raises(StvidError, match=r"shard 1 of 2 is missing"):
        parts.join_evaluation(evaluation, work)
    assert seen == [[3, 4, 5], [9]]
    for number in (2, 1, 2, 1):
        parts.evaluate_part(evaluation, work, Part(number, 2))
    # The batch with the video that cannot be read is tried again.
    assert evaluation.videos[0].path.endswith("bad.mp4")
    assert seen[2:] == [[9], [0, 1, 2], [6, 7, 8], [0, 1, 2]]
    assert same(parts.join_evaluation(evaluation, work)[0], expected)


def test_a_video_that_can_be_read_later_counts(
    model: VideoModel, videos: Path, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    evaluation = prepare(model, videos, **MEASURED)
    work = work_of(evaluation, tmp_path)
    bad = videos / "left" / "bad.mp4"
    try:
        for number in (1, 2):
            parts.evaluate_part(evaluation, work, Part(number, 2))
        assert len(parts.join_evaluation(evaluation, work)[0].failures) == 1
        bad.unlink()
        make_video("bad.mp4", frames=30, to=videos / "left")
        for number in (1, 2):
            parts.evaluate_part(evaluation, work, Part(number, 2))
        assert same(parts.join_evaluation(evaluation, work)[0], evaluate(model, videos, **MEASURED))
    finally:
        bad.write_text("no video")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": "1x1"}, "views 1x3, this command has 1x1"),
        ({"also": []}, "another protocol or options"),
        ({"batch_size": 4}, r"batch_size \[15, 15\], this command has \[4, 4\]"),
    ],
)
def test_parts_of_another_evaluation_are_refused(
    change: dict[str, Any], said: str, model: VideoModel, videos: Path, tmp_path: Path
) -> None:
    evaluation = prepare(model, videos, **MEASURED)
    parts.evaluate_part(evaluation, work_of(evaluation, tmp_path), Part(1, 1))
    other = prepare(model, videos, **{**MEASURED, **change})
    with pytest.raises(ConfigError, match=said):
        parts.join_evaluation(other, work_of(other, tmp_path))


def test_parts_of_other_weights_and_videos_are_refused(
    model: VideoModel, tiny_model: Callable[[Protocol], VideoModel], videos: Path, tmp_path: Path
) -> None:
    evaluation = prepare(model, videos, **MEASURED)
    parts.evaluate_part(evaluation, work_of(evaluation, tmp_path), Part(1, 1))
    changed = tiny_model(PROTOCOL)
    next(iter(changed.parameters())).data[0] += 1
    other = prepare(changed, videos, **MEASURED)
    with pytest.raises(ConfigError, match="was made with other weights than this command has"):
        parts.join_evaluation(other, work_of(other, tmp_path))
    manifest = stvid.read_manifest(videos)
    fewer = prepare(model, manifest.subset(np.arange(9)), **MEASURED)
    with pytest.raises(ConfigError, match="was made with another list of videos"):
        parts.join_evaluation(fewer, work_of(fewer, tmp_path))


def test_joined_predictions_are_those_of_one_process(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(videos.rglob("*.mp4"))]
    given = [*paths, paths[0], str(tmp_path / "missing.mp4")]
    expected = predict(model, given, topk=2, batch_size=6)
    work = Classification.prepare(model, given, topk=2, execution=Execution(batch_size=6))
    assert [len(batch) for batch in work.batches()] == [2] * 5 + [1]
    shared = parts.prediction_work(work, tmp_path / "p.csv", weights=model)
    assert parts.predict_part(work, shared, Part(2, 2)).journal == tmp_path / "p.2-of-2.jsonl"
    with pytest.raises(StvidError, match="shard 1 of 2 is missing"):
        parts.join_predictions(work, shared)
    report = parts.predict_part(work, shared, Part(1, 2))
    assert report.videos == 6
    found, joined = parts.join_predictions(work, shared)
    assert found == expected and found[0] == found[10] and len(joined.journals) == 3
    other = Classification.prepare(model, given[1:], topk=2, execution=Execution(batch_size=6))
    with pytest.raises(ConfigError, match="another list of videos"):
        parts.join_predictions(other, parts.prediction_work(other, tmp_path / "p.csv", weights=model))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_gives_the_result_of_one_process(
    model: VideoModel, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the workers
    expected = evaluate(model, videos, **MEASURED)
    evaluation = prepare(model, videos, **MEASURED)
    work = work_of(evaluation, tmp_path)
    report = parts.evaluate_on_ray(evaluation, work, Part(1, 1), workers=2)
    assert (report.videos, report.failed) == (10, 1)
    assert same(parts.join_evaluation(evaluation, work)[0], expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_gives_the_predictions_of_one_process(
    model: VideoModel, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the workers
    given = [*map(str, sorted(videos.rglob("*.mp4"))), str(tmp_path / "missing.mp4")]
    work = Classification.prepare(model, given, topk=2, execution=Execution(batch_size=6))
    shared = parts.prediction_work(work, tmp_path / "p.csv", weights=model)
    report = parts.predict_on_ray(work, shared, Part(1, 1), workers=2)
    assert (report.videos, report.failed) == (11, 2)
    assert parts.join_predictions(work, shared)[0] == predict(model, given, topk=2, batch_size=6)
    in_memory = Classification.prepare(model, [b"video"], execution=Execution())
    with pytest.raises(ConfigError, match="in memory, which --engine ray does not read"):
        parts.predict_on_ray(in_memory, shared, Part(1, 1))
