"""The cost of a million videos: what is counted, and that the tool runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvid.video.reader import scan


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], Any]) -> Any:
    return load_tool("benchmark_scale")


def test_a_stage_is_counted_for_one_video(tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    counts, done = [0, 0], []

    def work(number: int) -> None:
        done.append(number)
        counts[0] += 2
        counts[1] += 1000
        sum(range(10**5))

    stage = tool.measure(work, 4, counts)
    assert done == [0, 0, 1, 2, 3] and (stage.requests, stage.fetched) == (2, 1000) and stage.seconds > 0
    tool.print_stages({"clip": tool.Stage(seconds=0.036, requests=6, fetched=500_000)})
    assert capsys.readouterr().out.splitlines()[1].split() == ["clip", "27.8", "10", "6.0", "M", "0.50"]


def test_a_long_list_is_read_by_a_process_of_its_own(tool: Any, tmp_path: Path) -> None:
    size, held, most, seconds = tool.list_cost(tmp_path, 2000)
    assert size == (tmp_path / "long.csv").stat().st_size and seconds > 0 and most >= held >= 0


def test_what_is_stored_of_a_video(tool: Any, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    short, long = (scan(make_video(f"{frames}.mp4", frames=frames)) for frames in (10, 90))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert 0 < tool.index_bytes(tmp_path / "a", short, 20) < tool.index_bytes(tmp_path / "b", long, 20)
    assert tool.pairs_a_second(50) > 0
