"""The check of the site finds what it is there for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.check_site import broken_links, in_browser, main, pages_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HEAD = '<!doctype html><meta name="viewport" content="width=device-width"><body style="margin:0">'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "how to").mkdir()
    pages = {
        "index.html": '<h1 id="top">x</h1><a href="how%20to/#part">a</a><a href="https://else.where/x">b</a>',
        "how to/index.html": '<a name="part"></a><a href="..">up</a><a href="#part">here</a><img src="../a.png">',
        "404.html": '<a href="/version/x/">not looked at</a>',
    }
    for name, text in pages.items():
        (tmp_path / name).write_text(HEAD + text)
    (tmp_path / "a.png").touch()
    return tmp_path


def test_links(site: Path) -> None:
    assert [*pages_of(site)] == ["404.html", "how to/index.html", "index.html"] and [*broken_links(site)] == []
    (site / "a.png").unlink()
    with (site / "index.html").open("a") as page:
        page.write('<a href="gone/">c</a><a href="how%20to/#other">d</a>')
    assert [*broken_links(site)] == [
        "how to/index.html: ../a.png: there is no a.png",
        "index.html: gone/: there is no gone/index.html",
        "index.html: how%20to/#other: how to/index.html has no place #other",
    ]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_width_and_search(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert CHROMIUM is not None
    (site / "how to/index.html").write_text(f'{HEAD}<div class="wide" style="width:700px">x</div>')
    found = in_browser(site, CHROMIUM, pages=["index.html", "how to/index.html"], timeout=100)
    assert found == [
        "how to/index.html: 700 pixels wide in a window of 400 (div.wide)",
        "index.html: has no search",
    ]
    with (site / "index.html").open("a") as page:
        page.write('<input data-md-component="search-query" oninput="this.className = \'md-search-result__item\'">')
    assert in_browser(site, CHROMIUM, pages=["index.html"], timeout=100) == []
    assert main([str(site)]) == 1
    assert "700 pixels wide" in capsys.readouterr().err


def test_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([str(tmp_path)], "holds no index.html"),
        ([str(tmp_path), "--chromium", "none"], "holds"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().err
