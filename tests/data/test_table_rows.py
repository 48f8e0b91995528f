"""Videos in rows of Parquet and Arrow files: in any order, in other processes, and with damage."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stvid.data.table_rows import TableRows
from stvid.errors import VideoError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

CONTENTS = [bytes([number]) * (50 + number) for number in range(10)]


@pytest.fixture
def rows(tmp_path: Path) -> TableRows:
    """Ten videos in two files, of which the first has groups of two rows."""
    parquet.write_table(pyarrow.table({"mp4": CONTENTS[:6]}), tmp_path / "a.parquet", row_group_size=2)
    made = pyarrow.table({"mp4": CONTENTS[6:]})
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made, max_chunksize=3)
    files = [str(tmp_path / name) for name in ("a.parquet", "b.arrow")]
    return TableRows.of(files, "mp4", [(0, n) for n in range(6)] + [(1, n) for n in range(4)])


def test_rows_are_read_in_any_order(rows: TableRows) -> None:
    order = [*range(10), *reversed(range(10)), *np.random.default_rng(3).permutation(10).tolist(), 4, 4, 5, 4]
    assert [rows.read(number) for number in order] == [(CONTENTS[number], None) for number in order]
    assert rows.subset(np.array([9, 0])).read(1) == (CONTENTS[0], None)


def test_many_files_are_not_open_at_once(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.parquet") for number in range(20)]
    for number, file in enumerate(files):
        parquet.write_table(pyarrow.table({"mp4": [bytes([number])]}), file)
    rows = TableRows.of(files, "mp4", [(number, 0) for number in range(20)])
    assert [rows.read(number)[0][0] for number in range(20)] == [*range(20)]
    assert len(rows._open.columns) == 8 and rows.read(0)[0] == b"\0"


def read(rows: TableRows, number: int) -> Any:
    return rows.read(number)[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_open_their_own(method: str, rows: TableRows) -> None:
    assert rows.read(1)[0] == CONTENTS[1]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert [pool.apply(read, (rows, number)) for number in (1, 0, 7)] == [CONTENTS[n] for n in (1, 0, 7)]
    copy = pickle.loads(pickle.dumps(rows))
    assert copy.read(2)[0] == CONTENTS[2] and copy._open is not rows._open


def test_damage_is_a_fault_of_the_video(rows: TableRows, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(VideoError, match=r"a\.parquet: row 9 "):
        TableRows.of([str(path)], "mp4", [(0, 9)]).read(0)
    parquet.write_table(pyarrow.table({"mp4": ["text"]}), path)
    with pytest.raises(VideoError, match="row 0 holds no bytes of a video"):
        TableRows.of([str(path)], "mp4", [(0, 0)]).read(0)
    path.write_bytes(b"PAR1")
    with pytest.raises(VideoError, match="row 0 cannot be read") as caught:
        TableRows.of([str(path)], "mp4", [(0, 0)]).read(0)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(VideoError, match="row 0 cannot be read"):
        TableRows.of([str(path)], "mp4", [(0, 0)]).read(0)
