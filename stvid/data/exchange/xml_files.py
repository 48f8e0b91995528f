"""XML of other programs, read without what makes XML dangerous."""

from __future__ import annotations

from xml.etree import ElementTree

from stvid.errors import ManifestError

__all__ = ["parse_xml"]


def parse_xml(text: str, path: str) -> ElementTree.Element:
    """Returns the root of an XML text.

    A text that declares entities is refused: none of the programs whose files are read writes any, and they can grow
    without end.

    Raises:
        ManifestError: If it is not XML, or declares entities; the message begins with `path`.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ManifestError(f"{path}: declares a document type, which no export has; it is not read")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ManifestError(f"{path}: is not XML ({error})") from error
