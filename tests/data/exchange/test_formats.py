"""Which format a file has is seen by its content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from stvid.config_sections import DataConfig
from stvid.data.exchange.formats import EXCHANGE, format_of
from stvid.data.manifest import FORMATS, read_manifest
from stvid.errors import ManifestError

CONTENTS: dict[str, tuple[Any, str | None]] = {
    "tasks": ([{"data": {"video": "a.mp4"}, "annotations": []}], "label-studio"),
    "one task": ({"data": {"video": "a.mp4"}}, "label-studio"),
    "records": ([{"video": "a.mp4", "id": 1, "annotation_id": 3}], "label-studio"),
    "via": ({"project": {}, "file": {}, "view": {}, "metadata": {}}, "via"),
    "via 2": ({"_via_img_metadata": {}}, "via"),
    "fiftyone": ({"classes": None, "labels": {}}, "fiftyone"),
    "samples": ({"samples": []}, "fiftyone"),
    "table": ([{"path": "a.mp4", "label": "x"}], "json"),
    "something": ([{"id": "1", "template": "Holding [something]", "placeholders": ["x"]}], None),
    "numbers": ([1], None),
    "nothing": ([], None),
    "class names": ({"run": 0}, None),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_json(name: str, tmp_path: Path) -> None:
    content, format = CONTENTS[name]
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert format_of(str(tmp_path / "x.json"), is_folder=False) == format


def test_files_and_folders(tmp_path: Path) -> None:
    for name, format in {"a.xml": "cvat", "a.ZIP": "cvat", "a.parquet": "parquet", "a.csv": None, "a": None}.items():
        assert format_of(str(tmp_path / name), is_folder=False) == format
    assert format_of(str(tmp_path), is_folder=True) is None
    (tmp_path / "labels.json").write_text("{}")
    assert format_of(str(tmp_path), is_folder=True) is None  # a file of that name beside folders of classes
    (tmp_path / "data").mkdir()
    assert format_of(str(tmp_path), is_folder=True) == "fiftyone"
    (tmp_path / "dataset_dict.json").write_text("{}")
    (tmp_path / "labels.json").unlink()
    assert format_of(str(tmp_path), is_folder=True) == "hugging-face"


def test_the_config_knows_the_formats() -> None:
    assert get_args(get_type_hints(DataConfig)["format"]) == FORMATS
    assert FORMATS[-len(EXCHANGE) :] == EXCHANGE


@pytest.mark.parametrize("format", EXCHANGE)
def test_another_content_than_the_format_says(format: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    if format in ("parquet", "hugging-face"):
        pytest.importorskip("pyarrow")
    if format == "hugging-face":
        pytest.importorskip("datasets")
    for content in ('{"a": 1}', "[[[", "a,b\n1,2\n", "\x00"):
        path.write_text(content)
        with pytest.raises(ManifestError) as caught:
            read_manifest(path, format=format)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
