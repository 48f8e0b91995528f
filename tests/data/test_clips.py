"""One function makes all clips, and one rule says which frames a part of a video holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F

import stvid
from stvid.data.clips import (
    CROP_COUNTS,
    ClipPlan,
    CropBox,
    Frames,
    around,
    crop_offsets,
    cut_views,
    make_clip,
    scaled_frames,
    view_plans,
    whole_frames,
)
from stvid.data.dataset import EvalDataset
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.transforms import normalize
from stvid.errors import ConfigError, VideoError
from stvid.evaluation.timeline import stream_windows
from stvid.look.inspection import inspect_video
from stvid.protocol import Protocol
from stvid.video.streaming import stream_frames


def noise(frames: int = 4, height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


def ramp(frames: int, height: int, width: int) -> torch.Tensor:
    """Red is the column, green the row, blue the number of the frame."""
    video = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    video[..., 0] = torch.arange(width, dtype=torch.uint8)
    video[..., 1] = torch.arange(height, dtype=torch.uint8)[:, None]
    video[..., 2] = torch.arange(frames, dtype=torch.uint8)[:, None, None]
    return video


def view_crops(images: torch.Tensor, protocol: Protocol, count: int) -> tuple[torch.Tensor, tuple[CropBox, ...]]:
    """All crops of one clip of frames in memory, and what each shows of the source."""
    frames = scaled_frames(images, protocol.short_side)
    views = [(0, count, crop) for crop in range(count)]
    plans = view_plans(frames.numbers[None], views, frame_size=frames.size, size=protocol.crop)
    return cut_views(frames, plans, protocol.crop), tuple(frames.source_box(plan.box) for plan in plans)


class TestMakeClip:
    def test_shows_the_planned_part_of_the_planned_frames(self) -> None:
        frames = whole_frames(ramp(6, 40, 60))
        clip = make_clip(frames, ClipPlan(np.array([1, 4, 4]), (3, 20, 8, 8)), 8)
        assert clip.shape == (3, 3, 8, 8) and clip.dtype == torch.uint8
        assert clip[:, 2, 0, 0].tolist() == [1, 4, 4]
        assert clip[0, 0, 0].tolist() == list(range(20, 28)) and clip[0, 1, :, 0].tolist() == list(range(3, 11))
        mirrored = make_clip(frames, ClipPlan(np.array([1, 4, 4]), (3, 20, 8, 8), flipped=True), 8)
        assert torch.equal(mirrored, clip.flip(-1))

    @pytest.mark.parametrize("box", [(0, 0, 48, 64), (5, 7, 16, 16), (5, 7, 32, 20)])
    @pytest.mark.parametrize("flipped", [False, True])
    def test_is_a_cut_then_a_resize_then_a_mirror(self, box: tuple[int, int, int, int], flipped: bool) -> None:
        images, order = noise(), np.array([0, 2, 3])
        top, left, height, width = box
        cut = images[[0, 2, 3], top : top + height, left : left + width].permute(0, 3, 1, 2)
        expected = F.resize(cut.contiguous(memory_format=torch.channels_last), [16, 16], antialias=True)
        expected = expected.flip(-1) if flipped else expected
        out = torch.empty(3, 16, 16, 3, dtype=torch.uint8)
        assert torch.equal(make_clip(whole_frames(images), ClipPlan(order, box, flipped), 16), expected)
        assert torch.equal(make_clip(whole_frames(images), ClipPlan(order, box, flipped), 16, out=out), expected)
        assert torch.equal(out.permute(0, 3, 1, 2), expected)

    def test_a_part_of_the_frames_gives_the_same_clip(self) -> None:
        images = noise(8)
        plan = ClipPlan(np.array([2, 7, 5, 5]), (10, 12, 20, 24))
        numbers = np.array([2, 5, 7])
        part = Frames(images[numbers, 6:40, 9:50], numbers, (48, 64), (48, 64), corner=(6, 9))
        assert torch.equal(make_clip(part, plan, 16), make_clip(whole_frames(images), plan, 16))

    def test_frames_of_another_kind_are_refused(self) -> None:
        for images in (torch.zeros(2, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8)):
            with pytest.raises(ValueError, match="frames must be uint8"):
                whole_frames(images)


def test_around_is_the_smallest_box_with_all() -> None:
    assert around([(4, 5, 10, 2), (2, 7, 3, 9)]) == (2, 5, 12, 11)


class TestViewsOfFrames:
    def protocol(self, short_side: int = 40, crop: int = 32) -> Protocol:
        return Protocol(short_side=short_side, crop=crop)

    def test_centre(self) -> None:
        crops, boxes = view_crops(ramp(3, 40, 60), self.protocol(), 1)
        assert crops.shape == (1, 3, 3, 32, 32) and crops.dtype == torch.uint8
        assert boxes == (CropBox(4, 14, 32, 32),)
        assert crops[0, 0, 0, 0].tolist() == list(range(14, 46))
        assert crops[0, 1, 0, :, 0].tolist() == list(range(4, 36))
        assert crops[0, 2, :, 0, 0].tolist() == [0, 1, 2]

    def test_odd_centre_is_rounded_up_as_slowfast_does(self) -> None:
        boxes = view_crops(ramp(1, 40, 61), self.protocol(), 1)[1]
        assert boxes[0].left == 15  # ceil(29 / 2)

    def test_three_along_the_long_side(self) -> None:
        crops, boxes = view_crops(ramp(1, 40, 60), self.protocol(), 3)
        assert [box[:2] for box in boxes] == [(4, 0), (4, 14), (4, 28)]
        assert [int(crop[0, 0, 0, 0]) for crop in crops] == [0, 14, 28]
        boxes = view_crops(ramp(1, 60, 40), self.protocol(), 3)[1]
        assert [box[:2] for box in boxes] == [(0, 4), (14, 4), (28, 4)]

    def test_three_with_short_side_equal_to_the_crop_cover_the_frame(self) -> None:
        boxes = view_crops(ramp(1, 32, 60), self.protocol(32), 3)[1]
        assert [box[:2] for box in boxes] == [(0, 0), (0, 14), (0, 28)]

    def test_five_and_ten(self) -> None:
        frames = ramp(2, 40, 60)
        five, boxes = view_crops(frames, self.protocol(), 5)
        assert [box[:2] for box in boxes] == [(0, 0), (0, 28), (8, 0), (8, 28), (4, 14)]
        ten, ten_boxes = view_crops(frames, self.protocol(), 10)
        assert torch.equal(ten[:5], five)
        assert torch.equal(ten[5:], five.flip(-1))
        assert ten_boxes == boxes + boxes

    @pytest.mark.parametrize("count", [0, 2, 4, 11])
    def test_other_numbers(self, count: int) -> None:
        assert count not in CROP_COUNTS
        with pytest.raises(ConfigError, match=f"{count} crops"):
            crop_offsets(40, 60, 32, count)

    @pytest.mark.parametrize("size", [(80, 120), (20, 30), (37, 91), (91, 37), (1, 1), (3, 1000)])
    @pytest.mark.parametrize("count", CROP_COUNTS)
    def test_boxes_are_in_source_pixels(self, size: tuple[int, int], count: int) -> None:
        crops, boxes = view_crops(noise(2, *size), self.protocol(), count)
        assert crops.shape == (count, 3, 2, 32, 32)
        for box in boxes:
            assert box.top >= 0 and box.left >= 0
            assert box.top + box.height <= size[0] + 1e-9 and box.left + box.width <= size[1] + 1e-9
            assert box.height == pytest.approx(32 * min(size) / 40, rel=0.03)

    def test_scaling_keeps_the_aspect_and_the_place(self) -> None:
        crops, boxes = view_crops(ramp(1, 80, 120), self.protocol(), 1)
        assert boxes == (CropBox(8, 28, 64, 64),)
        assert abs(crops[0, 0, 0, 0].float().mean() - (28 + 31.5)) < 0.6
        assert abs(crops[0, 1, 0, :, 0].float().mean() - (8 + 31.5)) < 0.6

    def test_equals_a_resize_of_each_frame(self) -> None:
        frames = noise(2, 50, 70)
        crop = view_crops(frames, self.protocol(40, 40), 1)[0][0]
        for number in range(2):
            expected = F.resize(frames[number].permute(2, 0, 1), [40, 56], antialias=True)[:, :, 8:48]
            assert torch.equal(crop[:, number], expected)


# --- one rule for all -------------------------------------------------------------------------------------------------

# The last one is stamped like a 240 fps file whose times are in whole milliseconds, and it does not begin at 0.
TIMES = {
    "even": [k / 25 for k in range(60)],
    "uneven": [0.0, 0.04, 0.08, 0.1, 0.3, 0.9, 0.95, 1.0, 1.4, 1.41, 2.2, 2.3, 2.35, 2.4, 2.45, 2.5, 2.9],
    "burst": [0.0, 0.4, 0.8, 1.2, *(1.2 + k / 500 for k in range(1, 40)), 1.6, 2.0, 2.4],
    "fast": [1.4 + round(k / 240, 3) for k in range(600)],
}
PARTS = [(0.0, 0.5), (0.4, 1.2), (0.8, 1.2008), (1.2, 1.2405), (0.4995, 1.3), (1.0, 9.0), (0.3333, 0.6667)]


@pytest.mark.parametrize("fps", [None, 12.5, 240.0])
@pytest.mark.parametrize("kind", TIMES)
def test_all_ways_to_a_clip_of_the_same_seconds_give_the_same(
    kind: str, fps: float | None, make_video: Callable[..., Path]
) -> None:
    path = make_video("a.mkv", frames=len(TIMES[kind]), times=TIMES[kind])
    protocol = Protocol(frames=4, stride=3, short_side=24, crop=16, fps=fps)
    compared = 0
    for start, end in PARTS:
        manifest = Manifest.from_entries([VideoEntry(str(path), start=start, end=end)])
        sample = EvalDataset(manifest, protocol, views="1x1")[0]
        try:
            clip = stvid.load_clip(path, protocol=protocol, start=start, end=end)
        except VideoError as error:
            assert sample.error == error.reason and "there is no frame" in error.reason
            continue
        assert sample.clips is not None and sample.indices is not None and sample.seconds is not None
        (shown,) = inspect_video(manifest, 0, protocol, split="test").clips
        ways = {
            "EvalDataset": (sample.clips[0], sample.indices[0], sample.seconds[0]),
            "inspect": (torch.from_numpy(shown.frames).permute(3, 0, 1, 2), shown.indices, shown.seconds),
        }
        number = 1 if start else 0  # the window that begins at `start`
        found = list(stream_windows(stream_frames(path), protocol, window=end - start, stride=start or 1.0))
        if len(found) > number:  # there is none that begins after one that has reached the end
            window = found[number]
            assert window.clips is not None and window.start == start
            ways["timeline"] = (window.clips[0], window.indices[0], window.seconds[0])
        for name, (pixels, indices, seconds) in ways.items():
            np.testing.assert_array_equal(indices, clip.indices, err_msg=f"{name}, {start} to {end}")
            np.testing.assert_array_equal(seconds, clip.seconds, err_msg=f"{name}, {start} to {end}")
            assert torch.equal(normalize(pixels, protocol.mean, protocol.std), clip.tensor)
            compared += 1
    assert compared >= 12
