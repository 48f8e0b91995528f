"""The contact sheet shows the clips that training and test make, not others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stvid.config import AugmentConfig
from stvid.data.dataset import Draw, EvalDataset, TrainDataset
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.transforms import CropBox
from stvid.errors import ConfigError, StvidError, VideoError
from stvid.look.drawing import Row, Tile, contact_sheet, heat_overlay, save_picture, with_box
from stvid.look.inspection import inspect_video
from stvid.protocol import Protocol

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, views="2x3")
AUGMENT = AugmentConfig(hflip=0.5, randaugment_magnitude=7.0)


@pytest.fixture(scope="module")
def manifest(make_video: Callable[..., Path]) -> Manifest:
    paths = [make_video(f"{n}.mp4", first=100 * n, frames=24) for n in range(3)]
    return Manifest.from_entries([VideoEntry(str(path), (label,)) for path, label in zip(paths, "aba", strict=True)])


def test_the_clips_of_training(manifest: Manifest) -> None:
    found = inspect_video(manifest, 1, PROTOCOL, split="train", augment=AUGMENT, draws=3, seed=5, repeats=2)
    dataset = TrainDataset(manifest, PROTOCOL, AUGMENT, seed=5, repeats=2)
    assert len(found.clips) == 6
    for number, clip in enumerate(found.clips):
        epoch, repeat = divmod(number, 2)
        sample = dataset[Draw(1, epoch)]
        np.testing.assert_array_equal(clip.frames, sample.clips[repeat].permute(1, 2, 3, 0))
        np.testing.assert_array_equal(clip.indices, sample.indices[repeat])
        assert clip.crop_box == sample.crop_boxes[repeat] and clip.flipped == sample.flipped[repeat]
        assert f"epoch {epoch}" in clip.name


def test_the_clips_of_a_test(manifest: Manifest, frame_number: Callable[..., int]) -> None:
    found = inspect_video(manifest, 2, PROTOCOL, split="test")
    sample = EvalDataset(manifest, PROTOCOL, views="2x3")[2]
    assert [clip.name for clip in found.clips][:2] == ["test, clip 1 of 2, left/top", "test, clip 1 of 2, centre"]
    for view, clip in enumerate(found.clips):
        np.testing.assert_array_equal(clip.frames, sample.clips[view].permute(1, 2, 3, 0))
        np.testing.assert_array_equal(clip.indices, sample.indices[view // 3])
        assert frame_number(clip.source) == 200 + clip.indices[2]
        assert clip.crop_box == sample.crop_boxes[view % 3] and not clip.flipped


def test_a_video_in_shards_is_that_of_the_file(
    manifest: Manifest, make_shards: Callable[..., Manifest], tmp_path: Path
) -> None:
    shards = make_shards(manifest, tmp_path / "shards")
    for split in ("train", "test"):
        expected = inspect_video(manifest, 1, PROTOCOL, split=split, augment=AUGMENT)
        found = inspect_video(shards, 1, PROTOCOL, split=split, augment=AUGMENT)
        assert found.path == shards[1].path and found.video == expected.video
        for one, other in zip(found.clips, expected.clips, strict=True):
            assert one.describe() == other.describe()
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.source, other.source)


def test_ten_crops_say_which_are_mirrored(manifest: Manifest) -> None:
    found = inspect_video(manifest, 0, PROTOCOL.replace(views="1x10"), split="test").clips
    assert [clip.flipped for clip in found] == [False] * 5 + [True] * 5
    np.testing.assert_array_equal(found[0].frames, found[5].frames[:, :, ::-1])


def test_the_sheet_has_every_frame_and_the_summary_says_it(manifest: Manifest, tmp_path: Path) -> None:
    found = inspect_video(manifest, 0, PROTOCOL, augment=AUGMENT, draws=1)
    lines = found.lines()
    assert "24 frames of 64 x 48, 25 fps" in lines[0] and len(lines) == 2 + 1 + 6
    assert "frames 0, 2 ... 6 (stride 2), 0.00 to 0.24 s" in lines[3]
    sheet = np.asarray(found.sheet(tile=32, columns=5))
    # In the rows of tiles the pictures of the clip stand as they are, since a tile is as large as the crop.
    last = found.clips[-1].frames[-1]
    places = np.lib.stride_tricks.sliding_window_view(sheet[-120:], last.shape).reshape(-1, *last.shape)
    assert (places == last).all(axis=(1, 2, 3)).any()
    written = save_picture(found.sheet(), tmp_path / "new" / "sheet.png")
    assert written.stat().st_size > 1000
    with pytest.raises(ConfigError, match=r"\.png"):
        save_picture(found.sheet(), tmp_path / "sheet.jpg")
    with pytest.raises(StvidError, match=r"sheet\.png/sheet\.png: cannot be written"):
        save_picture(found.sheet(), written / "sheet.png")


def test_an_unreadable_video_is_not_replaced(manifest: Manifest, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    entries = [VideoEntry(str(broken), ("a",)), *(manifest[index] for index in range(3))]
    with pytest.raises(VideoError, match="broken"):
        inspect_video(Manifest.from_entries(entries), 0, PROTOCOL)
    empty = Manifest.from_entries([VideoEntry(manifest[0].path, ("a",), 50.0, 60.0), manifest[1]])
    for split in ("train", "test"):
        with pytest.raises(VideoError, match="no frame"):
            inspect_video(empty, 0, PROTOCOL, split=split)  # type: ignore[arg-type]


def test_bad_calls(manifest: Manifest) -> None:
    for options in ({"draws": 0}, {"split": "val"}):
        with pytest.raises(ConfigError):
            inspect_video(manifest, 0, PROTOCOL, **options)  # type: ignore[arg-type]


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_tiles_are_fitted_and_go_on_in_the_next_line() -> None:
    red = np.zeros((10, 20, 3), np.uint8)
    red[..., 0] = 255
    sheet = np.asarray(contact_sheet([Row("title", (Tile(red, ("a",)),) * 5)], tile=40, columns=3))
    marks = (sheet == (255, 0, 0)).all(axis=2)
    assert marks.sum() == 5 * 40 * 20  # scaled to 40 x 20 each
    assert len(np.unique(np.flatnonzero(marks.any(axis=1)) // 40)) >= 2


def test_a_box_is_drawn_where_the_crop_is() -> None:
    marked = with_box(np.zeros((40, 60, 3), np.uint8), CropBox(10, 20, 16, 30))
    rows, columns = np.nonzero(marked.any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 25, 20, 49)


def test_heat_goes_from_blue_to_red() -> None:
    painted = heat_overlay(np.full((1, 3, 3), 100, np.uint8), np.array([[0.0, 0.5, 1.0]]), opacity=1.0)
    assert painted[0, 0].argmax() == 2 and painted[0, 2].argmax() == 0
    assert (heat_overlay(np.full((1, 1, 3), 100, np.uint8), np.zeros((1, 1)), opacity=0.0) == 100).all()
