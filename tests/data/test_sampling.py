from __future__ import annotations

import numpy as np
import pytest

from stvid.data.sampling import (
    TOLERANCE,
    LimitClock,
    dense_clip,
    dense_starts,
    frame_grid,
    sample_train,
    sample_views,
    segment_clip,
    window_grid,
)
from stvid.protocol import Protocol

EVEN = np.arange(50) / 25  # two seconds


# ----------------------------------------------------------------------------------------------------------------- grid


def test_grid_without_a_rate_is_every_frame() -> None:
    grid = frame_grid(EVEN, fps=None)
    assert grid.dtype == np.int64
    np.testing.assert_array_equal(grid, np.arange(50))
    np.testing.assert_array_equal(frame_grid(EVEN, fps=None, start=1.0), np.arange(25, 50))
    np.testing.assert_array_equal(frame_grid(EVEN, fps=None, start=0.5, end=1.0), np.arange(13, 25))
    np.testing.assert_array_equal(frame_grid(EVEN, fps=None, start=-5, end=500), np.arange(50))
    np.testing.assert_array_equal(frame_grid([7.0], fps=None), [0])


@pytest.mark.parametrize("rate", [1, 3, 12.5, 24, 25, 29.97, 30, 50, 60, 120])
def test_grid_at_its_own_rate_is_every_frame_once(rate: float) -> None:
    for count in (1, 2, 7, 300):
        for offset in (0.0, 0.067, 1.4, 57600.0):
            exact = offset + np.arange(count) / rate
            for times in (exact, np.round(exact, 3), np.floor(exact * 90000) / 90000):
                np.testing.assert_array_equal(frame_grid(times, fps=None), np.arange(count))
                if count > 1:  # the length of a single frame is not known
                    np.testing.assert_array_equal(frame_grid(times, fps=rate), np.arange(count))


def test_grid_shows_the_frame_of_that_time() -> None:
    np.testing.assert_array_equal(frame_grid(EVEN, fps=5), np.arange(0, 50, 5))
    np.testing.assert_array_equal(frame_grid(EVEN, fps=50), np.repeat(np.arange(50), 2))
    np.testing.assert_array_equal(frame_grid(EVEN, fps=10, start=1.0, end=1.5), [25, 27, 30, 32, 35])
    times = np.array([0.0, 0.1, 1.0, 1.05, 3.0])
    np.testing.assert_array_equal(frame_grid(times, fps=2), [0, 1, 2, 3, 3, 3, 4, 4])  # the last one lasts 0.75 s
    np.testing.assert_array_equal(frame_grid(times, fps=2, start=2.0, end=3.1), [3, 3, 4])


def test_grid_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        times = np.cumsum(rng.uniform(0.01, 0.3, rng.integers(1, 30))) + rng.uniform(0, 5)
        fps = float(rng.uniform(0.5, 40))
        start = None if rng.random() < 0.3 else float(rng.uniform(times[0] - 0.5, times[-1]))
        end = None if rng.random() < 0.3 else float((start or times[0]) + rng.uniform(0.1, 5))
        grid = frame_grid(times, fps=fps, start=start, end=end) if end is None or end > times[0] else None
        if grid is None:
            with pytest.raises(ValueError, match="no frame"):
                frame_grid(times, fps=fps, start=start, end=end)
            continue
        assert len(grid) > 0 and (np.diff(grid) >= 0).all() and grid.min() >= 0 and grid.max() < len(times)
        for tick, frame in enumerate(grid):
            at = (times[0] if start is None else start) + tick / fps
            assert times[frame] <= at + 1.001e-3 or frame == 0
            assert frame == len(times) - 1 or times[frame + 1] > at + 0.9e-3 * min(1, times[-1] - times[0])
        inside = frame_grid(times, fps=None, end=end)
        assert inside.max() < len(times)


def test_grid_says_when_there_is_nothing() -> None:
    for fps in (None, 10.0):
        for start, end in ((5.0, 6.0), (1.0, 1.0), (1.0, 0.5), (-3.0, -1.0), (2.0, None)):
            with pytest.raises(ValueError, match="there is no frame in"):
                frame_grid(EVEN, fps=fps, start=start, end=end)
    with pytest.raises(ValueError, match="there is no frame in"):
        frame_grid(EVEN, fps=None, start=0.01, end=0.03)
    np.testing.assert_array_equal(frame_grid(EVEN, fps=100, start=0.01, end=0.03), [0, 0])  # frame 0 is being shown
    with pytest.raises(ValueError, match="timestamps of shape"):
        frame_grid(np.zeros(0), fps=None)
    for fps in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fps is"):
            frame_grid(EVEN, fps=fps)
    with pytest.raises(ValueError, match="start is nan"):
        frame_grid(EVEN, fps=None, start=float("nan"))


# ---------------------------------------------------------------------------------------------------------------- dense


def test_dense_starts_are_even_from_end_to_end() -> None:
    for length in range(1, 40):
        for span in range(1, 40):
            room = max(length - span, 0)
            assert dense_starts(length, span=span, num_clips=1).tolist() == [room // 2]
            for clips in range(2, 8):
                starts = dense_starts(length, span=span, num_clips=clips)
                assert starts.dtype == np.int64 and len(starts) == clips
                assert starts[0] == 0 and starts[-1] == room
                exact = np.arange(clips) * room / (clips - 1)
                assert (np.abs(starts - exact) <= 0.5).all()
                assert (starts + starts[::-1] - room <= 1).all() and (starts + starts[::-1] - room >= 0).all()


def test_dense_clip_has_an_exact_stride_and_repeats_the_last_frame() -> None:
    assert dense_clip(300, frames=16, stride=4, start=100).tolist() == list(range(100, 164, 4))
    assert dense_clip(10, frames=5, stride=4, start=0).tolist() == [0, 4, 8, 9, 9]
    assert dense_clip(1, frames=3, stride=2, start=0).tolist() == [0, 0, 0]
    for length in range(1, 30):
        for frames in range(1, 8):
            for stride in range(1, 6):
                for start in (0, length // 2, length - 1):
                    clip = dense_clip(length, frames=frames, stride=stride, start=start)
                    assert clip.tolist() == [min(start + stride * k, length - 1) for k in range(frames)]


def test_dense_training_clips_cover_everything_equally() -> None:
    protocol = Protocol(frames=3, stride=2)
    rng = np.random.default_rng(0)
    counts = np.zeros(6, int)
    for _ in range(3000):
        clip = sample_train(np.arange(10), protocol, rng=rng)
        assert (np.diff(clip) == 2).all()
        counts[clip[0]] += 1
    assert (np.abs(counts - 500) < 100).all()  # starts 0 to 5, each once in six
    assert sample_train(np.arange(10), protocol, rng=None).tolist() == [2, 4, 6]
    assert sample_train(np.arange(3), protocol, rng=rng).tolist() == [0, 2, 2]


def test_dense_views() -> None:
    protocol = Protocol(frames=4, stride=3)
    views = sample_views(np.arange(100, 130), protocol, num_clips=3)
    assert views.dtype == np.int64
    assert views.tolist() == [[100, 103, 106, 109], [110, 113, 116, 119], [120, 123, 126, 129]]
    assert sample_views(np.arange(10), protocol, num_clips=4).tolist() == [[0, 3, 6, 9]] * 4
    assert sample_views(np.arange(2), protocol, num_clips=1).tolist() == [[0, 1, 1, 1]]
    for length in range(1, 60):
        for clips in (1, 2, 4, 10):
            views = sample_views(np.arange(length), protocol, num_clips=clips)
            assert views.shape == (clips, 4) and (clips == 1 or views.min() == 0)
            assert views.max() < length
            if length >= 10:
                assert (np.diff(views, axis=1) == 3).all()
                if clips > 1:
                    assert views[-1, -1] == length - 1


# -------------------------------------------------------------------------------------------------------------- segment


def test_segment_middles_are_those_of_tsm() -> None:
    for length in range(1, 80):
        for frames in (1, 2, 3, 8, 16, 32):
            clip = segment_clip(length, frames=frames)
            tick = length / frames
            assert clip.tolist() == [int(tick / 2 + tick * k) for k in range(frames)]


def test_segment_positions_stay_in_their_parts() -> None:
    rng = np.random.default_rng(0)
    for length in range(1, 60):
        for frames in (1, 3, 8, 16):
            for _ in range(5):
                clip = segment_clip(length, frames=frames, rng=rng)
                assert clip.dtype == np.int64 and len(clip) == frames
                assert clip.min() >= 0 and clip.max() <= length - 1 and (np.diff(clip) >= 0).all()
                for k, position in enumerate(clip):  # the frame [p, p + 1) touches the part
                    assert position < (k + 1) * length / frames and position + 1 > k * length / frames
                if length >= frames:
                    assert len(set(clip.tolist())) > frames // 2 - 1


def test_segment_training_draws_every_frame_equally() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(10, int)
    for _ in range(4000):
        counts[segment_clip(10, frames=4, rng=rng)] += 1
    # Parts of 2.5 frames: each frame is drawn 4 times in 10, but one that two parts share counts once if both draw it.
    assert (counts > 1250).all() and (counts < 1800).all()


def test_segment_shift_at_its_limits() -> None:
    assert segment_clip(8, frames=4, shift=0.0).tolist() == [0, 2, 4, 6]
    assert segment_clip(8, frames=4, shift=0.999999).tolist() == [1, 3, 5, 7]
    assert segment_clip(3, frames=3, shift=float(np.nextafter(1, 0))).max() == 2
    for shift in (1.0, -0.1):
        with pytest.raises(ValueError, match="shift is"):
            segment_clip(8, frames=4, shift=shift)


def test_segment_views_take_different_places() -> None:
    protocol = Protocol(frames=4, sampling="segment")
    grid = np.arange(40) * 2
    np.testing.assert_array_equal(sample_views(grid, protocol, num_clips=1)[0], grid[segment_clip(40, frames=4)])
    assert (sample_views(grid, protocol, num_clips=2) // 2).tolist() == [[0, 10, 20, 30], [5, 15, 25, 35]]  # TSM's
    assert (sample_views(grid, protocol, num_clips=3) // 2)[:, 0].tolist() == [1, 5, 8]
    views = sample_views(grid, protocol, num_clips=10)
    assert len(set(views.ravel().tolist())) == 40  # ten places in four parts of ten frames: each frame once
    np.testing.assert_array_equal(sample_train(grid, protocol, rng=None), grid[segment_clip(40, frames=4)])
    assert sample_views(np.array([5]), protocol, num_clips=3).tolist() == [[5] * 4] * 3


def test_same_seed_same_clip() -> None:
    for sampling in ("dense", "segment"):
        protocol = Protocol(frames=8, stride=2, sampling=sampling)
        clips = [sample_train(np.arange(200), protocol, rng=np.random.default_rng(5)) for _ in range(2)]
        np.testing.assert_array_equal(*clips)
        other = sample_train(np.arange(200), protocol, rng=np.random.default_rng(6))
        assert not np.array_equal(clips[0], other)


def test_nonsense_is_refused() -> None:
    for call in (
        lambda: dense_starts(0, span=1, num_clips=1),
        lambda: dense_starts(5, span=0, num_clips=1),
        lambda: dense_starts(5, span=1, num_clips=0),
        lambda: dense_clip(5, frames=0, stride=1, start=0),
        lambda: dense_clip(5, frames=1, stride=0, start=0),
        lambda: segment_clip(0, frames=1),
        lambda: sample_views(np.arange(5), Protocol(), num_clips=0),
    ):
        with pytest.raises(ValueError, match="at least 1 is needed"):
            call()
    with pytest.raises(ValueError, match="before the video"):
        dense_clip(5, frames=1, stride=1, start=-1)


# --------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("rate", [25, 29.97, 240, 1000])
@pytest.mark.parametrize("fps", [None, 12.5, 30.0])
def test_a_window_of_a_stream_holds_the_frames_that_the_file_gives(rate: float, fps: float | None) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        times = np.round(np.cumsum(rng.choice([0.2, 1.0, 3.0], 300) / rate), 3)
        times -= times[0]
        start = float(rng.choice(times[:200]) + rng.choice([0, 4e-4, -4e-4, 2e-3]))
        end = float(rng.choice(times[times > start + 0.05]) + rng.choice([0, 4e-4, -4e-4, 2e-3]))
        clock = LimitClock()
        reached = np.array([clock.reached(second) for second in times.tolist()])
        assert (np.diff(reached) >= 0).all() and (np.abs(reached - times) <= TOLERANCE + 1e-9).all()
        whole = window_grid(times, fps=fps, start=start, end=end)
        over = int(np.argmax(reached >= end)) + 1 if (reached >= end).any() else len(times)
        begin = max(int(np.searchsorted(times, start - 2 * TOLERANCE, side="right")) - 1, 0)
        part = window_grid(times[begin:over], fps=fps, start=start, end=end) + begin
        np.testing.assert_array_equal(part, whole)
        if fps is None:
            np.testing.assert_array_equal(whole, np.flatnonzero((reached >= start) & (reached < end)))


def test_a_frame_belongs_to_one_of_two_windows_that_meet() -> None:
    times = np.round(np.arange(300) / 29.97, 3)  # as Matroska has them
    for limit in np.arange(1, 90) / 29.97 * 3:
        before = window_grid(times, fps=None, start=0.0, end=limit)
        after = window_grid(times, fps=None, start=limit, end=100.0)
        np.testing.assert_array_equal(np.concatenate([before, after]), np.arange(300))
        assert len(before) == round(limit * 29.97)


# ------------------------------------------------------------------------------------------- several frames a segment


def test_rows_of_frames_begin_where_single_frames_would_and_fit_into_the_video() -> None:
    protocol = Protocol(frames=15, frames_per_segment=5, sampling="segment")
    grid = np.arange(100, 164)  # 60 places for the first frame of a row
    expected = [first + step for first in (110, 130, 150) for step in range(5)]
    assert sample_views(grid, protocol, num_clips=1).tolist() == [expected]
    assert sample_train(grid, protocol, rng=None).tolist() == expected
    for seed in range(50):
        rows = sample_train(grid, protocol, rng=np.random.default_rng(seed)).reshape(3, 5)
        assert (np.diff(rows) == 1).all() and rows[0, 0] >= 100 and rows[-1, -1] <= 163
        assert (rows[:, 0] // 20 * 20 == [100, 120, 140]).all()
    views = sample_views(grid, protocol, num_clips=2).reshape(2, 3, 5)
    assert views[:, :, 0].tolist() == [[100, 120, 140], [110, 130, 150]]


def test_rows_of_frames_in_dense_clips() -> None:
    protocol = Protocol(frames=15, frames_per_segment=5, stride=8)
    views = sample_views(np.arange(121), protocol, num_clips=2).reshape(2, 3, 5)
    assert views[:, :, 0].tolist() == [[0, 8, 16], [100, 108, 116]] and views[-1, -1, -1] == 120
    assert (np.diff(views, axis=2) == 1).all()


@pytest.mark.parametrize("sampling", ["segment", "dense"])
def test_rows_of_frames_in_short_videos_repeat_the_last_frame(sampling: str) -> None:
    protocol = Protocol(frames=15, frames_per_segment=5, stride=2, sampling=sampling)  # type: ignore[arg-type]
    for length in (1, 3, 6):
        found = sample_views(np.arange(length), protocol, num_clips=1)
        assert found.shape == (1, 15) and found.min() >= 0 and found.max() == length - 1
