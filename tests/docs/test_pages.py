"""The pages of the documentation and README: their Python runs, their configs load, their links lead somewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import stvid
from stvid.config import load_config
from stvid.models.registry import weights_of

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OWN_TEST = {"add_a_model.md"}  # tests/docs/test_add_a_model.py joins its blocks to a file
GENERATED = {"python.md", "config.md", "commands.md", "models.md", "recipes.md"}  # tests/tools/test_docs_site.py
BLOCK = re.compile(r"(<!-- not run: [^>]*-->\n\n)?```(\w+)\n(.*?)```", flags=re.S)


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language, but those that say why they are not run."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for reason, name, text in found if name == language and not reason]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def marked(page: Path) -> Any:
    """A page that builds a published network takes a while."""
    heavy = any("pretrained=True" in block for block in blocks(page, "python"))
    return pytest.param(page, marks=pytest.mark.slow if heavy else (), id=name_of(page))


@pytest.fixture
def workshop(
    tmp_path: Path,
    make_video: Callable[..., Path],
    make_dataset: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder in which the files lie that the pages speak of; published weights are random numbers."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(make_video(frames=70), "some.mp4")
    files = sorted(make_dataset(tmp_path / "videos", classes=("jump", "run"), per_class=1).rglob("*.mp4"))
    Path("val.csv").write_text("path,label\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    rows = [f"{file},{file.parent.name},{number / 100},\n" for number, file in enumerate(files * 4)]
    Path("train.csv").write_text("path,label,start,end\n" + "".join(rows))
    trained = stvid.create_model("uniformer_xxs", num_classes=2)
    trained.default_protocol = trained.default_protocol.replace(class_names=("jump", "run"))
    stvid.save_model(trained, "runs/uniformer_xxs_folder/checkpoints/best.ckpt")

    def fetched(weights: Any) -> Path:
        path = Path("fetched.pyth")
        if not path.exists():
            torch.save({"model_state": stvid.create_model("uniformer_s").state_dict()}, path)
        return path

    monkeypatch.setattr(stvid.sources, "fetch_weights", fetched)
    return tmp_path


@pytest.mark.parametrize(
    "page", [marked(page) for page in PAGES if page.name not in OWN_TEST and blocks(page, "python")]
)
def test_the_python_of_a_page_runs(page: Path, workshop: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, name_of(page), "exec"), names)


CONFIGS = [
    pytest.param(block, id=f"{name_of(page)}-{number}")
    for page in PAGES
    if page.name not in OWN_TEST
    for number, block in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("block", CONFIGS)
def test_the_configs_of_a_page_are_accepted(block: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(block, encoding="utf-8")
    assert yaml.safe_load(block)
    load_config(path, [])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_to_files(page: Path) -> None:
    """Within the site mkdocs checks them, too, with the headings; README and CONTRIBUTING lie outside of it."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#", link)]
    missing = [link for link in targets if link and not (page.parent / link).exists()]
    assert [link for link in missing if Path(link).name not in GENERATED | {"changelog.md"}] == []


def test_readme_shows_the_accuracy_that_the_weights_have() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| `(\w+)\.(\w+)` \| ([\d.]+) \((\w+)\) \|$", (ROOT / "README.md").read_text(), flags=re.M
    )
    assert len(rows) > 10
    for name, tag, top1, views in rows:
        (weights,) = (known for known in weights_of(name) if known.tag == tag)
        assert (f"{weights.top1:.1f}", weights.views) == (top1, views), f"{name}.{tag}"


def test_readme_is_short() -> None:
    """The first screen is for newcomers; the tables that fold out do not count."""
    text = re.sub(r"<details>.*?</details>", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(text.split()) < 1000
