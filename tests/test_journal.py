import json
from pathlib import Path

import pytest

from stvid.errors import ConfigError, StvidError
from stvid.journal import Journal

HEADER = {"job": {"title": "count", "options": [1, 2]}}


def open_journal(path: Path, header: dict = HEADER) -> tuple[Journal, list[dict]]:
    found: list[dict] = []
    return Journal(path, header, what="the journal of this test", each=found.append), found


def read(path: Path) -> list[dict]:
    journal, found = open_journal(path)
    with journal:
        return found


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "journal.jsonl"
    opened, found = open_journal(path)
    with opened:
        for number in range(3):
            opened.add({"number": number, "share": 0.1 * number, "name": "caf\udce9"})
    assert found == []
    return path


def test_a_journal_gives_back_what_was_added_and_goes_on(journal: Path) -> None:
    opened, found = open_journal(journal)
    with opened:
        assert found == [{"number": n, "share": 0.1 * n, "name": "caf\udce9"} for n in range(3)]
        opened.add({"number": 3})
        assert read(journal)[-1] == {"number": 3}  # before it is closed
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert lines[0] == HEADER and [line["number"] for line in lines[1:]] == [0, 1, 2, 3]


def test_every_cut_leaves_the_records_that_are_whole(journal: Path) -> None:
    content = journal.read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content)):
        journal.write_bytes(content[:cut])
        whole = max(sum(end <= cut for end in ends) - 1, 0)
        assert [record["number"] for record in read(journal)] == list(range(whole))
        assert journal.read_bytes() == content[: ends[whole]]


def test_a_damaged_record_and_what_follows_does_not_count(journal: Path) -> None:
    content = journal.read_bytes()
    journal.write_bytes(content.replace(b'"number": 1', b'"number": 7'))
    opened, found = open_journal(journal)
    with opened:
        assert [record["number"] for record in found] == [0]
        opened.add({"number": 9})
    assert [record["number"] for record in read(journal)] == [0, 9]


def test_another_journal_and_another_file_are_refused_and_left_alone(journal: Path) -> None:
    content = journal.read_bytes()
    with pytest.raises(ConfigError, match=r"belongs to a run with other options .*count.*delete it to start again"):
        open_journal(journal, {"job": {"title": "count", "options": [1, 3]}})
    assert journal.read_bytes() == content
    for other in (b"something else\n", b"something", content[5:], b"[1]\n"):
        journal.write_bytes(other)
        with pytest.raises(StvidError, match="is not the journal of this test; delete it or move it away"):
            open_journal(journal)
        assert journal.read_bytes() == other


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StvidError, match="cannot keep the progress"):
        open_journal(tmp_path / "file" / "journal.jsonl")


def test_a_record_of_other_types_is_taken_for_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    fields = {"key": str, "stamp": list}
    good = {"key": "a", "stamp": [1], "more": None}
    for odd in ({}, {"key": 1, "stamp": []}, {"key": "b"}, {"key": "b", "stamp": {}}, {"key": None, "stamp": None}):
        path.unlink(missing_ok=True)
        with open_journal(path)[0] as opened:
            for record in (good, odd, good):
                opened.add(record)
        found: list[dict] = []
        with Journal(path, HEADER, what="the journal of this test", each=found.append, fields=fields):
            assert found == [good]
        assert path.read_bytes().count(b"\n") == 2  # what follows is done again


@pytest.mark.parametrize("line", [b"[" * 99_999, b"\xff\xfe", b"null", b'{"a": ' * 99_999, b"1" * 9999, b'{"a": NaN}'])
def test_any_line_is_a_record_or_damaged(journal: Path, line: bytes) -> None:
    content = journal.read_bytes()
    rest = content.split(b"\n", 1)[1]
    journal.write_bytes(content + line + b"\n")
    assert [record["number"] for record in read(journal)] == [0, 1, 2]
    journal.write_bytes(line + b"\n" + rest)
    with pytest.raises(StvidError, match="delete it"):
        open_journal(journal)
