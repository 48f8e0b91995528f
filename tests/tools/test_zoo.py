"""The generator of the table of models, and the table that it left in README.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stvid
from stvid.models.registry import model_info

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def zoo(load_tool: Callable[[str], Any]) -> Any:
    return load_tool("zoo")


def test_readme_lists_every_model_with_what_the_registry_says(zoo: Any) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.partition(zoo.BEGIN)[2].partition(zoo.END)[0].splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert list(rows) == stvid.list_models()
    for name, row in rows.items():
        info = model_info(name)
        assert zoo.source_link(info.paper) in row
        assert all(layout in row for layout in info.formats)
        assert f"{info.protocol.frames} x {info.protocol.crop}²" in row


def test_a_row(zoo: Any) -> None:
    counted = zoo.count("uniformer_xxs")
    assert counted.params == pytest.approx(0.39, abs=0.01) and counted.gflops == pytest.approx(0.1, abs=0.05)
    row = zoo.make_row(model_info("r2plus1d_34"), zoo.Counted(63.697, 152.356), 2)
    assert row == (
        "| `r2plus1d_34` | 63.70 | 152.4 | 32 x 112² | 63.7, 152 [2] | "
        "[Tran et al. 2018](https://arxiv.org/abs/1711.11248) | VMZ, VMZ Caffe2, mmaction2 | "
        f"{zoo.published_weights('r2plus1d_34')} |"
    )
    assert "| –, – | this project | stvid | – |" in zoo.make_row(model_info("uniformer_xxs"), counted, None)


def test_weights_are_shown_with_their_accuracy_and_its_views(zoo: Any) -> None:
    assert zoo.published_weights("uniformer_s").startswith("`k400_16x4` 80.8 (4x1), ")
    assert zoo.published_weights("uniformer_xxs") == "–"


def test_the_file_is_checked_and_written(
    zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "make_table", lambda: "| a table |")
    readme = tmp_path / "README.md"
    readme.write_text("before\n")
    assert zoo.main(["--readme", str(readme)]) == 2 and "zoo:begin" in capsys.readouterr().err
    readme.write_text(f"before\n{zoo.BEGIN}\nold\n{zoo.END}\nafter\n")
    assert zoo.main(["--check", "--readme", str(readme)]) == 1 and "stale" in capsys.readouterr().err
    assert "old" in readme.read_text()
    assert zoo.main(["--readme", str(readme)]) == 0
    assert readme.read_text() == f"before\n{zoo.BEGIN}\n| a table |\n{zoo.END}\nafter\n"
    assert zoo.main(["--check", "--readme", str(readme)]) == 0
