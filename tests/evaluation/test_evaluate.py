"""evaluate() on real files, against a reference that decodes everything, slices, and runs the model view by view."""

import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor, nn

from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.errors import ConfigError, ManifestError, StvidError
from stvid.evaluation.evaluate import EvaluationResult, evaluate, perturb_time
from stvid.protocol import Protocol

NAMES = ("alpha", "beta", "gamma")
FRAMES, STRIDE, SHORT, CROP = 4, 2, 40, 32
PROTOCOL = Protocol(frames=FRAMES, stride=STRIDE, short_side=SHORT, crop=CROP, views="1x1", class_names=NAMES)


class Tiny(nn.Module):
    """Sees place and time: a linear layer on 2 x 2 means of each frame. Dropout shows if evaluation mode is off."""

    def __init__(self, classes: int = len(NAMES), protocol: Protocol | None = PROTOCOL) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(3 * FRAMES * 4, classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.zero_()
        self.drop = nn.Dropout(0.5)
        self.sizes: list[int] = []
        if protocol is not None:
            self.default_protocol = protocol

    def forward(self, clips: Tensor) -> Tensor:
        assert clips.shape[1:] == (3, FRAMES, CROP, CROP) and clips.is_floating_point()
        self.sizes.append(len(clips))
        pooled = clips.unflatten(3, (2, CROP // 2)).unflatten(5, (2, CROP // 2)).mean((4, 6))
        return self.head(self.drop(pooled.flatten(1)))


@pytest.fixture(scope="module")
def videos(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class: landscape, portrait, longer and shorter than a clip."""
    folder = tmp_path_factory.mktemp("videos")
    shapes = [(64, 48, 20), (48, 64, 17), (64, 48, 4), (96, 48, 30)]
    for c, name in enumerate(NAMES):
        for n, (width, height, frames) in enumerate(shapes):
            light = [(255, 255, 80), (80, 255, 255), (255, 160, 255)][(c + n) % 3]
            make_video(
                f"{n}.mp4", width=width, height=height, frames=frames, first=100 * c, light=light, to=folder / name
            )
    return folder


def reference_views(path: str, clips: int, crops: int, protocol: Protocol = PROTOCOL) -> list[Tensor]:
    """Every view as float (C, T, H, W): nothing is shared with stvid but torchvision's resize."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    room = max(len(frames) - (protocol.frames - 1) * protocol.stride - 1, 0)
    starts = [room // 2] if clips == 1 else [math.floor(room * k / (clips - 1) + 0.5) for k in range(clips)]
    views = []
    for start in starts:
        picked = [frames[min(start + protocol.stride * t, len(frames) - 1)] for t in range(protocol.frames)]
        clip = torch.from_numpy(np.stack(picked)).permute(0, 3, 1, 2)
        scale = protocol.short_side / min(clip.shape[2:])
        clip = F.resize(clip, [int(clip.shape[2] * scale + 1e-9), int(clip.shape[3] * scale + 1e-9)], antialias=True)
        down, right = clip.shape[2] - protocol.crop, clip.shape[3] - protocol.crop
        middle = (math.ceil(down / 2), math.ceil(right / 2))
        if crops == 1:
            corners = [middle]
        elif right >= down:
            corners = [(middle[0], 0), middle, (middle[0], right)]
        else:
            corners = [(0, middle[1]), middle, (down, middle[1])]
        for top, left in corners:
            view = clip[:, :, top : top + protocol.crop, left : left + protocol.crop].permute(1, 0, 2, 3).double() / 255
            mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (protocol.mean, protocol.std))
            views.append((view - mean) / std)
    return views


@torch.no_grad()
def reference_logits(model: Tiny, path: str, clips: int, crops: int) -> Tensor:
    model = Tiny(model.head.out_features).eval().double()
    return torch.stack([model(view[None])[0] for view in reference_views(path, clips, crops)])


@pytest.mark.parametrize(("clips", "crops"), [(1, 1), (3, 1), (1, 3), (4, 3)])
def test_same_numbers_as_the_reference(videos, clips, crops):
    manifest = read_manifest(videos)
    result = evaluate(Tiny(), manifest, views=f"{clips}x{crops}")
    hits, expected = 0, []
    for index in range(len(manifest)):
        logits = reference_logits(Tiny(), manifest[index].path, clips, crops)
        expected.append(logits.softmax(-1).mean(0))
        hits += NAMES[int(expected[-1].argmax())] == manifest[index].labels[0]
        np.testing.assert_allclose(result.logits[index], logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(result.scores, torch.stack(expected).numpy(), atol=1e-6)
    assert result.metrics[f"top1@{clips}x{crops}"] == hits / len(manifest)
    assert result.counted == 12 and result.views == f"{clips}x{crops}" and result.confusion.sum() == 12
    assert result.paths == [manifest[index].path for index in range(12)]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 100}, {"batch_size": 8, "view_chunk": 5}])
def test_batches_are_bounded_and_change_nothing(videos, options):
    model = Tiny()
    result = evaluate(model, videos, views="2x3", **options)
    different = 12 * 6 - 3 * 3  # both clips of a video that is shorter than a clip are equal
    assert sum(model.sizes) == different
    assert max(model.sizes) == min(options.get("view_chunk", options["batch_size"]), different)
    np.testing.assert_allclose(result.logits, evaluate(Tiny(), videos, views="2x3").logits, atol=1e-5)


def test_logits_may_be_a_part_of_the_clips(videos):
    """All batches lie in the same memory: what the model gives is copied before the next one comes."""

    class Pixels(nn.Module):
        def forward(self, clips):
            return clips[:, 0, :3, 0, 0]

    small, large = (evaluate(Pixels(), videos, views="2x3", protocol=PROTOCOL, batch_size=size) for size in (2, 100))
    assert np.array_equal(small.logits, large.logits) and len(np.unique(small.logits)) > 10


def test_workers_give_the_same(videos):
    expected = evaluate(Tiny(), videos, views="2x1")
    found = evaluate(Tiny(), videos, views="2x1", workers=1)
    assert np.array_equal(found.logits, expected.logits) and found.metrics == expected.metrics
    assert multiprocessing.active_children() == []


def test_model_comes_back_as_it_was(videos):
    model = Tiny()
    model.train()
    model.head.eval()  # as a frozen part of a model in training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, videos)
    assert model.training and model.drop.training and not model.head.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.head.weight.grad = None
    model(torch.zeros(1, 3, FRAMES, CROP, CROP)).sum().backward()  # no inference tensors were left behind
    assert model.head.weight.grad is not None

    class Broken(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            raise RuntimeError("bug")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="bug"):
        evaluate(broken, videos)
    assert broken.training and broken.drop.training


def test_views_and_protocol_override_the_models(videos):
    model = Tiny(protocol=PROTOCOL.replace(views="2x1"))
    assert evaluate(model, videos).views == "2x1"
    assert evaluate(model, videos, views="1x3").views == "1x3"
    other = evaluate(model, videos, protocol=PROTOCOL.replace(stride=1, views="3x1"))
    assert other.protocol == PROTOCOL.replace(stride=1, views="3x1")
    assert evaluate(Tiny(protocol=None), videos, protocol=PROTOCOL).views == "1x1"
    with pytest.raises(ConfigError, match=r"'runs/a' is no network: .*stvid\.load_model\('runs/a'\)"):
        evaluate("runs/a", videos)
    with pytest.raises(ConfigError, match=r"^protocol: 'k400' is no stvid\.Protocol"):
        evaluate(model, videos, protocol="k400")
    with pytest.raises(ConfigError, match="Tiny has no default_protocol"):
        evaluate(Tiny(protocol=None), videos)


def test_labels_are_matched_by_name(videos):
    order = ("gamma", "alpha", "beta")
    model = Tiny(protocol=PROTOCOL.replace(class_names=order))
    for manifest in (videos, read_manifest(videos)):  # with sorted names of its own
        result = evaluate(model, manifest)
        expected = [order.index(Path(path).parent.name) for path in result.paths]
        assert result.labels.tolist() == expected and result.class_names == order
    with pytest.raises(ManifestError, match="'gamma'"):
        evaluate(Tiny(2, PROTOCOL.replace(class_names=("alpha", "beta"))), videos)
    with pytest.raises(ManifestError, match="'gamma'"):
        evaluate(Tiny(2, PROTOCOL.replace(class_names=("alpha", "beta"))), read_manifest(videos))


def test_what_does_not_fit_is_one_clear_line(videos, make_video):
    with pytest.raises(ConfigError, match="no class names"):
        evaluate(Tiny(protocol=PROTOCOL.replace(class_names=())), videos)
    with pytest.raises(ConfigError, match="gives 5 logits, but the protocol names 3 classes"):
        evaluate(Tiny(5), videos)
    with pytest.raises(ManifestError, match=r"no labels.*predict"):
        evaluate(Tiny(), Manifest.from_entries([VideoEntry(str(make_video()))]))
    with pytest.raises(ManifestError, match="no such file"):
        evaluate(Tiny(), videos / "nothing.csv")
    for options, message in [
        ({"precision": "bf16"}, "precision: 'bf16'"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"workers": -1}, "workers: -1"),
        ({"view_chunk": 0}, "view_chunk: 0"),
        ({"views": "4"}, "views '4'"),
        ({"views": "4x2"}, "crops"),
        ({"task": "regression"}, "task: 'regression'"),
        ({"temporal": "backwards"}, "temporal: 'backwards'"),
        ({"average": "median"}, "average: 'median'"),
        ({"seed": -1}, "seed: -1"),
        ({"device": "warp"}, "device 'warp'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            evaluate(Tiny(), videos, **options)

    class Features(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            return clips

    with pytest.raises(ConfigError, match=r"the model gives \(8, 3, 4, 32, 32\) for 8 clips"):
        evaluate(Features(), videos)


def test_unreadable_videos_are_listed_and_bound_the_numbers(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "v")
    (tmp_path / "v" / "alpha" / "0.mp4").write_bytes(b"")
    (tmp_path / "v" / "beta" / "1.mp4").write_bytes(b"this is not a video" * 100)
    manifest = read_manifest(tmp_path / "v")
    (tmp_path / "v" / "gamma" / "2.mp4").unlink()
    result = evaluate(Tiny(), manifest, batch_size=2)
    assert [Path(path).relative_to(tmp_path / "v").as_posix() for path, _ in result.failures] == [
        "alpha/0.mp4",
        "beta/1.mp4",
        "gamma/2.mp4",
    ]
    assert all(reason for _, reason in result.failures) and "no such file" in result.failures[2][1]
    assert result.counted == 9 and len(result.logits) == 9 and len(set(result.paths)) == 9
    whole = evaluate(Tiny(), videos)
    kept = [k for k in range(12) if k not in (0, 5, 10)]
    assert result.indices.tolist() == kept
    np.testing.assert_allclose(result.logits, whole.logits[kept], atol=1e-5)
    right = result.confusion.diagonal().sum()
    assert result.metrics["top1@1x1"] == right / 9
    assert result.metrics["top1@1x1_low"] == right / 12 and result.metrics["top1@1x1_high"] == (right + 3) / 12
    assert result.metrics["top1@1x1_low"] <= whole.metrics["top1@1x1"] <= result.metrics["top1@1x1_high"]
    low, high = result.metrics["mean_class@1x1_low"], result.metrics["mean_class@1x1_high"]
    assert low <= whole.metrics["mean_class@1x1"] <= high


def test_parts_of_one_file(make_video):
    path = str(make_video("long.mp4", frames=50, fps=25))
    entries = [VideoEntry(path, ("alpha",), 0.0, 1.0), VideoEntry(path, ("beta",), 1.0, 2.0)]
    result = evaluate(Tiny(), Manifest.from_entries(entries))
    assert result.paths == [path, path] and not np.allclose(result.logits[0], result.logits[1])


def test_multilabel(videos):
    paths = sorted(str(path) for path in videos.rglob("*.mp4"))
    rng = np.random.default_rng(0)
    sets = [("alpha", "beta"), ("beta",), ("alpha", "gamma"), ("gamma",)]
    entries = [VideoEntry(path, sets[rng.integers(4)]) for path in paths]
    model = Tiny(protocol=PROTOCOL.replace(class_names=("gamma", "beta", "alpha")))
    result = evaluate(model, Manifest.from_entries(entries), task="multilabel", views="2x1")
    assert list(result.metrics) == ["mAP@2x1"] and result.labels.shape == (12, 3)
    assert [tuple(np.array(model.default_protocol.class_names)[row == 1][::-1]) for row in result.labels] == [
        entry.labels for entry in entries
    ]
    scores = np.stack([reference_logits(model, path, 2, 1).sigmoid().mean(0).numpy() for path in paths])
    expected = []
    for k in range(3):
        hits = result.labels[np.argsort(-scores[:, k]), k]
        expected.append((np.cumsum(hits) / np.arange(1, 13))[hits == 1].mean())
    assert result.metrics["mAP@2x1"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_videos_without_any_of_the_labels(videos, tmp_path):
    files = [str(videos / "alpha" / f"{n}.mp4") for n in range(4)]
    lines = [f"{path},{label}" for path, label in zip(files, ["alpha|beta", "", "gamma", ""], strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines, f"{tmp_path / 'missing.mp4'},"]))
    model = Tiny()
    model.task = "multilabel"  # found without being given
    result = evaluate(model, tmp_path / "list.csv")
    assert result.task == "multilabel" and result.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    expected = []
    for scores, targets in zip(result.scores.T, result.labels.T, strict=True):
        order = np.argsort(-scores)
        hits = targets[order]
        expected.append((np.cumsum(hits) / np.arange(1, 5))[hits == 1].mean())
    assert result.metrics["mAP@1x1"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert result.metrics["mAP@1x1_low"] < result.metrics["mAP@1x1_high"] == pytest.approx(result.metrics["mAP@1x1"])
    assert [record["support"] for record in result.per_class] == [1, 1, 1] and len(result.failures) == 1
    (tmp_path / "none.csv").write_text(f"path,label\n{files[0]},\n")
    with pytest.raises(ManifestError, match="no labels to compare with"):
        evaluate(model, tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="has no label"):
        evaluate(model, tmp_path / "list.csv", task="multiclass")


def test_clips_that_the_model_cannot_take(videos):
    class Strict(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            raise ValueError(f"takes 8 frames,\nnot {clips.shape[2]}")

    with pytest.raises(ConfigError, match=r"^takes 8 frames, not 4 \(protocol: 4 frames, stride 2;.*views 2x1\)$"):
        evaluate(Strict(), videos, views="2x1")


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(videos, precision):
    dtypes = []

    class Spy(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            logits = super().forward(clips)
            dtypes.append(logits.dtype)
            return logits

    found, expected = evaluate(Spy(), videos, precision=precision), evaluate(Tiny(), videos)
    assert set(dtypes) == {torch.bfloat16 if precision == "bf16-mixed" else torch.float16}
    assert found.logits.dtype == np.float32
    np.testing.assert_allclose(found.scores, expected.scores, atol=0.1)


def test_a_model_of_float64_gets_float64(videos):
    model = Tiny().double()
    np.testing.assert_allclose(evaluate(model, videos).logits, evaluate(Tiny(), videos).logits, atol=1e-5)
    assert model.head.weight.dtype == torch.float64


# --- does it use time? ------------------------------------------------------------------------------------------------


def clips_of(frames: int) -> Tensor:
    numbers = torch.arange(frames, dtype=torch.uint8).view(1, 1, frames, 1, 1)
    return numbers.expand(6, 3, frames, 2, 2).contiguous()


def order(clips: Tensor) -> list[int]:
    assert (clips == clips[:1, :1, :, :1, :1]).all()  # all views, channels and pixels alike
    return clips[0, 0, :, 0, 0].tolist()


def test_perturbations():
    assert order(perturb_time(clips_of(8), "normal", seed=0, index=0)) == list(range(8))
    assert order(perturb_time(clips_of(8), "frozen", seed=0, index=0)) == [4] * 8
    assert order(perturb_time(clips_of(8), "reversed", seed=0, index=0)) == list(range(7, -1, -1))


def test_shuffling_is_fixed_by_seed_and_video_and_never_the_identity():
    orders = [order(perturb_time(clips_of(8), "shuffled", seed=0, index=index)) for index in range(20)]
    assert all(sorted(found) == list(range(8)) for found in orders)
    assert len({tuple(found) for found in orders}) > 15
    assert orders[3] == order(perturb_time(clips_of(8), "shuffled", seed=0, index=3))
    assert orders != [order(perturb_time(clips_of(8), "shuffled", seed=1, index=index)) for index in range(20)]
    for index in range(50):  # half of all permutations of two frames are the identity
        assert order(perturb_time(clips_of(2), "shuffled", seed=0, index=index)) == [1, 0]


def test_a_single_frame_has_no_order(videos):
    with pytest.raises(ConfigError, match="no order"):
        perturb_time(clips_of(1), "reversed", seed=0, index=0)
    with pytest.raises(ConfigError, match="no order"):
        evaluate(Tiny(), videos, protocol=PROTOCOL.replace(frames=1), temporal="shuffled")


@pytest.mark.parametrize("temporal", ["frozen", "shuffled", "reversed"])
def test_temporal_probe_changes_what_the_model_sees(videos, temporal):
    manifest = read_manifest(videos)
    result = evaluate(Tiny(), manifest, views="2x3", temporal=temporal, seed=7)
    assert result.temporal == temporal and f"frames {temporal}" in result.summary()
    model = Tiny().eval().double()
    for index in (0, 7):
        views = torch.stack(reference_views(manifest[index].path, 2, 3))
        with torch.no_grad():
            expected = model(perturb_time(views, temporal, seed=7, index=index))
        np.testing.assert_allclose(result.logits[index], expected.numpy(), atol=1e-5)
    assert not np.allclose(result.logits, evaluate(Tiny(), manifest, views="2x3").logits, atol=1e-2)


def test_a_model_without_time_does_not_notice(videos):
    class Timeless(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            return super().forward(clips.mean(2, keepdim=True).expand_as(clips))

    normal = evaluate(Timeless(), videos)
    for temporal in ("shuffled", "reversed"):
        np.testing.assert_allclose(evaluate(Timeless(), videos, temporal=temporal).logits, normal.logits, atol=1e-4)


# --- files and processes ----------------------------------------------------------------------------------------------


def test_progress_goes_to_standard_error(videos, capsys):
    evaluate(Tiny(), videos, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "12/12" in err
    evaluate(Tiny(), videos)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_no_worker_behind(videos, kind):
    class Interrupted(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            assert multiprocessing.active_children()
            raise kind("stop")

    # The traceback in `caught` keeps every frame alive, as in an interactive session.
    with pytest.raises(kind) as caught:
        evaluate(Interrupted(), videos, workers=1, batch_size=1)
    assert multiprocessing.active_children() == [], caught


def test_a_killed_worker_is_named_and_nothing_hangs(videos):
    killed: set[int] = set()

    class Killer(Tiny):
        def forward(self, clips: Tensor) -> Tensor:
            for child in multiprocessing.active_children():
                killed.add(child.pid)
                os.kill(child.pid, signal.SIGKILL)
            return super().forward(clips)

    begin = time.monotonic()
    with pytest.raises(StvidError, match=r"pid.*killed") as caught:
        evaluate(Killer(), videos, workers=1, batch_size=1)
    assert "\n" not in str(caught.value) and str(killed.pop()) in str(caught.value)
    assert time.monotonic() - begin < 60
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(videos):
    model = Tiny()
    found = evaluate(model, videos, views="2x3", device="cuda", workers=1)
    assert model.head.weight.device.type == "cpu"
    np.testing.assert_allclose(found.logits, evaluate(model, videos, views="2x3").logits, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_a_clear_error(videos):
    with pytest.raises(ConfigError, match="no such CUDA device"):
        evaluate(Tiny(), videos, device="cuda")


# --- several protocols, orders of frames, and interruptions -----------------------------------------------------------


@pytest.mark.parametrize("sampling", ["dense", "segment"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_every_protocol_of_one_pass_is_what_it_is_alone(videos, sampling, average):
    protocol = PROTOCOL.replace(sampling=sampling)
    also = ("1x1", "1x3", "2x3", "5x1", "2x10")
    result = evaluate(Tiny(), videos, protocol=protocol, views="4x3", also=also, average=average)
    assert result.views == "4x3" and result.also == also
    for views in ("4x3", *also):
        alone = evaluate(Tiny(), videos, protocol=protocol, views=views, average=average)
        np.testing.assert_allclose(result.protocol_logits(views), alone.logits, atol=1e-5)
        np.testing.assert_allclose(result.protocol_scores(views), alone.scores, atol=1e-6)
        for name, value in alone.metrics.items():
            assert result.metrics[name] == value
        assert f"top1@{views} " in result.summary()
    with pytest.raises(ConfigError, match="views 9x3: not measured here, but 4x3, 1x1"):
        result.protocol_logits("9x3")


def test_each_video_is_read_once_and_each_different_view_computed_once(videos, monkeypatch):
    from stvid.data.dataset import VideoReader

    asked: list[int] = []
    original = VideoReader.get_batch
    monkeypatch.setattr(VideoReader, "get_batch", lambda self, rows: asked.append(len(rows)) or original(self, rows))
    model = Tiny()
    result = evaluate(model, videos, views="4x3", also=["1x1", "2x3"], probe=("reversed", "frozen"))
    assert len(asked) == 12
    # 13 views of a long video (1x1 adds one, 2x3 none), of a short one 3; per order of frames 12 or 3 more.
    long, short = 9, 3
    assert sum(model.sizes) <= long * (13 + 2 * 12) + short * (3 + 2 * 3)
    assert result.distinct.tolist() == [3 if index % 4 == 2 else 12 for index in range(12)]
    assert "3 short or square videos have equal views" in result.summary()


def test_a_probe_gives_what_each_order_gives_alone(videos, tmp_path):
    result = evaluate(Tiny(), videos, views="2x3", also=["1x1"], probe=("reversed", "shuffled", "frozen"), seed=3)
    assert result.temporal == "normal"
    for temporal in ("reversed", "shuffled", "frozen"):
        alone = evaluate(Tiny(), videos, views="2x3", temporal=temporal, seed=3)
        np.testing.assert_allclose(result.probe_logits[temporal], alone.logits, atol=1e-5)
        assert result.probe[temporal]["metrics"] == alone.metrics
        assert result.probe[temporal]["per_class"] == alone.per_class
        assert f"frames {temporal}: top1@2x3" in result.summary()
    loaded = EvaluationResult.load(result.save(tmp_path))
    assert loaded.probe == result.probe and loaded.also == ("1x1",) and loaded.metrics == result.metrics
    np.testing.assert_array_equal(loaded.protocol_logits("1x1"), result.protocol_logits("1x1"))
    with pytest.raises(ConfigError, match="probe: 'backwards'"):
        evaluate(Tiny(), videos, probe=("backwards",))
    with pytest.raises(ConfigError, match="probe: the frames are frozen already"):
        evaluate(Tiny(), videos, probe=("reversed",), temporal="frozen")


class Stopping(Tiny):
    """Is interrupted after some forward passes."""

    left = 4

    def forward(self, clips: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().forward(clips)

    def __repr__(self) -> str:
        return repr(Tiny())  # the same model


OPTIONS = {"views": "2x3", "also": ["1x1"], "probe": ("shuffled",), "batch_size": 14}


def test_an_interrupted_evaluation_goes_on_and_gives_the_same(videos, tmp_path, capsys):
    whole = evaluate(Tiny(), videos, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stopping(), videos, resume_from=tmp_path, **OPTIONS)
    (kept,) = tmp_path.glob("interrupted-*.jsonl")
    assert capsys.readouterr().err == ""
    model = Tiny()
    result = evaluate(model, videos, resume_from=tmp_path, **OPTIONS)
    assert "continuing: 4 of 12 videos are done" in capsys.readouterr().err
    for name in ("logits", "extra_logits", "labels", "indices", "distinct"):
        assert np.array_equal(getattr(result, name), getattr(whole, name)), name  # bit for bit
    assert np.array_equal(result.probe_logits["shuffled"], whole.probe_logits["shuffled"])
    assert (result.metrics, result.paths, result.evaluation) == (whole.metrics, whole.paths, whole.evaluation)
    assert kept.exists()  # until the result is safe
    result.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["logits.npz", "result.json"]


@pytest.mark.parametrize("change", ["weights", "videos", "views", "order"])
def test_the_progress_of_another_evaluation_is_not_used(videos, tmp_path, change, capsys):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stopping(), videos, resume_from=tmp_path, **OPTIONS)
    model, manifest, options = Tiny(), read_manifest(videos), dict(OPTIONS)
    if change == "weights":
        with torch.no_grad():
            model.head.bias[0] = 1e-3
    elif change == "videos":
        manifest = manifest.subset(range(1, 12))
    elif change == "views":
        options["also"] = ["1x3"]
    else:
        options["seed"] = 5
    result = evaluate(model, manifest, resume_from=tmp_path, **options)
    assert capsys.readouterr().err == "" and result.counted == len(manifest)
    assert np.array_equal(result.logits, evaluate(model, manifest, **options).logits)


def test_unreadable_videos_are_tried_again(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "v")
    broken = tmp_path / "v" / "alpha" / "0.mp4"
    good = broken.read_bytes()
    broken.write_bytes(good[:100])
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stopping(), tmp_path / "v", resume_from=tmp_path, **OPTIONS)
    broken.write_bytes(good)
    result = evaluate(Tiny(), tmp_path / "v", resume_from=tmp_path, **OPTIONS)
    assert result.failures == [] and result.indices.tolist() == list(range(12))


class Joint(Tiny):
    """Classifies all clips of a crop at once; its tokens are products of means, so that averages are told apart."""

    joins_clips = True

    def forward_features(self, clips: Tensor) -> Tensor:
        return clips.unflatten(3, (2, CROP // 2)).unflatten(5, (2, CROP // 2)).mean((4, 6)).flatten(1).unsqueeze(1)

    def forward_head(self, tokens: Tensor) -> Tensor:
        return self.head(tokens.prod(1))

    def forward(self, clips: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(clips))


@pytest.mark.parametrize("batch_size", [2, 30])
def test_clips_that_a_model_classifies_together(videos, batch_size):
    model = Joint().double()
    result = evaluate(model, videos, views="2x3", batch_size=batch_size)
    listed = read_manifest(videos, class_names=NAMES)
    for number, entry in enumerate(listed):
        views = torch.stack(reference_views(entry.path, 2, 3))
        with torch.no_grad():
            crops = torch.cat(
                [model.eval().forward_head(model.forward_features(views[c::3]).transpose(0, 1)) for c in range(3)]
            )
        found = torch.from_numpy(np.asarray(result.logits[number]))
        assert found.shape == (6, 3)
        torch.testing.assert_close(found, crops.float().repeat(2, 1), rtol=1e-4, atol=1e-4)
    alone = evaluate(model, videos, views="1x3")  # one clip: nothing is joined
    assert alone.metrics
    with pytest.raises(ConfigError, match="classifies the clips of a video together, so that 2x3 shares no views"):
        evaluate(model, videos, views="2x3", also=["1x1"])
