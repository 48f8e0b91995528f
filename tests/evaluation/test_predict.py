"""predict() on real files: order, names, probabilities, and files that cannot be read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stvid.data.dataset import EvalDataset
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.transforms import normalize
from stvid.errors import ConfigError, StvidError
from stvid.evaluation.evaluate import evaluate
from stvid.evaluation.predict import Prediction, predict
from stvid.protocol import Protocol

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, views="2x3", class_names=NAMES)


class Tiny(nn.Module):
    def __init__(self, classes: int = len(NAMES), protocol: Protocol | None = PROTOCOL) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 4, classes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.zero_()
        self.drop = nn.Dropout(0.5)
        if protocol is not None:
            self.default_protocol = protocol

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.drop(clips.mean((3, 4)).flatten(1)))


@pytest.fixture(scope="module")
def files(make_video: Callable[..., Path]) -> list[str]:
    return [
        str(make_video(f"{n}.mp4", first=50 * n, frames=20 + n, light=light))
        for n, light in enumerate([(255, 80, 80), (80, 255, 80), (80, 80, 255)])
    ]


def test_the_mean_of_the_views_as_in_evaluate(files):
    manifest = Manifest.from_entries([VideoEntry(path, ("ant",)) for path in files])
    scores = evaluate(Tiny(), manifest).scores
    for path, row, found in zip(files, scores, predict(Tiny(), files, topk=3), strict=True):
        order = np.argsort(-row)[:3]
        assert found.path == path and found.error is None
        assert found.class_ids == order.tolist() and found.classes == [NAMES[k] for k in order]
        np.testing.assert_allclose(found.probabilities, row[order], atol=1e-6)


def test_probabilities_add_up_and_fall(files):
    for found in predict(Tiny(), files, topk=100):  # more than there are: all
        assert len(found.classes) == len(found.probabilities) == len(NAMES) and sum(
            found.probabilities
        ) == pytest.approx(1)
        assert found.probabilities == sorted(found.probabilities, reverse=True)
    assert [len(found.classes) for found in predict(Tiny(), files)] == [5, 5, 5]


def test_one_path_by_itself(files):
    expected = predict(Tiny(), files)[1]
    for path in (files[1], Path(files[1])):
        (found,) = predict(Tiny(), path)
        assert found == expected


def test_unreadable_files_do_not_stop_the_others(files, tmp_path, make_audio):
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.write_bytes(b"")
    text.write_text("not a video\n" * 100)
    bad = [str(tmp_path / "missing.mp4"), str(tmp_path), str(empty), str(text), str(make_audio())]
    given = [bad[0], files[0], bad[1], bad[2], files[1], bad[3], bad[4]]
    found = predict(Tiny(), given, batch_size=100)
    assert [prediction.path for prediction in found] == given
    assert [prediction.error is None for prediction in found] == [path in files for path in given]
    for prediction in found:
        if prediction.error is not None:
            assert prediction.error and "\n" not in prediction.error
            assert prediction.classes == prediction.probabilities == prediction.class_ids == []
    assert "no such file" in found[0].error and "folder" in found[2].error and "empty" in found[3].error
    assert [p.classes for p in found if p.error is None] == [p.classes for p in predict(Tiny(), files[:2])]


def test_only_unreadable_files(tmp_path):
    (found,) = predict(Tiny(), [tmp_path / "missing.mp4"])
    assert found.error is not None and "no such file" in found.error


def test_repeated_and_relative_and_linked_paths(files, tmp_path, monkeypatch):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far" / "deep")
    # The system resolves the link before "..": far/clip.mp4. As text it would be near/clip.mp4, another video.
    (tmp_path / "far" / "clip.mp4").symlink_to(files[0])
    (tmp_path / "near" / "clip.mp4").symlink_to(files[1])
    monkeypatch.chdir(tmp_path)
    given = ["near/link/../clip.mp4", "near/clip.mp4", files[0], files[0]]
    found = predict(Tiny(), given)
    assert [prediction.path for prediction in found] == given
    a, b = predict(Tiny(), files[:2])
    assert a.probabilities != b.probabilities
    assert [prediction.probabilities for prediction in found] == [
        a.probabilities,
        b.probabilities,
        a.probabilities,
        a.probabilities,
    ]


def test_no_files_no_predictions():
    assert predict(Tiny(), []) == []


def test_classes_without_names(files):
    model = Tiny(3, PROTOCOL.replace(class_names=()))
    (found,) = predict(model, files[0])
    assert found.classes == [f"class {k}" for k in found.class_ids] and sorted(found.class_ids) == [0, 1, 2]


def test_another_number_of_classes_is_a_clear_error(files):
    with pytest.raises(ConfigError, match="gives 4 logits, but the protocol names 6 classes"):
        predict(Tiny(4), files)


def test_views_and_protocol_can_be_given(files):
    model = Tiny(protocol=None)
    with pytest.raises(ConfigError, match="no default_protocol"):
        predict(model, files)
    (one,), (many,) = (predict(model, files[0], protocol=PROTOCOL, views=views) for views in ("1x1", "2x3"))
    assert one.probabilities != many.probabilities
    assert many == predict(Tiny(), files[0])[0]


def test_multilabel_probabilities_stand_by_themselves(files):
    (found,) = predict(Tiny(), files[0], task="multilabel", topk=6)
    assert sum(found.probabilities) != pytest.approx(1, abs=0.05)
    with torch.no_grad():
        sample = EvalDataset(Manifest.from_entries([VideoEntry(files[0])]), PROTOCOL, views="2x3")[0]
        scores = Tiny().eval()(normalize(sample.clips, PROTOCOL.mean, PROTOCOL.std)).sigmoid().mean(0)
    np.testing.assert_allclose(found.probabilities, sorted(scores.tolist(), reverse=True), atol=1e-6)


def test_logits_that_are_not_numbers_are_an_error_of_that_file(files):
    class Broken(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            logits = super().forward(clips)
            logits[0] = torch.nan
            return logits

    (found,) = predict(Broken(), files[0])
    assert found.error == "the model gives logits that are not finite numbers" and found.classes == []


def test_workers_and_batches_change_nothing(files):
    expected = predict(Tiny(), files)
    for options in ({"workers": 1}, {"batch_size": 100}, {"batch_size": 1}):
        for a, b in zip(predict(Tiny(), files, **options), expected, strict=True):
            assert (a.path, a.classes) == (b.path, b.classes)
            np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)


def test_the_model_comes_back_as_it_was(files):
    model = Tiny().train()
    predict(model, files[0])
    assert model.training and model.drop.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, "topk: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"task": "x"}, "task: 'x'"),
        ({"views": "4x"}, "views '4x'"),
        ({"precision": "x"}, "precision: 'x'"),
    ],
)
def test_unusable_arguments(files, options, message):
    with pytest.raises(ConfigError, match=message):
        predict(Tiny(), files, **options)


def test_an_unknown_backend_is_an_error_of_the_call_not_of_each_file(files):
    with pytest.raises(StvidError, match="backend 'vhs'"):
        predict(Tiny(), files, backend="vhs")


def test_json(files, tmp_path):
    found = predict(Tiny(), [files[0], tmp_path / "missing.mp4"], topk=2)
    again = json.loads(json.dumps([prediction.to_dict() for prediction in found], allow_nan=False))
    assert [Prediction(**values) for values in again] == found
    assert set(again[0]) == {"path", "classes", "probabilities", "class_ids", "error"}


def test_from_a_checkpoint(files, tmp_path):
    from stvid import create_model, save_model

    model = create_model("uniformer_xxs", num_classes=3).eval()
    model.default_protocol = model.default_protocol.replace(views="2x1", class_names=("x", "y", "z"))
    save_model(model, tmp_path / "model.ckpt")
    found, expected = predict(tmp_path / "model.ckpt", files[0]), predict(model, files[0])
    assert found[0].error is None and set(found[0].classes) == {"x", "y", "z"}
    assert found[0].classes == expected[0].classes
    np.testing.assert_allclose(found[0].probabilities, expected[0].probabilities, atol=1e-6)
    with pytest.raises(StvidError, match="nothing"):
        predict(tmp_path / "nothing.ckpt", files[0])
    save_model(model, tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert predict(tmp_path / "run", files[0]) == found


def test_the_task_comes_with_the_weights(files, tmp_path):
    from stvid import create_model, save_model

    model = create_model("uniformer_xxs", num_classes=3).eval()
    protocol = model.default_protocol.replace(views="1x1", class_names=("x", "y", "z"))
    model.default_protocol, model.task = protocol, "multilabel"
    with torch.no_grad():
        model.head.fc.bias += 3.0  # softmax does not see it, sigmoid does
    save_model(model, tmp_path / "model.safetensors")
    (found,) = predict(tmp_path / "model.safetensors", files[0])
    (single,) = predict(tmp_path / "model.safetensors", files[0], task="multiclass")
    with torch.no_grad():
        sample = EvalDataset(Manifest.from_entries([VideoEntry(files[0])]), protocol, views="1x1")[0]
        logits = model(normalize(sample.clips, protocol.mean, protocol.std))[0].double()
    np.testing.assert_allclose(found.probabilities, logits.sigmoid().sort(descending=True).values, atol=1e-5)
    np.testing.assert_allclose(single.probabilities, logits.softmax(0).sort(descending=True).values, atol=1e-5)


def test_a_task_of_the_model_that_does_not_exist(files):
    model = Tiny()
    model.task = "ranking"
    with pytest.raises(ConfigError, match="task: 'ranking' is not one of multiclass, multilabel"):
        predict(model, files[0])


def test_clips_that_the_model_cannot_take(files):
    from stvid import create_model

    model = create_model("uniformer_xxs", num_classes=6)
    model.default_protocol = PROTOCOL.replace(short_side=20, crop=8)
    with pytest.raises(ConfigError, match=r"takes clips of at least .*not 4 of 8x8 \(protocol: 4.*\)$"):
        predict(model, files[0])


@pytest.mark.parametrize("kind", [StvidError, ConfigError])
def test_errors_for_the_user_pass_the_model(files, kind):
    class Refusing(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            raise kind("as it is")

    with pytest.raises(kind, match=r"^as it is$"):
        predict(Refusing(), files[0])
