"""ViewLayout: what protocols share is shared for every video, and nothing else is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stvid.data.dataset import EvalDataset
from stvid.data.layout import view_layout
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.sampling import sample_views
from stvid.errors import ConfigError
from stvid.protocol import Protocol

VIEWS = ("10x3", "4x3", "1x1", "5x1", "1x3", "2x10", "3x5")


@pytest.mark.parametrize("sampling", ["dense", "segment"])
def test_rows_are_the_clips_of_each_protocol_by_itself(sampling: str) -> None:
    protocol = Protocol(frames=4, stride=3, sampling=sampling)  # type: ignore[arg-type]
    layout = view_layout(VIEWS, sampling)
    for length in [*range(1, 40), 250, 251, 300]:
        grid = np.arange(length)
        clips = layout.indices(grid, protocol)
        for views in VIEWS:
            number, crops = (int(part) for part in views.split("x"))
            alone = sample_views(grid, protocol, num_clips=number)
            found = [layout.views[row][0] for row in layout.rows[views]]
            np.testing.assert_array_equal(clips[found], np.repeat(alone, crops, axis=0))


def test_what_is_shared() -> None:
    assert len(view_layout(["10x3", "4x3"], "dense").views) == 30  # 0, 1/3, 2/3, 1 are among 0, 1/9, ... 1
    assert view_layout(["10x3", "4x3"], "dense").rows["4x3"] == (0, 1, 2, 9, 10, 11, 18, 19, 20, 27, 28, 29)
    assert len(view_layout(["10x3", "1x1"], "dense").views) == 31  # a single clip is centred
    # The middle of an odd number of dense clips begins at half the room rounded up, a single one rounded down.
    assert len(view_layout(["5x1", "1x1"], "dense").views) == 6
    assert len(view_layout(["3x1", "1x1"], "segment").views) == 3
    assert len(view_layout(["1x3", "1x10"], "dense").views) == 12  # the centre is in both
    assert view_layout(["4x3", "4x3"], "dense") == view_layout(["4x3"], "dense")
    assert view_layout(["2x3"], "dense").rows["2x3"] == tuple(range(6))


def test_bad_views() -> None:
    with pytest.raises(ConfigError, match="spatial crops"):
        view_layout(["4x2"], "dense")
    with pytest.raises(ValueError, match="no protocol"):
        view_layout([], "dense")


@pytest.mark.parametrize(("width", "height", "frames"), [(96, 64, 30), (64, 96, 9), (64, 64, 20), (64, 64, 3)])
def test_pixels_of_a_union_are_those_of_each_protocol(
    make_video: Callable[..., Path], width: int, height: int, frames: int
) -> None:
    path = make_video("union.mp4", width=width, height=height, frames=frames)
    manifest = Manifest.from_entries([VideoEntry(str(path))])
    protocol = Protocol(frames=4, stride=2, short_side=40, crop=40)
    union = EvalDataset(manifest, protocol, views=VIEWS)
    sample = union[0]
    assert sample.clips is not None and sample.same is not None
    for views in VIEWS:
        alone = EvalDataset(manifest, protocol, views=views)[0]
        assert alone.clips is not None
        assert torch.equal(sample.clips[list(union.layout.rows[views])], alone.clips)
    for first, second in itertools.combinations(range(len(sample.clips)), 2):
        if sample.same[first] == sample.same[second]:
            assert torch.equal(sample.clips[first], sample.clips[second])
    # Equal are the crops of a square video that is scaled to the size of the crop, and the clips of a short one.
    main = sample.same[:30]
    clips = 10 if frames > 7 else 1
    if frames == 9:  # room for 3 places only
        clips = 3
    assert len(np.unique(main)) == clips * (1 if width == height else 3)
