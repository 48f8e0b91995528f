"""The notebooks of the documentation: stripped, of public names only, and run as they are."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import stvid
from stvid.evaluation.result import EvaluationResult

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


def outputs(notebook: Path, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Runs a notebook in a folder, and returns what it printed and what it showed."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    content = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(content, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    found = [output for cell in content.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in found if output.get("name") == "stdout")
    return printed, [output["data"] for output in found if "data" in output]


def test_predict_and_explain_runs(tmp_path: Path) -> None:
    printed, shown = outputs(FOLDER / "predict_and_explain.ipynb", tmp_path)
    answers = re.findall(r"held_out/(\w+)/\d\.mp4: (\w+), with a probability of", printed)
    assert len(answers) == 4 and all(label == answer for label, answer in answers)
    assert "8 frames of 64 x 64" in shown[0]["text/html"]
    (picture,) = [data["image/png"] for data in shown if "image/png" in data]
    strip = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert strip.width > 8 * 96 and strip.height > 2 * 96
    assert sorted(path.suffix for path in (tmp_path / "explained").iterdir()) == [".mp4", ".png"]


def test_evaluate_a_protocol_runs(tmp_path: Path) -> None:
    """The network must look at motion, as the text says: right, and by chance or wrong in other orders of frames."""
    printed, shown = outputs(FOLDER / "evaluate_a_protocol.ipynb", tmp_path)
    result = EvaluationResult.load(tmp_path / "test")
    assert result.metrics["top1@2x1"] > 0.9 and result.metrics["top1@1x1"] > 0.9
    orders = {order: record["metrics"]["top1@2x1"] for order, record in result.probe.items()}
    assert orders["reversed"] < 0.1 and 0.25 < orders["frozen"] < 0.75 and 0.25 < orders["shuffled"] < 0.75
    (table,) = [data["text/html"] for data in shown if "text/html" in data]
    assert "top1, 2x1 views, frames reversed" in table and "<th>95% interval</th>" in table
    assert re.search(r"\d+ of 24 videos lost, p = 0\.0\d+", printed)
