"""The benchmark of remote clips: the bounds that it prints, and its server."""

from __future__ import annotations

import itertools
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stvid.video.reader import scan
from stvid.video.several_ranges import parts_of


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], Any]) -> Any:
    return load_tool("benchmark_remote")


def test_no_reader_goes_below_the_bounds(tool: Any, make_video: Callable[..., Path]) -> None:
    path = make_video(frames=60, audio=True, gop=30)
    index = scan(path)
    packets = index.packets
    assert packets is not None
    bounds = tool.bounds_of(index, np.arange(32, 60, 4), path.stat().st_size)
    start = int(np.flatnonzero(packets.start)[1])
    wanted = set(packets.of_frame[np.arange(32, 60, 4)].tolist())
    sent = [number for number in range(start, max(wanted) + 1) if number in wanted or not packets.skippable[number]]
    assert bounds.in_turn == packets.size[start : max(wanted) + 1].sum() > bounds.needed
    assert bounds.needed == packets.size[sent].sum() and bounds.file == path.stat().st_size
    begins = packets.position[sent]
    ends = begins + packets.size[sent]
    gaps = begins[1:] - ends[:-1]
    least = min(
        int(ends[-1] - begins[0]) - sum(int(gaps[at]) for at in open_gaps)
        for open_gaps in itertools.combinations(range(len(gaps)), 5)
    )
    assert bounds.needed <= bounds.six_ranges == least


@pytest.mark.slow
def test_the_server_sends_several_ranges(tool: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4
    (tmp_path / "a").write_bytes(content)
    with tool.serving(str(tmp_path), several=True, rate=1e9, latency=0.0) as (address, counts):
        request = urllib.request.Request(f"{address}/a", headers={"Range": "bytes=0-3,500-509"})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 206
            body = answer.read()
            assert parts_of(answer.headers, body) == [(0, content[:4]), (500, content[500:510])]
        assert list(counts) == [1, len(body)]
