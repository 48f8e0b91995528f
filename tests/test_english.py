"""Docstrings are full sentences, and lines fit where ruff does not look.

A docstring that begins with "What " or "Of ", or that says "likewise", makes the reader look elsewhere for the subject.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ("stvid", "tools", "data_prep")
LINE_LENGTH = 120
# ruff checks Python (E501); rows of tables in markdown cannot be broken, and JSON is data.
UNCHECKED_SUFFIXES = {".py", ".pyc", ".md", ".json", ".csv"}

RIDDLES = {
    "begins with 'What' or 'Of'": re.compile(r"\A\s*(What|Of)\s"),
    "describes an entry by 'Of' alone": re.compile(r"^\s*\*{0,2}\w+: Of\s", flags=re.M),
    "says 'likewise'": re.compile(r"\blikewise\b", flags=re.I),
}


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of each docstring of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def riddles(source: str) -> list[str]:
    """Returns a line for each docstring that is hard to read, with its place and the reason."""
    return [
        f"line {line}: {reason}: {text.splitlines()[0]}"
        for line, text in docstrings(source)
        for reason, pattern in RIDDLES.items()
        if pattern.search(text)
    ]


def test_docstrings_are_sentences() -> None:
    files = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = {path.relative_to(ROOT).as_posix(): riddles(path.read_text(encoding="utf-8")) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("docstring", "words"),
    [
        ("What `f` did.", "begins with"),
        ("Of the draws.", "begins with"),
        ("The width.\n\n    Args:\n        stride: Of the convolution.\n    ", "describes an entry"),
        ("The height. Likewise.", "likewise"),
        ("The keys, likewise with M for N.", "likewise"),
        ("The size in pixels, likewise.", "likewise"),
        ("Tells what `f` did, of which nothing is left.", None),
        ("Whatever was drawn.", None),
    ],
)
def test_riddles_are_found(docstring: str, words: str | None) -> None:
    for source in (
        f'"""{docstring}"""\n',
        f'class C:\n    """{docstring}"""\n',
        f'class C:\n    async def f():\n        """{docstring}"""\n',
    ):
        found = riddles(source)
        assert len(found) == (0 if words is None else 1)
        assert words is None or words in found[0]


def long_lines(root: Path) -> list[str]:
    """Returns the places of lines that are too long in files that ruff does not check."""
    found = []
    for folder in (*CODE, "tests"):
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if not path.is_file() or path.suffix in UNCHECKED_SUFFIXES or path.parent.name == "classes":
                continue
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{name}, line {number}" for number, line in enumerate(lines, 1) if len(line) > LINE_LENGTH]
    return found


def test_lines_fit() -> None:
    assert long_lines(ROOT) == []
    assert f"line-length = {LINE_LENGTH}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_long_line_is_found(tmp_path: Path) -> None:
    for name, width in {"a.html.j2": 121, "b.css": 120, "c.py": 200, "d.md": 200}.items():
        (tmp_path / "stvid").mkdir(exist_ok=True)
        (tmp_path / "stvid" / name).write_text("short\n" + width * "x" + "\n")
    assert long_lines(tmp_path) == ["stvid/a.html.j2, line 2"]
