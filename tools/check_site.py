"""Checks the built documentation in a browser: nothing too wide, links that lead somewhere, a search that finds.

    make docs && python tools/check_site.py site

Every page is opened in headless Chromium in frames of 1280 and 400 pixels, since a window cannot be that narrow. A page
is too wide if it could be scrolled sideways. Then a word is typed into the search. `--chromium` names the program if it
is not found.
"""

from __future__ import annotations

import argparse
import functools
import html.parser
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

WIDTHS = (1280, 400)
WORD = "protocol"
RESULT = "stvid-result:"
HARNESS = Path(__file__).resolve().parent / "templates" / "check_site.html"


class _Page(html.parser.HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.update(value for name in ("id", "name") if (value := values.get(name)))
        found = values.get("href") or values.get("src")
        if found and tag in ("a", "img", "link", "script", "iframe"):
            self.links.append(found)


def pages_of(site: Path) -> dict[str, _Page]:
    """Returns the pages of a site by their paths."""
    found = {}
    for path in sorted(site.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
        found[path.relative_to(site).as_posix()] = page
    return found


def broken_links(site: Path) -> Iterator[str]:
    """Yields a line for each link within a site that leads nowhere: no such file, or no such heading."""
    pages = pages_of(site)
    for name, page in pages.items():
        if name == "404.html":  # its links begin with the address that the site will have
            continue
        for link in dict.fromkeys(page.links):
            place, anchor = urldefrag(urljoin(f"http://site/{name}", link))
            if not place.startswith("http://site/"):
                continue
            target = unquote(place.removeprefix("http://site/").partition("?")[0])
            target = f"{target}index.html" if not target or target.endswith("/") else target
            if not (site / target).is_file():
                yield f"{name}: {link}: there is no {target}"
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                yield f"{name}: {link}: {target} has no place #{unquote(anchor)}"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def in_browser(site: Path, chromium: str, *, pages: Sequence[str], timeout: int = 300) -> list[str]:
    """Opens pages in Chromium, and returns a line for each that is too wide, and one if the search finds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        served = Path(folder) / "site"
        shutil.copytree(site, served)
        text = HARNESS.read_text(encoding="utf-8")
        asked = json.dumps({"pages": list(pages), "widths": WIDTHS, "word": WORD, "result": RESULT})
        (served / "check_site.html").write_text(text.replace("{{ asked }}", asked), encoding="utf-8")
        handler = functools.partial(_Quiet, directory=str(served))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/check_site.html"
            options = [
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}/profile",
            ]
            command = [chromium, *options, "--enable-logging=stderr", "--v=0", address]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            watchdog = threading.Timer(timeout, process.kill)
            watchdog.start()
            try:
                for line in process.stderr:  # what the page writes to its console
                    if RESULT in line:
                        answer, _ = json.JSONDecoder().raw_decode(line.partition(RESULT)[2])
                        return [str(problem) for problem in answer]
            finally:
                watchdog.cancel()
                process.kill()
                process.wait()
                process.stderr.close()
                server.shutdown()
    return [f"Chromium gave no answer within {timeout} s"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=Path, help="Folder that mkdocs built.")
    parser.add_argument("--chromium", help="Program; default chromium, chromium-browser or google-chrome.")
    options = parser.parse_args(argv)
    names = [options.chromium] if options.chromium else ["chromium", "chromium-browser", "google-chrome"]
    program = next((found for name in names if (found := shutil.which(name))), None)
    if not (options.site / "index.html").is_file():
        parser.error(f"{options.site}: holds no index.html; build it with: make docs")
    if program is None:
        parser.error(f"{' or '.join(names)}: not found; name it with --chromium")
    pages = [name for name in pages_of(options.site) if name != "404.html"]
    problems = [*broken_links(options.site), *in_browser(options.site, program, pages=pages)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(pages)} pages at {' and '.join(map(str, WIDTHS))} pixels: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
