"""How results look in a notebook: small HTML, made of the template files in ``stvid/templates``.

Jupyter asks an object for its ``_repr_html_``. Every value is escaped, since names of classes and files may hold HTML.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from stvid.console import printable

__all__ = ["picture_address", "render_html"]


def render_html(template: str, **values: Any) -> str:
    """Fills in a template.

    Args:
        template: Name of a file in ``stvid/templates``.
        values: The names that the template uses.

    Returns:
        The text, in which all values are escaped.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("stvid", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def picture_address(pixels: np.ndarray, *, short_side: int = 96) -> str:
    """Returns a picture as a ``data:`` address, which needs no file.

    Args:
        pixels: uint8 (H, W, 3), RGB.
        short_side: A larger picture is made smaller, to this short side.
    """
    picture = Image.fromarray(pixels)
    scale = short_side / min(picture.size)
    if scale < 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
