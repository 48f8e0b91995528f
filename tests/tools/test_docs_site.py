"""The pages of the documentation that are generated, and the site."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stvid
from stvid.cli import COMMANDS
from stvid.config import config_keys, list_configs
from tools import docs_site

ROOT = Path(__file__).parent.parent.parent


def test_every_public_name_is_in_the_reference() -> None:
    shown = re.findall(r"^::: stvid\.[\w.]+\.(\w+)$", docs_site.python_page(), flags=re.M)
    assert sorted(shown) == sorted(set(stvid.__all__) - {"__version__"})


def test_a_public_name_without_a_place_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_site, "GROUPS", {"Models": ("create_model",)})
    with pytest.raises(ValueError, match="Clip, "):
        docs_site.python_page()


def test_every_key_of_a_config_has_type_default_and_meaning() -> None:
    rows = [row.strip("|").split(" | ") for row in docs_site.config_page().splitlines() if row.startswith("| `")]
    keys = [row[0].strip(" `") for row in rows]
    assert sorted(keys) == sorted(config_keys())
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)
    told = dict(zip(keys, rows, strict=True))
    assert told["optim.name"][1:3] == ["`adamw` or `sgd` or `rmsprop`", '`"adamw"`']
    assert "`run|jump`" in docs_site.config_page() and r"\|" not in told["task"][3]  # a bar in code is a bar
    assert told["data.workers"][1:3] == ["`int` or null", "`null`"]


def test_every_command_shows_its_help() -> None:
    page = docs_site.commands_page()
    for name in COMMANDS:
        assert name == "prep" or f"usage: stvid {name} " in page
    assert "usage: stvid prep transcode " in page


def test_recipes_and_models_are_shown() -> None:
    page = docs_site.recipes_page()
    assert all(f"## `{name}`" in page for name in list_configs())
    assert "`uniformer_s`" in docs_site.models_page()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (stvid[docs])")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in page or f".{name}" in page for name in stvid.__all__ if name != "__version__")
