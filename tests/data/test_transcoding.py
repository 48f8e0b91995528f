"""``stvid prep transcode``: the copies hold the frames of the originals, at their times."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image

from stvid.commands.prep import main
from stvid.data import transcoding
from stvid.data.manifest import read_manifest
from stvid.data.transcoding import DEFAULTS, output_path, transcode
from stvid.errors import VideoError
from stvid.video.reader import VideoReader

MakeVideo = Callable[..., Path]
FrameNumber = Callable[[Any], int]


def copy(path: Path, out: Path, **options: Any) -> tuple[dict[str, Any], VideoReader]:
    settings = {"root": str(path.parent), "out": str(out), **DEFAULTS, "preset": "veryfast", **options}
    facts = dict(transcode(str(path), settings))
    assert not list(out.rglob(".*"))
    return facts, VideoReader(facts["out"])


@pytest.mark.parametrize(
    "about",
    [
        {"name": "plain.mp4", "frames": 50},
        {"name": "variable.mkv", "times": [0.4, 0.44, 0.5, 0.9, 0.933, 1.0, 2.0, 2.01, 2.5, 2.54, 4.0]},
        {"name": "turned.mp4", "rotation": 90, "start": 1.5},
        {"name": "ntsc.ts", "fps": Fraction(30000, 1001), "bframes": 3},
        {"name": "odd.webm", "codec": "libvpx-vp9", "width": 75, "height": 57},
        {"name": "counted.avi", "codec": "mpeg4"},
        {"name": "one.mp4", "frames": 1, "audio": True},
    ],
    ids=lambda about: about["name"],
)
def test_frames_and_times_stay(
    make_video: MakeVideo, frame_number: FrameNumber, tmp_path: Path, about: dict[str, Any]
) -> None:
    about = dict(about)
    if "times" in about:
        about["frames"] = len(about["times"])
    path = make_video(about.pop("name"), **about)
    facts, reader = copy(path, tmp_path / "out", short_side=36)
    with VideoReader(path) as original, reader:
        assert len(reader) == len(original) == facts["frames"]
        times = original.timestamps
        assert np.abs(reader.timestamps - (times - times[0])).max() < 0.002
        assert min(reader.height, reader.width) == 36
        assert reader.height % 2 == reader.width % 2 == 0
        assert abs(reader.width / reader.height - original.width / original.height) < 0.05
        one, two = original.get_all().numpy(), reader.get_all().numpy()
        if not about.get("rotation"):
            assert [frame_number(frame) for frame in two] == list(range(len(two)))
        # the same picture: the mean colour of each quarter
        for a, b in zip(one, two, strict=True):
            for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                parts = [
                    image[y * h // 2 : (y + 1) * h // 2, x * w // 2 : (x + 1) * w // 2].mean((0, 1))
                    for image, h, w in ((a, *a.shape[:2]), (b, *b.shape[:2]))
                ]
                assert np.abs(parts[0] - parts[1]).max() < 16


def test_colours_stay(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video("coloured.mp4", light=(200, 60, 30), width=64, height=48, options={"crf": "4"})
    _, reader = copy(path, tmp_path / "out", crf=4)
    with VideoReader(path) as original, reader:
        one, two = original.get_all().float(), reader.get_all().float()
        assert (one - two).abs().mean() < 2


def test_small_videos_keep_their_size_and_no_side_is_odd(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video("odd.webm", codec="libvpx-vp9", width=75, height=57)
    facts, reader = copy(path, tmp_path / "out")
    reader.close()
    assert (facts["height"], facts["width"]) in {(56, 74), (56, 76), (58, 74), (58, 76)}


@pytest.mark.parametrize("gop", [1, 5, 12])
def test_key_frames_are_where_they_were_asked_for(make_video: MakeVideo, tmp_path: Path, gop: int) -> None:
    facts, reader = copy(make_video("long.mp4", frames=40), tmp_path / "out", gop=gop)
    reader.close()
    with av.open(facts["out"]) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert not container.streams.audio
        frames = [(frame.key_frame, PictureType(frame.pict_type).name) for frame in container.decode(stream)]
    assert [number for number, (key, _) in enumerate(frames) if key] == list(range(0, 40, gop))
    if gop == 12:
        kinds = [kind for _, kind in frames]
        assert kinds[:9] == ["I", *7 * ["B"], "P"]


def test_b_frames_can_be_left_out_by_the_reader(make_video: MakeVideo, tmp_path: Path) -> None:
    _, reader = copy(make_video("long.mp4", frames=48), tmp_path / "out")
    with reader:
        packets = reader._source.index.packets  # type: ignore[union-attr]
    assert packets.skippable.sum() >= 40


def test_a_folder_of_images_gets_the_rate_that_is_given(
    draw_frame: Callable[..., np.ndarray], frame_number: FrameNumber, tmp_path: Path
) -> None:
    folder = tmp_path / "v" / "100.5"
    folder.mkdir(parents=True)
    for number in range(9):
        Image.fromarray(draw_frame(number, 64, 48)).save(folder / f"{number + 1:05d}.jpg", quality=95)
    with pytest.raises(VideoError, match="is a folder of images; say how many a second they are with --frames_fps"):
        copy(folder, tmp_path / "out")
    facts, reader = copy(folder, tmp_path / "out", frames_fps=12.0)
    assert Path(facts["out"]).name == "100.5.mp4"
    with reader:
        assert np.abs(reader.timestamps - np.arange(9) / 12).max() < 0.001 and abs(reader.fps - 12) < 0.01
        assert [frame_number(frame) for frame in reader.get_all()] == list(range(9))


def test_a_copy_that_is_not_right_does_not_take_its_place(make_video: MakeVideo, tmp_path: Path, monkeypatch) -> None:
    path = make_video("plain.mp4", frames=50)
    monkeypatch.setattr(transcoding, "_ticks", lambda times: (np.round(times * 45_000)).astype(np.int64))
    with pytest.raises(VideoError, match=r"the times of its copy are off by"):
        copy(path, tmp_path / "out")
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_where_copies_go(tmp_path: Path) -> None:
    assert output_path("/d/a/b.c.avi", "/d", "/out") == Path("/out/a/b.c.mp4")
    assert output_path("/elsewhere/b.avi", "/d", "/out") == Path("/out/b.mp4")


@pytest.mark.usefixtures("in_process")
def test_the_command(make_dataset: Callable[..., Path], tmp_path: Path, capsys, monkeypatch) -> None:
    folder = make_dataset(tmp_path / "v", classes=("a", "b"), per_class=2)
    (folder / "a" / "bad.mp4").write_text("no video")
    out = tmp_path / "out"
    killed = out / "a" / ".x.mp4.1.tmp"
    killed.parent.mkdir(parents=True)
    killed.touch()
    command = ["transcode", str(folder), "--out", str(out), "--short_side", "32", "--preset", "ultrafast"]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "4 videos, " in shown.out and "1 of 5 videos failed" in shown.err
    assert not killed.exists()
    with open(out / "failed.csv", newline="") as file:
        ((path, reason),) = list(csv.reader(file))[1:]
    assert path == str(folder / "a/bad.mp4") and reason.startswith("not a video")
    manifest = read_manifest(out / "videos.csv")
    assert len(manifest) == 4 and manifest[0].labels == ("a",)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}

    # again: the failed one, now mended, and one copy that is gone
    (folder / "a" / "bad.mp4").write_bytes((folder / "b" / "b_1.mp4").read_bytes())
    (out / "a" / "a_0.mp4").unlink()
    assert main(command) == 0
    changed = {p.name for p in out.rglob("*.mp4") if stamps.get(p) != p.stat().st_mtime_ns}
    assert changed == {"bad.mp4", "a_0.mp4"}
    assert not (out / "failed.csv").exists() and len(read_manifest(out / "videos.csv")) == 5
    assert main([*command, "--gop", "4"]) == 2
    assert "belongs to a run with other options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crf", "60"], "--crf is 0 to 51"),
        (["--preset", "fat"], "--preset fat: is none of .*; nearest: "),
        (["--frames_fps", "0"], "--frames_fps 0: is not a number above 0"),
        (["--gopp", "3"], "--gopp: unknown option; nearest: --gop"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    import re

    assert main(["transcode", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_copies_must_not_meet(make_video: MakeVideo, tmp_path: Path, capsys) -> None:
    make_video("x.mp4", to=tmp_path / "v" / "a")
    make_video("x.avi", codec="mpeg4", to=tmp_path / "v" / "a")
    assert main(["transcode", str(tmp_path / "v"), "--out", str(tmp_path / "out")]) == 2
    assert "would both become" in capsys.readouterr().err
    (tmp_path / "v" / "a" / "x.avi").unlink()
    assert main(["transcode", str(tmp_path / "v"), "--out", str(tmp_path / "v")]) == 2
    assert "would be replaced by its own copy" in capsys.readouterr().err


TRANSCODE = """
import hashlib, sys
from pathlib import Path
from stvid.data.transcoding import DEFAULTS, transcode
path, out = sys.argv[1:]
digests = []
for number in range(4):
    options = {**DEFAULTS, "short_side": 48, "root": str(Path(path).parent), "out": f"{out}/{number}"}
    digests.append(hashlib.sha256(Path(transcode(path, options)["out"]).read_bytes()).hexdigest())
print(*digests)
"""


def test_the_same_original_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also where memory that nobody wrote holds something else (MALLOC_PERTURB_ of glibc)."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (40, 60, 3)).astype(np.uint8).repeat(6, 0).repeat(6, 1)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"threads": "1", "crf": "20", "preset": "veryfast"}
        for at in range(32):
            image = np.roll(still, (3 * at, 2 * at), (1, 0))[:240, :320].astype(int) + rng.integers(
                -6, 7, (240, 320, 3)
            )
            frame = av.VideoFrame.from_ndarray(np.clip(image, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found: set[str] = set()
    for fill in ("0", "85"):
        command = [sys.executable, "-c", TRANSCODE, str(path), str(tmp_path / fill)]
        environment = {**os.environ, "MALLOC_PERTURB_": fill, "PYTHONPATH": str(Path(__file__).parents[2])}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        found.update(run.stdout.split())
    assert len(found) == 1


@pytest.mark.parametrize(("has", "ends"), [(True, ":asm=AVX2"), (False, ":ref=1")])
def test_instructions_are_named_where_the_processor_has_them(has: bool, ends: str, monkeypatch) -> None:
    monkeypatch.setattr(transcoding, "_has_avx512", lambda: has)
    assert transcoding._encoder_parameters().endswith(ends)
