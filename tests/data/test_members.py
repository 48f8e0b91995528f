from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stvid.data.members import Members
from stvid.errors import StvidError, VideoError
from stvid.video.remote import file_system


def members(root: Path, **changes: list[int]) -> Members:
    """Two videos of 3 and 4 bytes, in one file, without indices."""
    columns = {"shard": [0, 0], "begin": [0, 5], "data": [2, 7], "size": [3, 4], "scan": [0, 0], "scan_size": [0, 0]}
    arrays = {name: np.array(values) for name, values in (columns | changes).items()}
    return Members(root=str(root), files=("shard.tar",), **arrays)


def test_a_video_is_read_from_its_place(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(b"..abc..defg....")
    found = members(tmp_path)
    assert found.read(0) == (b"abc", None) and found.read(1) == (b"defg", None)
    assert found.subset(np.array([1])).read(0) == (b"defg", None)
    assert members(tmp_path, scan=[0, 5], scan_size=[2, 2]).read(1) == (b"defg", None)  # a damaged index is of no use


def test_a_shard_that_is_gone_or_cut_is_a_fault_of_the_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="No such file"):
        members(tmp_path).read(0)
    (tmp_path / "shard.tar").write_bytes(b"..abc..de")
    with pytest.raises(VideoError, match="gave 2 bytes when 4 from byte 7 on were asked for"):
        members(tmp_path).read(1)


def test_an_unknown_kind_of_url_is_one_line() -> None:
    with pytest.raises(StvidError, match="nosuch://x: ") as caught:
        file_system("nosuch://x")
    assert "\n" not in str(caught.value)
