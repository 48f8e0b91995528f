"""Pages and pictures of text (HTML, SVG) are made from the template files in ``stvid/look/templates``.

Python prepares plain data, the templates say how it looks. Every value is escaped, and a name that a template uses but
does not get is an error, so that a page is either whole or not written at all.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stvid.console import printable

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """Fills in a template.

    Args:
        template: Name of a file in ``stvid/look/templates``.
        values: The names that the template uses.

    Returns:
        The text, in which all values are escaped.

    Raises:
        jinja2.TemplateNotFound: If there is no such template.
        jinja2.UndefinedError: If the template uses a name that is not given.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stvid.look", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["pixels"] = "{:.1f}".format
    environment.filters["words"] = _words
    return environment


def _printable(value: object) -> object:
    """Replaces the bytes of a name that are not text, and shows control characters, which XML does not allow."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value.encode(errors="surrogateescape").decode(errors="replace"), keep="\n\r\t")
    return value


def _percent(value: float | None, digits: int = 2) -> str:
    """Returns a fraction as a percentage; nothing for None."""
    return "" if value is None else f"{100 * value:.{digits}f}%"


def _words(name: str) -> str:
    """Returns the name of a metric as words, so that a heading can be broken into lines."""
    return name.replace("_", " ")
