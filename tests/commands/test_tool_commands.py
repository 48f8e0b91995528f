"""inspect, explain, features, export and predict --window as a user types them."""

from __future__ import annotations

import csv
import html
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stvid
from stvid.cli import main
from stvid.data.manifest import Manifest
from stvid.errors import ConfigError
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, views="2x3", class_names=("left", "right", "turn"))


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Callable[[Protocol], VideoModel], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    stvid.save_model(tiny_model(PROTOCOL), path)
    return str(path)


@pytest.fixture(scope="module")
def video(make_video: Callable[..., Path]) -> str:
    return str(make_video("tool.mp4", frames=50, fps=25))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["inspect", "explain", "features", "export", "demo", "predict"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and "--checkpoint" in out and "default" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "some.mp4"], "--checkpoint: missing; stvid predict --help"),
        (["explain"], "FILES, --checkpoint: missing"),
        (["export", "--checkpoint", "x"], "--out: missing"),
        (["compare", "a"], "SECOND: missing"),
        (["compare", __file__, "a"], "test_tool_commands.py: neither a result.json nor a folder that holds one"),
        (["predict", "http://host/some.mp4", "--checkpoint", "x"], "give the length of a --window"),
        (["benchmark", "uniformer_xxs", "--img_size", "5"], "uniformer_xxs: UniFormer takes clips of at least"),
        (["benchmark", "uniformer_xxs", "--threads", "0"], "--threads: 0 is not"),
        (["benchmark", "uniformer_xxs", "--seconds", "0"], "--seconds: 0 is not"),
        (["inspect", "gone.mp4", "--config", "uniformer_xxs_motion.yaml"], "gone.mp4: no such file"),
    ],
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, *arguments)
    assert code in (1, 2) and words in err and err.count("error") == 1


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_with_a_checkpoint(
    checkpoint: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "sheet.png"
    code, out, _ = call(capsys, "inspect", video, "--checkpoint", checkpoint, "--clips", "test", "--out", picture)
    assert code == 0 and out.count("test, clip") == 6 and "50 frames of 64 x 48" in out
    with Image.open(picture) as sheet:
        assert sheet.size[0] > 400
    code, out, err = call(capsys, "inspect", video, "--checkpoint", checkpoint, "--out", picture, "--draws", 3)
    assert code == 0 and out.count("train, epoch") == 3 and "alone" in err


def test_inspect_shows_the_draws_of_the_very_training(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from stvid.config import load_config
    from stvid.data.dataset import Draw, TrainDataset
    from stvid.runs import read_data

    folder = make_dataset(tmp_path / "videos", per_class=2)
    path = sorted(folder.rglob("*.mp4"))[3]
    sizes = [
        "--protocol.frames=4",
        "--protocol.crop=32",
        "--protocol.short_side=40",
        "--data.repeats=1",
        "--data.val_fraction=0",
    ]
    options = [f"--data.train={folder}", "--seed=7", *sizes]
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", "uniformer_xxs_folder.yaml", "--clips", "train", "--draws", 1]
    code, out, err = call(capsys, "inspect", path, *arguments, *options)
    assert code == 0 and err == "" and (tmp_path / f"{path.stem}_clips.png").is_file()
    config = load_config("uniformer_xxs_folder.yaml", options)
    manifest, _ = read_data(config)
    index = next(n for n in range(len(manifest)) if manifest[n].path == str(path))
    sample = TrainDataset(manifest, config.protocol, config.augment, seed=7)[Draw(index, 0)]
    box = sample.crop_boxes[0]
    assert f"crop {box.width:.0f} x {box.height:.0f} at ({box.left:.0f}, {box.top:.0f})" in out
    assert ("mirrored" in out) == sample.flipped[0]


def test_inspect_needs_to_know_how(video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "inspect", video)
    assert code == 2 and "--config or --checkpoint" in err
    code, _, err = call(capsys, "inspect", tmp_path / "gone.mp4", "--config", "uniformer_s_k400.yaml")
    assert code == 1 and "no such file" in err


# --- predict --window -------------------------------------------------------------------------------------------------


def test_predict_over_time(checkpoint: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", video, "--checkpoint", checkpoint, "--window", "1s", "--window_stride", "500ms"]
    code, out, _ = call(capsys, *arguments, "--out", tmp_path / "t")
    assert code == 0 and "0.50 to     1.50 s" in out
    lines = list(csv.DictReader((tmp_path / "t" / "timeline.csv").read_text().splitlines()))
    assert [(line["start"], line["end"]) for line in lines] == [("0", "1"), ("0.5", "1.5"), ("1", "2")]
    assert sum(float(lines[0][f"probability_{k}"]) for k in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    written = json.loads((tmp_path / "t" / "timeline.json").read_text())
    assert written["window"] == 1 and written["protocol"]["class_names"] == ["left", "right", "turn"]
    assert (tmp_path / "t" / "timeline.svg").read_text().startswith("<svg")
    code, out, _ = call(capsys, *arguments, "--json", "--views", "2x3")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["start"] for row in rows] == [0, 0.5, 1] and rows[0]["source"] == video


def test_several_sources_have_folders_of_their_own(
    checkpoint: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", checkpoint, "--window", "1", "--out", tmp_path]
    code, _, err = call(capsys, "predict", video, tmp_path / "gone.mp4", *arguments)
    assert code == 1 and "no such file" in err
    assert len(json.loads((tmp_path / "tool" / "timeline.json").read_text())["windows"]) == 3
    assert "no such file" in json.loads((tmp_path / "gone" / "timeline.json").read_text())["stopped"]
    code, _, err = call(capsys, "predict", video, video, *arguments)
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
def test_predict_over_time_bad_calls(
    checkpoint: str, video: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "predict", video, "--checkpoint", checkpoint, *options)
    assert code == 2 and words in err and len(err.splitlines()) == 1


# --- explain, features, export, demo ----------------------------------------------------------------------------------


def test_explain(checkpoint: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", video, "--checkpoint", checkpoint, "--out", tmp_path / "e", "--device", "cpu"]
    code, out, _ = call(capsys, *arguments, "--class", "turn")
    assert code == 0 and "turn" in out and "gradcam" in out
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"tool_gradcam.png", "tool_gradcam.mp4"}
    code, _, err = call(capsys, *arguments, "--class", "trun")
    assert code == 2 and "nearest: turn" in err
    code, out, err = call(capsys, "explain", tmp_path / "gone.mp4", *arguments[1:])
    assert code == 1 and "gone.mp4: no such file" in err and "written to" in out


def test_inspect_and_explain_name_videos_in_shards(
    checkpoint: str,
    make_dataset: Callable[..., Path],
    make_shards: Callable[..., Manifest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = stvid.read_manifest(make_dataset(tmp_path / "videos", per_class=1))
    shards = make_shards(files, tmp_path / "shards")
    file, member = files[1].path, shards[1].path
    shown = {}
    for path in (file, member):
        arguments = ["inspect", path, "--checkpoint", checkpoint, "--clips", "test", "--out", tmp_path / "clips.png"]
        code, out, err = call(capsys, *arguments)
        assert code == 0 and "test, clip 2 of 2" in out, err
        explained = ["explain", path, "--checkpoint", checkpoint, "--out", tmp_path / "e", "--device", "cpu"]
        code, told, err = call(capsys, *explained)
        assert code == 0, err
        shown[path] = (out.replace(path, "PATH"), told.replace(path, "PATH").partition("; written to")[0])
    assert shown[file] == shown[member]
    assert (tmp_path / "e" / f"{Path(member).stem}_gradcam.png").exists()
    gone = str(Path(member).with_name("gone.mp4"))
    for command in ("inspect", "explain"):
        code, _, err = call(capsys, command, gone, "--checkpoint", checkpoint)
        assert code == 1 and f"{gone}: there is no such video in the shards" in err


def test_optimize_is_recorded(
    checkpoint: str, make_dataset: Callable[..., Path], video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset(tmp_path / "videos", per_class=1)
    common = ["test", "--checkpoint", checkpoint, "--data", folder, "--workers", 0, "--device", "cpu"]
    code, out, err = call(capsys, *common, "--out", tmp_path / "plain")
    assert code == 0 and "optimized" not in err and "computed in" not in out
    code, out, err = call(capsys, *common, "--out", tmp_path / "fast", "--optimize")
    assert code == 0 and "optimized: " in err and "computed in" in out
    plain, fast = (stvid.EvaluationResult.load(tmp_path / name) for name in ("plain", "fast"))
    notes = stvid.optimize(stvid.load_model(checkpoint)).notes
    assert plain.arithmetic == ("32-true on cpu",) and fast.arithmetic == notes
    np.testing.assert_allclose(fast.logits, plain.logits, atol=0.05)
    for name, notes in (("plain", plain.arithmetic), ("fast", fast.arithmetic)):
        assert json.loads((tmp_path / name / "result.json").read_text())["arithmetic"] == list(notes)
        assert "; ".join(notes) in html.unescape((tmp_path / name / "report.html").read_text())
    code, _, err = call(capsys, *common, "--out", tmp_path / "no", "--optimize", "--precision", "bf16-mixed")
    assert code == 2 and "leave out --precision" in err
    for options in ([], ["--window", "1s"]):
        arguments = ["predict", video, "--checkpoint", checkpoint, "--device", "cpu", "--optimize", *options]
        code, out, err = call(capsys, *arguments)
        assert code == 0 and "optimized: " in err and "%" in out


def test_features(
    checkpoint: str, make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset(tmp_path / "videos", per_class=1)
    arguments = ["features", "--checkpoint", checkpoint, "--data", folder, "--out", tmp_path / "f", "--workers", 0]
    arguments += ["--device", "cpu", "--devices", 1]
    code, out, err = call(capsys, *arguments)
    assert code == 0 and "3 videos written, 0 were there, 0 failed; features of 16 numbers" in out, err
    code, out, _ = call(capsys, *arguments)
    assert code == 0 and "0 videos written, 3 were there" in out
    code, _, err = call(capsys, *arguments, "--window", "1s")
    assert code == 2 and "another --out" in err
    code, _, err = call(capsys, *arguments, "--window_stride", "1s")
    assert code == 2 and "--window, which is missing" in err
    code, _, err = call(capsys, *arguments, "--device", "abacus")
    assert code == 2 and "--device: 'abacus' cannot be used here" in err


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [
        (None, "auto", ("auto", "auto")),
        ("auto", "2", ("auto", "2")),
        ("cpu", "auto", ("cpu", "auto")),
        ("cuda", "4", ("gpu", "4")),
        ("gpu", "auto", ("gpu", "auto")),
        ("cuda:1", "auto", ("gpu", "1,")),
    ],
)
def test_features_runs_on_the_device_that_is_named(
    device: str | None, devices: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stvid.commands import features

    monkeypatch.setattr(features, "pick_device", lambda name: name)  # there may be no GPU here
    assert features._for_lightning(device, devices) == expected
    with pytest.raises(ConfigError, match="--device cuda:1 names the only one"):
        features._for_lightning("cuda:1", "2")


def test_export(checkpoint: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "export", "--checkpoint", checkpoint, "--out", tmp_path / "m.pt2", "--json")
    report = json.loads(out)
    assert code == 0 and report["largest_difference"] < 1e-3 and report["input_shape"] == [3, 4, 32, 32]
    found = stvid.predict(stvid.load_exported(tmp_path / "m.pt2"), video)[0]
    assert found.classes == stvid.predict(checkpoint, video)[0].classes
    code, _, err = call(capsys, "export", "--checkpoint", checkpoint, "--out", tmp_path / "m.tflite")
    assert code == 2 and ".pt2 nor .onnx" in err


def test_demo_without_gradio(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = call(capsys, "demo", "--checkpoint", checkpoint)
    assert code == 1 and "pip install 'stvid[demo]'" in err


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
def test_demo_bad_calls(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "demo", "--checkpoint", checkpoint, "--window", "soon")
    assert code == 2 and "soon" in err
