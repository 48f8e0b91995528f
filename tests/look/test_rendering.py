"""Templates: what is filled in is escaped, and what is missing is an error."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from stvid.look import rendering
from stvid.look.rendering import render

FOLDER = Path(rendering.__file__).parent / "templates"


def test_values_are_escaped() -> None:
    evil = "<script>alert('x')</script> & \"quoted\""
    text = render("demo_message.html.j2", text=evil, error=False)
    assert evil not in text and "<script" not in text and "&lt;script&gt;" in text and "&amp;" in text


def test_a_file_name_that_is_not_text_can_be_written() -> None:
    text = render("demo_message.html.j2", text="bad \udcff.mp4", error=True)
    assert "bad \ufffd.mp4" in text
    text.encode()


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="error"):
        render("demo_message.html.j2", text="x")
    with pytest.raises(jinja2.TemplateNotFound, match="no_such"):
        render("no_such.html.j2")


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_template_can_be_read_and_needs_no_other_file(path: Path) -> None:
    rendering._environment().get_template(path.name)
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not any(word in text for word in ("http", "<script", "@import", "url(", "<link"))
