"""ViewAccumulator and EvaluationResult: per-view logits in, numbers and files out. No video is decoded here."""

import json
import math
import os
import pickle
import sys

import numpy as np
import pytest
import torch

from stvid.errors import ConfigError, ManifestError, StvidError
from stvid.evaluation.result import EvaluationError, EvaluationResult, ViewAccumulator
from stvid.protocol import Protocol

NAMES = ("a", "b", "c", "d", "e", "f")
N, V, K = 23, 6, len(NAMES)
PROTOCOL = Protocol(views="2x3", class_names=NAMES)


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=3, size=(N, V, K)).astype(np.float32), rng.integers(0, K, N)


def filled(order=range(N), **options) -> ViewAccumulator:
    logits, labels = data()
    accumulator = ViewAccumulator(PROTOCOL, **options)
    for index in order:
        accumulator.add(index, torch.from_numpy(logits[index]), torch.tensor(labels[index]), path=f"/v/{index}.mp4")
    return accumulator


def test_numbers_against_a_plain_loop():
    logits, labels = data()
    result = filled().result()
    top1, top5 = 0, 0
    for video, label in zip(logits, labels, strict=True):
        score = sum(torch.from_numpy(view).double().softmax(0) for view in video) / V
        order = score.argsort(descending=True).tolist()
        top1 += order[0] == label
        top5 += label in order[:5]
    assert result.metrics["top1@2x3"] == top1 / N == result.metric("top1")
    assert result.metrics["top5@2x3"] == top5 / N
    assert set(result.metrics) == {"top1@2x3", "top5@2x3", "mean_class@2x3"}
    assert result.logits.dtype == np.float32 and np.array_equal(result.logits, logits)
    assert np.array_equal(result.labels, labels) and result.indices.tolist() == list(range(N))
    assert result.counted == N and result.failures == [] and result.views == "2x3"
    assert result.paths[3] == "/v/3.mp4"
    assert result.confusion.sum() == N and result.confusion.diagonal().sum() == top1
    assert [record["support"] for record in result.per_class] == np.bincount(labels, minlength=K).tolist()


def test_order_and_repetition_change_nothing():
    expected = filled().result()
    shuffled = filled([*reversed(range(N)), 0, 5, 5])
    shuffled.add(7, np.zeros((V, K)), 0)  # of a video that comes twice the first counts
    assert len(shuffled) == N
    found = shuffled.result()
    assert found.metrics == expected.metrics
    assert np.array_equal(found.logits, expected.logits) and found.paths == expected.paths


def test_merged_halves_equal_the_whole():
    # As ranks do: interleaved shares, padded with repeated videos, state through pickle.
    parts = [filled(range(0, N, 2)), filled([*range(1, N, 2), 0])]
    parts[1].add_failure(N, "/v/bad.mp4", "empty file", labels=2)
    whole = filled()
    whole.add_failure(N, "/v/bad.mp4", "empty file", labels=2)
    states = [pickle.loads(pickle.dumps(part.state())) for part in parts]
    merged, expected = ViewAccumulator.from_states(states).result(), whole.result()
    assert merged.metrics == expected.metrics
    assert np.array_equal(merged.logits, expected.logits)
    assert (merged.failures, merged.paths) == (expected.failures, expected.paths)


def test_merging_different_evaluations_is_refused():
    other = ViewAccumulator(PROTOCOL.replace(views="1x1"))
    with pytest.raises(ValueError, match="different evaluations: protocol"):
        ViewAccumulator.from_states([filled().state(), other.state()])
    with pytest.raises(ValueError, match="no state"):
        ViewAccumulator.from_states([])


def test_the_caller_may_reuse_its_memory():
    accumulator = ViewAccumulator(Protocol(class_names=("x", "y")))
    buffer = torch.tensor([[1.0, 0.0]])
    accumulator.add(0, buffer, 0)
    buffer.zero_()
    assert accumulator.result().logits.tolist() == [[[1.0, 0.0]]]


def test_half_precision_logits_are_kept_as_float32():
    accumulator = ViewAccumulator(Protocol(class_names=("x", "y")))
    accumulator.add(0, torch.tensor([[1.5, 0.25]], dtype=torch.bfloat16, requires_grad=True), 0)
    assert accumulator.result().logits.dtype == np.float32


def test_failures_bound_the_metrics():
    accumulator = filled()
    right = accumulator.result().metric("top1") * N
    accumulator.add_failure(N, "/v/x.mp4", "empty file", labels=1)
    accumulator.add_failure(N + 1, "/v/y.mp4", "not a video", labels=torch.tensor(1))
    result = accumulator.result()
    assert result.counted == N
    assert result.failures == [("/v/x.mp4", "empty file"), ("/v/y.mp4", "not a video")]
    assert result.metric("top1") == pytest.approx(right / N)
    assert result.metrics["top1@2x3_low"] == pytest.approx(right / (N + 2))
    assert result.metrics["top1@2x3_high"] == pytest.approx((right + 2) / (N + 2))
    for name in ("top1", "top5", "mean_class"):
        assert result.metrics[f"{name}@2x3_low"] <= result.metrics[f"{name}@2x3_high"]
    assert "/v/y.mp4: not a video" in result.summary() and "2 videos could not be read" in result.summary()
    assert f"guessing: top1 {100 / K:.2f}%" in result.summary()


def test_failures_without_labels_bound_what_can_be_bounded():
    accumulator = filled()
    accumulator.add_failure(N, "/v/x.mp4", "empty file")
    metrics = accumulator.result().metrics
    right = metrics["top1@2x3"] * N
    assert metrics["top1@2x3_low"] == pytest.approx(right / (N + 1))
    assert metrics["top1@2x3_high"] == pytest.approx((right + 1) / (N + 1))
    assert "top5@2x3_high" in metrics and "mean_class@2x3_low" not in metrics


def test_a_video_that_one_rank_could_read_has_not_failed():
    accumulator = filled()
    accumulator.add_failure(3, "/v/3.mp4", "a network drive that hung", labels=0)
    result = accumulator.result()
    assert result.failures == [] and result.counted == N and len(accumulator) == N


def test_nothing_readable_is_an_error_that_lists_everything():
    accumulator = ViewAccumulator(PROTOCOL)
    for index in range(5):
        accumulator.add_failure(index, f"/v/{index}.mp4", "empty file", labels=0)
    with pytest.raises(EvaluationError) as caught:
        accumulator.result()
    assert str(caught.value).startswith("none of the 5 videos could be read: /v/0.mp4: empty file; ")
    assert "\n" not in str(caught.value) and "2 more" in str(caught.value)
    assert caught.value.failures == [(f"/v/{index}.mp4", "empty file") for index in range(5)]
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.failures == caught.value.failures


def test_no_video_at_all():
    with pytest.raises(EvaluationError, match="no video"):
        ViewAccumulator(PROTOCOL).result()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_reported(value):
    accumulator = filled()
    logits = np.zeros((V, K), dtype=np.float32)
    logits[2, 1] = value
    accumulator.add(N, logits, 0, path="/v/nan.mp4")
    with pytest.raises(EvaluationError, match=r"not finite numbers for 1 of 24 videos, first /v/nan\.mp4"):
        accumulator.result()


@pytest.mark.parametrize(
    ("logits", "labels", "kind", "message"),
    [
        (np.zeros((5, K)), 0, ConfigError, r"\(5, 6\) for views 2x3: expected \(6, classes\)"),
        (np.zeros(K), 0, ConfigError, "views 2x3"),
        (np.zeros((V, 4)), 0, ConfigError, "4 logits, but the protocol names 6 classes"),
        (np.zeros((V, K)), -1, ManifestError, "v.mp4: label -1"),
        (np.zeros((V, K)), 6, ManifestError, "label 6 is not one of the model's 6 classes"),
        (np.zeros((V, K)), [0, 1], ManifestError, "one label is needed, not 2"),
        (np.zeros((V, K)), 0.5, ManifestError, "whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, kind, message):
    accumulator = ViewAccumulator(PROTOCOL)
    with pytest.raises(kind, match=message):
        accumulator.add(0, logits, labels, path="v.mp4")
    assert len(accumulator) == 0


def multilabel(targets: np.ndarray) -> ViewAccumulator:
    logits, _ = data()
    accumulator = ViewAccumulator(PROTOCOL, task="multilabel")
    for index in range(N):
        accumulator.add(index, logits[index], torch.from_numpy(targets[index]).float(), path=f"/v/{index}.mp4")
    return accumulator


def test_multilabel_map():
    targets = (np.random.default_rng(1).random((N, K)) < 0.4).astype(np.int64)
    targets[:, 2] = 0  # a class without positives is excluded
    accumulator = multilabel(targets)
    result = accumulator.result()
    scores = torch.from_numpy(data()[0]).double().sigmoid().mean(1).numpy()
    expected = []
    for k in (0, 1, 3, 4, 5):
        hits = targets[np.argsort(-scores[:, k]), k]
        expected.append((np.cumsum(hits) / np.arange(1, N + 1))[hits == 1].mean())
    assert result.metrics == {"mAP@2x3": pytest.approx(np.mean(expected), abs=1e-6)}
    assert result.confusion is None and result.per_class[2] == {"class": "c", "support": 0, "ap": None}
    assert "1 of 6 classes have no video" in result.summary()

    accumulator.add_failure(N, "/v/x.mp4", "empty file", labels=np.array([1, 0, 0, 1, 0, 0]))
    bounded = accumulator.result().metrics
    assert bounded["mAP@2x3_low"] < bounded["mAP@2x3"] < bounded["mAP@2x3_high"]


def test_multilabel_without_any_label_is_an_error():
    with pytest.raises(EvaluationError, match="no readable video has a label"):
        multilabel(np.zeros((N, K), dtype=np.int64)).result()
    with pytest.raises(ManifestError, match="6 zeros and ones"):
        ViewAccumulator(PROTOCOL, task="multilabel").add(0, np.zeros((V, K)), 3)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_save_and_load(tmp_path, task):
    if task == "multiclass":
        accumulator = filled(temporal="reversed")
        accumulator.add_failure(N, "/v/bad \udcff.mp4", "empty file", labels=0)  # a name that is not valid UTF-8
        accumulator.add(N + 1, np.zeros((V, K)), 1, path="/v/odd \udcff, name.mp4")
    else:
        accumulator = multilabel(np.eye(K, dtype=np.int64)[np.arange(N) % K])
    result = accumulator.result()
    written = result.save(tmp_path / "new" / "folder")
    assert written == tmp_path / "new" / "folder" / "result.json"
    assert sorted(os.listdir(written.parent)) == ["logits.npz", "result.json"]
    for source in (written, written.parent):
        loaded = EvaluationResult.load(source)
        for name in ("protocol", "metrics", "class_names", "paths", "failures", "per_class", "task", "temporal"):
            assert getattr(loaded, name) == getattr(result, name), name
        assert (loaded.command, loaded.versions) == (result.command, result.versions)
        for name in ("logits", "labels", "indices", "confusion"):
            found, expected = getattr(loaded, name), getattr(result, name)
            assert (found is None and expected is None) or np.array_equal(found, expected), name
        assert loaded.logits.dtype == np.float32


def test_result_json_is_strict_and_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/somebody/.venv/bin/stvid", "test", "--data", "two words"])
    accumulator = ViewAccumulator(PROTOCOL)
    accumulator.add(0, np.zeros((V, K)), 0, path="/v/0.mp4")  # most classes have no video: undefined recall
    accumulator.add_failure(1, "/v/1.mp4", "empty file", labels=1)
    path = accumulator.result().save(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record["metrics"]["top1@2x3"] == 1.0
    assert record["videos"] == {"counted": 1, "failed": [{"path": "/v/1.mp4", "reason": "empty file"}]}
    assert record["protocol"] == PROTOCOL.to_dict()
    assert {"stvid", "torch", "torchvision", "av", "python"} <= set(record["versions"])
    assert record["command"] == "stvid test --data 'two words'"
    assert record["per_class"][1]["recall"] is None


def test_the_command_is_one_that_can_be_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/somebody/stvid/__main__.py", "test"])
    assert filled().result().command == "python -m stvid test"


def test_files_of_different_runs_are_refused(tmp_path):
    filled().result().save(tmp_path / "a")
    filled().result().save(tmp_path / "b")
    os.replace(tmp_path / "b" / "logits.npz", tmp_path / "a" / "logits.npz")
    with pytest.raises(StvidError, match="different runs"):
        EvaluationResult.load(tmp_path / "a")


@pytest.mark.parametrize("damage", ["missing", "no json", "other json", "truncated", "empty"])
def test_damaged_files_are_one_clear_line(tmp_path, damage):
    path = filled().result().save(tmp_path)
    logits = tmp_path / "logits.npz"
    if damage == "missing":
        logits.unlink()
    elif damage == "no json":
        path.write_text("{")
    elif damage == "other json":
        path.write_text("[]")
    elif damage == "truncated":
        logits.write_bytes(logits.read_bytes()[:100])
    else:
        logits.write_bytes(b"")
    with pytest.raises(StvidError) as caught:
        EvaluationResult.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("per_class", 0, "recall"), None),
        (("per_class", 0, "support"), 0),
        (("per_class", 0, "recall"), ...),
        (("metrics", "top1@2x3"), ...),
        (("metrics", "top1@2x3"), None),
        (("metrics", "top1@2x3_low"), 0.5),
        (("also",), ["1x1"]),
        (("classes", 0), "\ud800"),
        (("command",), "\udfff"),
        (("per_class", 0, "name"), "\ud800"),
    ],
)
def test_one_wrong_value_is_one_clear_line(tmp_path, keys, value):
    path = filled().result().save(tmp_path)
    record = json.loads(path.read_text())
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(StvidError, match=r"not an evaluation saved by stvid, or damaged \(.*\); run stvid test again"):
        EvaluationResult.load(tmp_path)


def test_a_full_disk_leaves_the_earlier_files(tmp_path, monkeypatch):
    filled().result().save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StvidError, match=r"cannot save the evaluation \(No space left on device\)"):
        filled(temporal="frozen").result().save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StvidError, match="cannot save"):
        filled().result().save(tmp_path / "taken")
