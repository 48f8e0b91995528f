from __future__ import annotations

from pathlib import Path

import pytest

from stvid.data.text_files import parse_json, parse_table, read_lines, read_text
from stvid.errors import ManifestError


def test_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \r\n")
    assert read_lines(tmp_path / "a.txt") == [(1, "one"), (3, "two")]
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "e.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    (tmp_path / "f.txt").write_text("\n<html lang=en><head><title>Sign in</title></head></html>\n")
    cases = (
        *(("b.txt", "is not UTF-8 text"), ("c.txt", "is empty"), ("d.txt", "cannot be read")),
        *(("e.txt", "is a pointer of git-lfs"), ("f.txt", "is a page of the web")),
    )
    for name, message in cases:
        with pytest.raises(ManifestError, match=f"{name}: {message}"):
            read_text(tmp_path / name)


def test_tables_and_json_say_which_line_is_wrong() -> None:
    assert parse_table('a,b\n\n"x\ny",2\nz,3\n', "l.csv") == [(1, ["a", "b"]), (3, ["x\ny", "2"]), (5, ["z", "3"])]
    with pytest.raises(ManifestError, match=r"l\.csv, line 2: is not CSV"):
        parse_table('a,b\n"x,2\n', "l.csv")
    assert parse_json("[1]", "l.json") == [1]
    with pytest.raises(ManifestError, match=r"l\.json, line 2: is not JSON"):
        parse_json("[\n]]", "l.json")


def test_half_of_a_letter_is_refused_but_bytes_of_names_are_kept() -> None:
    assert parse_json(r'["caf\udce9.mp4", "\ud83d\ude00"]', "l.json") == ["caf\udce9.mp4", "\U0001f600"]
    for half in (r"\ud83d", r"\uDFFF"):
        with pytest.raises(ManifestError, match=rf"l\.json: holds \{half.lower()}, which is half of a letter"):
            parse_json(f'{{"{half}": 1}}', "l.json")
