"""``stvid predict --window`` as a user types it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import stvid
from stvid.classes import class_list
from stvid.models.base import VideoModel
from stvid.protocol import Protocol
from tests.loopback import Route, Server

Call = Callable[..., tuple[int, str, str]]
PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32)


def test_predict_over_time(checkpoint: str, video: str, tmp_path: Path, call: Call) -> None:
    arguments = ["predict", video, "--checkpoint", checkpoint, "--window", "1s", "--window_stride", "500ms"]
    code, out, _ = call(*arguments, "--out", tmp_path / "t")
    assert code == 0 and "0.50 to     1.50 s" in out
    lines = list(csv.DictReader((tmp_path / "t" / "timeline.csv").read_text().splitlines()))
    assert [(line["start"], line["end"]) for line in lines] == [("0", "1"), ("0.5", "1.5"), ("1", "2")]
    assert sum(float(lines[0][f"probability_{k}"]) for k in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    written = json.loads((tmp_path / "t" / "timeline.json").read_text())
    assert written["window"] == 1 and written["protocol"]["class_names"] == ["left", "right", "turn"]
    assert (tmp_path / "t" / "timeline.svg").read_text().startswith("<svg")
    code, out, _ = call(*arguments, "--json", "--views", "2x3")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["start"] for row in rows] == [0, 0.5, 1] and rows[0]["source"] == video


def test_several_sources_have_folders_of_their_own(checkpoint: str, video: str, tmp_path: Path, call: Call) -> None:
    arguments = ["--checkpoint", checkpoint, "--window", "1", "--out", tmp_path]
    code, _, err = call("predict", video, tmp_path / "gone.mp4", *arguments)
    assert code == 1 and "no such file" in err
    assert len(json.loads((tmp_path / "tool" / "timeline.json").read_text())["windows"]) == 3
    assert "no such file" in json.loads((tmp_path / "gone" / "timeline.json").read_text())["stopped"]
    code, _, err = call("predict", video, video, *arguments)
    assert code == 2 and "one by one" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--window_stride", "1"], "--window, which is missing"),
        (["--out", "x"], "--window, which is missing"),
        (["--window", "2h"], "2h"),
        (["--window", "1", "--window_stride", "0"], "--window_stride"),
        (["--window", "1", "--backend", "decord"], "decord reads no streams"),
    ],
)
def test_predict_over_time_bad_calls(checkpoint: str, video: str, options: list[str], words: str, call: Call) -> None:
    code, _, err = call("predict", video, "--checkpoint", checkpoint, *options)
    assert code == 2 and words in err and len(err.splitlines()) == 1


def test_an_address_of_a_file_is_read_and_that_of_a_camera_refused(checkpoint: str, video: str, call: Call) -> None:
    with Server() as server:
        server.routes["/a.mp4"] = Route(Path(video).read_bytes())
        code, out, _ = call("predict", f"{server.url}/a.mp4", "--checkpoint", checkpoint, "--json")
    _, expected, _ = call("predict", video, "--checkpoint", checkpoint, "--json")
    assert code == 0 and json.loads(out)[0]["probabilities"] == json.loads(expected)[0]["probabilities"]
    code, _, err = call("predict", "rtsp://host/1", "--checkpoint", checkpoint)
    assert code == 2 and "give the length of a --window" in err and len(err.splitlines()) == 1


@pytest.fixture(scope="session")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a model that runs over a stream."""
    protocol = PROTOCOL.replace(class_names=("left", "right", "turn"), frames=50, stride=5, fps=25, views="4x1")
    model = stvid.create_model("movinet_xxs", num_classes=3, num_frames=50, img_size=32, depth=(1, 1, 1, 1, 1))
    model.default_protocol = protocol
    path = tmp_path_factory.mktemp("streaming") / "stream.safetensors"
    stvid.save_model(model, path)
    return str(path)


def test_a_model_that_can_runs_as_a_stream(streaming: str, video: str, call: Call) -> None:
    code, out, err = call("predict", video, "--checkpoint", streaming, "--device", "cpu")
    assert code == 0 and not err
    lines = out.splitlines()
    assert lines[0] == video and all(
        re.search(r"\d ms a frame +\d+\.\d% (left|right|turn)", line) for line in lines[1:-1]
    )
    assert [line.split()[0] for line in lines[1:-1]] == ["0.00", "1.00", "1.80"]  # at the start, and each second
    assert re.search(r"10 frames as one stream: \d+\.\d ms a frame in the median \(\d+ frames/s\)", lines[-1])
    code, out, _ = call("predict", video, "--checkpoint", streaming, "--device", "cpu", "--json", "--topk", 1)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["last"] for row in rows] == [False, False, True]
    assert rows[-1]["frames"] == 10 and len(rows[-1]["classes"]) == 1 and rows[-1]["latency_ms"] > 0


def test_clips_and_windows_of_a_model_that_could_stream(streaming: str, video: str, call: Call) -> None:
    common = ["predict", video, "--checkpoint", streaming, "--device", "cpu"]
    code, out, _ = call(*common, "--stream", "false")
    assert code == 0 and "one stream" not in out and "views 4x1" in out
    code, out, _ = call(*common, "--window", "1s", "--window_stride", "500ms")
    assert code == 0 and "0.50 to     1.50 s" in out


def test_several_streams_go_on_after_a_missing_file(streaming: str, video: str, tmp_path: Path, call: Call) -> None:
    code, out, err = call("predict", tmp_path / "gone.mp4", video, "--checkpoint", streaming, "--device", "cpu")
    assert code == 1 and "no such file" in err and "10 frames as one stream" in out


def test_bad_calls_of_streams(streaming: str, checkpoint: str, video: str, call: Call) -> None:
    for model, options, words in [
        (checkpoint, ["--stream", "true"], "UniFormer sees later frames"),
        (streaming, ["--stream", "true", "--window", "1s"], "no --window"),
        (streaming, ["--backend", "decord"], "decord reads no streams"),
        (checkpoint, ["--stream", "false"], None),
    ]:
        code, _, err = call("predict", video, "--checkpoint", model, "--device", "cpu", *options)
        assert code == (2 if words else 0) and (words is None or (words in err and len(err.splitlines()) == 1))
    code, _, err = call("predict", "rtsp://nobody.invalid/x", "--checkpoint", checkpoint, "--device", "cpu")
    assert code == 2 and "give the length of a --window" in err


@pytest.fixture
def unnamed(tiny_model: Callable[[Protocol], VideoModel], tmp_path: Path) -> str:
    """A checkpoint with as many logits as HMDB51 has classes, and no names for them."""
    model = tiny_model(PROTOCOL.replace(class_names=class_list("hmdb51")))
    model.default_protocol = PROTOCOL.replace(class_names=())
    stvid.save_model(model, tmp_path / "unnamed.safetensors")
    return str(tmp_path / "unnamed.safetensors")


def test_classes_of_unknown_order_are_numbers(unnamed: str, video: str, call: Call) -> None:
    common = ["predict", video, "--checkpoint", unnamed, "--device", "cpu"]
    for options in ([], ["--window", "1s"]):
        code, out, err = call(*common, *options)
        assert code == 0 and re.search(r"% +class \d", out)
        assert len(err.splitlines()) == 1 and "the order of the classes is not known" in err
        assert "--class_names" in err and "hmdb51" in err and "kinetics400" not in err
    code, out, err = call(*common, "--class_names", "hmdb51")
    assert code == 0 and not err and "class " not in out and any(name in out for name in class_list("hmdb51"))
    code, _, err = call(*common, "--class_names", "ucf101")
    assert code == 2 and "has 51 logits, but 101 class names were given" in err and len(err.splitlines()) == 1
    code, _, err = call(*common, "--class_names", "hmbd51")
    assert code == 1 and "no packaged list of class names" in err and "hmdb51" in err
    code, out, err = call(*common, "--data.class_names", "hmdb51")
    assert code == 0 and not err and "class " not in out


def test_a_causal_inflated_network_runs_as_a_stream(video: str, tmp_path: Path, call: Call) -> None:
    made = ["--from", "timm:test_resnet", "--temporal", "shift", "--frames", "4", "--img_size", "32", "--causal"]
    code, out, _ = call("inflate", *made, "--num_classes", 3, "--out", tmp_path / "inflated.ckpt")
    assert code == 0 and "exact" in out
    (tmp_path / "names.txt").write_text("left\nright\nturn\n")
    arguments = ["predict", video, "--checkpoint", tmp_path / "inflated.ckpt", "--device", "cpu"]
    arguments += ["--class_names", tmp_path / "names.txt"]
    code, out, err = call(*arguments)
    assert code == 0 and not err
    # every 16th of 50 frames, as a dense clip of 4 frames has them
    assert re.search(r"4 frames as one stream: \d+\.\d ms a frame in the median", out.splitlines()[-1])
    code, out, _ = call(*arguments, "--json", "--topk", 3)
    streamed = json.loads(out.splitlines()[-1])
    code, out, _ = call(*arguments, "--stream", "false", "--json", "--topk", 3)
    clip = json.loads(out)[0]
    assert streamed["classes"] == clip["classes"]
    assert streamed["probabilities"] == pytest.approx(clip["probabilities"], abs=1e-5)


@pytest.fixture
def table(make_dataset: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A data set of Hugging Face that holds its videos as bytes, and the same videos as files."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = make_dataset(tmp_path / "videos", classes=("left", "right"), per_class=3)
    files = sorted(folder.rglob("*.mp4"))
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [file.parent.name for file in files]
    parquet.write_table(pyarrow.table({"video": rows, "label": labels}), tmp_path / "set.parquet", row_group_size=2)
    return tmp_path / "set.parquet", folder


def test_videos_that_lie_in_a_data_set(table: tuple[Path, Path], checkpoint: str, call: Call, tmp_path: Path) -> None:
    """`stvid predict`, `test`, `features` and `train` read the bytes; the numbers are those of the files."""
    parquet, folder = table
    files = sorted(folder.rglob("*.mp4"))
    found = []
    for source in ([parquet], files):
        code, out, err = call("predict", *source, "--checkpoint", checkpoint, "--json")
        assert code == 0, err
        found.append(json.loads(out))
    assert [row["path"] for row in found[0]] == [f"{parquet}/{n}-{file.name}" for n, file in enumerate(files)]
    assert [row["probabilities"] for row in found[0]] == [row["probabilities"] for row in found[1]]
    results = []
    for name, source in (("stored", parquet), ("files", folder)):
        common = ["test", "--checkpoint", checkpoint, "--data", source, "--device", "cpu", "--out", tmp_path / name]
        code, out, err = call(*common, "--workers", 1)
        assert code == 0, err
        results.append(json.loads((tmp_path / name / "result.json").read_text())["metrics"])
    assert results[0] == results[1]
    code, _, err = call(
        "features", "--data", parquet, "--checkpoint", checkpoint, "--out", tmp_path / "features", "--workers", 0
    )
    assert code == 0, err
    for option in (["--to", "via"], ["--window", "1s"]):
        code, _, err = call("predict", parquet, "--checkpoint", checkpoint, *option)
        assert code == 2 and f"{' '.join(option[:2]) if option[0] == '--to' else option[0]}: needs files" in err


def test_training_on_videos_that_lie_in_a_data_set(
    table: tuple[Path, Path], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    model = stvid.create_model("timm/test_efficientnet", num_classes=2, num_frames=2, img_size=32)
    own = Protocol(frames=2, stride=4, short_side=32, crop=32)
    stvid.save_model(model, tmp_path / "w.safetensors", protocol=own)
    quick = ["--trainer.max_epochs=1", "--data.workers=1", "--trainer.accelerator=cpu"]
    code, _, err = call("train", "--init", tmp_path / "w.safetensors", "--data.train", table[0], *quick)
    assert code == 0, err
    code, out, err = call("test", "--checkpoint", next((tmp_path / "runs").iterdir()), "--workers", 0)
    assert code == 0 and "videos counted" in out, err
