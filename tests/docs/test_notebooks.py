"""The notebooks of the documentation: stripped, of public names only, and run as they are."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import stvid

FOLDER = Path(__file__).parent.parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_they_are_there() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == ["evaluate_a_protocol", "predict_and_explain"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_names_are_public(notebook: Path) -> None:
    for cell in cells(notebook):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("stvid")
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "stvid":
                assert node.attr in stvid.__all__, node.attr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_valid(notebook: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(notebook, as_version=4))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(notebook: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(content, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in content.cells for output in cell.get("outputs", [])]
    assert any("text/html" in data for data in shown)
    assert any("image/png" in data for data in shown) == (notebook.stem == "predict_and_explain")
