from __future__ import annotations

import pytest

from stvid.data.exchange.xml_files import parse_xml
from stvid.errors import ManifestError

LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><l>&b;</l>'


def test_xml() -> None:
    assert parse_xml("<a><b c='1'/></a>", "x.xml").find("b").attrib == {"c": "1"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "declares a document type"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "declares a document type"),
        ("<a>&b;</a>", "is not XML"),
        ("<a><b></a>", "is not XML"),
        ("", "is not XML"),
        ("<a>\x00</a>", "is not XML"),
        ("<a>\ud800</a>", "is not XML"),
    ],
)
def test_other_texts_are_refused(text: str, words: str) -> None:
    with pytest.raises(ManifestError, match=f"^x.xml: {words}"):
        parse_xml(text, "x.xml")
