"""A probe of whole networks: on tiny videos, against the network that it makes, and its mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stvid
from stvid.data.manifest import Manifest, VideoEntry
from stvid.engine import probe as engine
from stvid.engine.probe import ProbeSettings
from stvid.errors import ConfigError, ManifestError, StvidError
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, views="2x3", class_names=("a", "b"))
CLASSES = ("left", "right", "turn")


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[Protocol], VideoModel]) -> VideoModel:
    return tiny_model(PROTOCOL)


@pytest.fixture(scope="module")
def videos(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("probe") / "train", classes=CLASSES, per_class=4)


@pytest.fixture(scope="module")
def others(videos: Path) -> Manifest:
    """Every second video, as a list of its own."""
    listed = stvid.read_manifest(videos)
    return listed.subset(np.arange(0, len(listed), 2))


def run(model: Any, train: Any, val: Any = None, **options: Any) -> stvid.ProbeResult:
    return stvid.probe(model, train, val, **{"device": "cpu", "batch_size": 6, **options})


def test_linear_probe(model: VideoModel, videos: Path, others: Manifest, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = run(model, videos, others, out=tmp_path / "out")
    assert result.metrics["top1@2x3"] == 1.0 and result.n == 6 and result.train_videos == 12
    assert result.class_names == CLASSES and result.chance == {"top1@2x3": pytest.approx(1 / 3)}
    assert [record["recall"] for record in result.per_class] == [1.0] * 3
    assert result.regularisation in [record["l2"] for record in result.selection]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert model.num_classes == 2 and model.default_protocol == PROTOCOL and not model.training
    # The network with the new classifier gives these numbers, in memory and from its file.
    network = stvid.load_model(tmp_path / "out" / "probe.safetensors")
    assert network.default_protocol.class_names == CLASSES and network.default_protocol.views == "2x3"
    for one in (network, result.model()):
        measured = stvid.evaluate(one, others, batch_size=6)
        np.testing.assert_allclose(measured.logits, result.evaluation.logits, atol=1e-4)
        assert measured.evaluation == result.evaluation.evaluation and measured.metrics == result.metrics
    paths = [others[row].path for row in range(6)]
    for said, scores in zip(stvid.predict(network, paths, topk=3), result.evaluation.scores, strict=True):
        assert said.classes[0] == CLASSES[scores.argmax()]
        np.testing.assert_allclose(said.probabilities, np.sort(scores)[::-1], atol=1e-5)
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["metrics"]["top1@2x3"] == 1.0
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert record["kind"] == "linear" and record["settings"]["l2"] == result.regularisation
    assert "guessing: top1 33.33%" in result.summary() and "linear probe of 12 training videos" in result.summary()


def test_a_probe_repeats_bit_for_bit_and_reads_videos_once(
    model: VideoModel, videos: Path, others: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(model, videos, others, out=tmp_path / "a")
    second = run(model, videos, others, out=tmp_path / "b")
    reports = []
    extract = engine.extract_features

    def noted(*arguments: Any, **options: Any) -> Any:
        reports.append(extract(*arguments, **options))
        return reports[-1]

    monkeypatch.setattr(engine, "extract_features", noted)
    third = run(model, videos, others, out=tmp_path / "a")
    assert [(report.written, report.present) for report in reports] == [(0, 12), (0, 6)]
    for other in (second, third):
        assert other.metrics == first.metrics and other.settings == first.settings
        assert np.array_equal(other.evaluation.logits, first.evaluation.logits)
        for key, value in first.model().state_dict().items():
            assert torch.equal(value, other.model().state_dict()[key])
    with pytest.raises(ConfigError, match="another --out"):
        run(model, videos, others, out=tmp_path / "a", views="1x1")


def test_neighbours(model: VideoModel, videos: Path, others: Manifest, tmp_path: Path) -> None:
    run(model, videos, others, out=tmp_path)
    result = run(model, videos, others, kind="knn", k=1, out=tmp_path)  # each measured video is its own neighbour
    assert result.metrics["top1@2x3"] == 1.0 and result.settings == {"k": 1, "temperature": 0.07}
    assert result.regularisation is None and not (tmp_path / "probe.safetensors").exists()
    with pytest.raises(ConfigError, match="'knn' fits no layer"):
        result.model()
    assert run(model, videos, others, kind="knn", features=tmp_path / "features").settings["k"] == 12


def test_a_fifth_is_held_out_without_val(model: VideoModel, videos: Path) -> None:
    for train in (videos, stvid.read_manifest(videos)):
        result = run(model, train, views="1x1", seed=3)
        assert result.n == 3 and result.train_videos == 9
        assert result.metrics["top1@1x1"] == 1.0  # of videos that the classifier has not seen


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_encoders_without_a_classifier_and_inflated_networks(
    kind: Any, tiny_model: Callable[[Protocol], VideoModel], videos: Path, others: Manifest, tmp_path: Path
) -> None:
    encoder = tiny_model(PROTOCOL.replace(class_names=()))
    assert encoder.num_classes == 0
    stvid.save_model(encoder, tmp_path / "encoder.safetensors")
    result = run(tmp_path / "encoder.safetensors", videos, others, kind=kind, k=1)
    assert result.metrics["top1@2x3"] == 1.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
        inflated = stvid.inflate(image.eval(), num_frames=4).eval()
    inflated.default_protocol = PROTOCOL.replace(class_names=())
    result = run(inflated, videos, others, kind=kind, k=1, out=tmp_path / "inflated")
    assert result.metrics["top1@2x3"] >= (2 / 3 if kind == "linear" else 1.0)
    if kind == "linear":
        measured = stvid.evaluate(result.model(), others, batch_size=6)
        np.testing.assert_allclose(measured.logits, result.evaluation.logits, atol=1e-4)


def test_clips_that_are_classified_together(videos: Path, others: Manifest) -> None:
    """The head of V-JEPA 2 sees all clips of a video at once, so that its numbers come from the network itself."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        joining = stvid.create_model(
            "vjepa2_vit_l", num_classes=0, num_frames=4, img_size=32, embed_dim=24, depth=1, num_heads=2
        ).eval()
    assert joining.joins_clips
    joining.default_protocol = PROTOCOL.replace(class_names=())
    result = run(joining, videos, others, views="2x1", l2=1e-3)
    measured = stvid.evaluate(result.model(), others, batch_size=6)
    assert measured.metrics == result.metrics and "top1@2x1" in result.metrics
    np.testing.assert_allclose(measured.logits, result.evaluation.logits, atol=1e-5)


def test_multilabel(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    with listed.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for path in sorted(videos.glob("*/*.mp4")):
            names = {"left": "move|left", "right": "move|right", "turn": ""}
            table.writerow([path, names[path.parent.name]])
    result = run(model, listed, listed, task="multilabel", out=tmp_path / "out")
    assert result.metrics == {"mAP@2x3": 1.0} and result.chance == {}
    assert result.class_names == ("left", "move", "right")
    network = stvid.load_model(tmp_path / "out" / "probe.safetensors")
    assert network.task == "multilabel"
    (said,) = stvid.predict(network, str(next((videos / "left").glob("*.mp4"))), topk=3)
    assert set(said.classes[:2]) == {"left", "move"} and said.probabilities[1] > 0.5 > said.probabilities[2]


def test_an_attentive_probe_is_trained_with_the_network_frozen(
    model: VideoModel, videos: Path, others: Manifest, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = run(model, videos, others, kind="attentive", epochs=1, out=tmp_path, views="1x1")
    assert (
        result.kind == "attentive"
        and result.n == 6
        and result.train_videos == 9
        and 0 <= result.metrics["top1@1x1"] <= 1
    )
    found = stvid.load_model(tmp_path / "probe.safetensors")
    assert found.recipe["head"] == "attentive" and found.default_protocol.class_names == CLASSES
    for key, value in found.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(value, before[key]), key
    measured = stvid.evaluate(found, others, batch_size=6)
    np.testing.assert_allclose(measured.logits, result.evaluation.logits, atol=1e-5)


def test_unreadable_videos_are_named_and_bounded(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    listed = stvid.read_manifest(videos)
    entries = [listed[row] for row in range(len(listed))]
    train = Manifest.from_entries([*entries, VideoEntry(str(broken), ("left",))])
    val = Manifest.from_entries([entries[0], entries[4], VideoEntry(str(broken), ("turn",))], class_names=CLASSES)
    result = run(model, train, val, views="1x1")
    assert result.train_videos == 12 and [path for path, _ in result.train_failures] == [str(broken)]
    assert result.n == 2 and result.metrics["top1@1x1"] == 1.0
    assert result.metrics["top1@1x1_low"] == pytest.approx(2 / 3) and result.metrics["top1@1x1_high"] == 1.0
    assert "1 training videos could not be read" in result.summary()
    nothing = Manifest.from_entries([VideoEntry(str(broken), ("left",))], class_names=CLASSES)
    with pytest.raises(StvidError, match="none of the 1 videos"):
        run(model, train, nothing, views="1x1")


def test_mistakes_are_one_line(model: VideoModel, videos: Path, others: Manifest, tmp_path: Path) -> None:
    listed = stvid.read_manifest(videos)
    entries = [listed[row] for row in range(len(listed))]
    single = listed.subset([0, 4, 8])
    unlabelled = Manifest.from_entries([VideoEntry(entries[0].path)])
    strange = Manifest.from_entries([VideoEntry(entries[0].path, ("cooking",))])
    for train, val, options, words in (
        (listed.subset([0, 1]), others, {}, "of one class, 'left'"),
        (single, others, {}, "--l2"),
        (single, None, {}, "name videos to measure"),
        (unlabelled, others, {}, "data.train: .* has no labels"),
        (listed, unlabelled, {}, "data.val: .* has no labels"),
        (listed, others, {"kind": "forest"}, "kind: 'forest' is not one of linear, knn, attentive"),
        (listed, others, {"l2": -1.0}, "l2: -1.0 is not a number above 0"),
        (listed, others, {"k": 0}, "k"),
        (listed, others, {"task": "ranking"}, "task"),
        (listed, others, {"views": "2x2"}, "crops"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            run(model, train, val, **{"views": "1x1", **options})
        assert "\n" not in str(error.value)
    with pytest.raises(ManifestError, match="cooking"):
        run(model, listed, strange, views="1x1")
    with pytest.raises(TypeError, match="colour"):
        run(model, listed, others, colour="red")
    with pytest.raises(ConfigError, match="Linear is no model of stvid"):
        run(nn.Linear(3, 2), listed, others)
    # What one video a class cannot choose can be given.
    assert run(model, single, others, views="1x1", l2=0.01).regularisation == 0.01


@pytest.mark.parametrize(
    ("device", "expected"),
    [(None, ("auto", 1)), ("cpu", ("cpu", 1)), ("cuda", ("gpu", 1)), ("cuda:1", ("gpu", "1,"))],
)
def test_a_probe_runs_on_one_device(device: str | None, expected: tuple[str, str | int]) -> None:
    assert ProbeSettings(device=device).placed() == expected
