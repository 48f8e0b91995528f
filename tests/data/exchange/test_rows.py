from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stvid.data.exchange.rows import Export, Item, as_list, as_manifest, chosen_field
from stvid.errors import ManifestError


def test_labels_of_the_same_part_are_joined(tmp_path: Path) -> None:
    items = [
        Item("a.mp4", ("run",), "row 1", 1.0, 2.0),
        Item("a.mp4", ("jump", "run"), "row 2", 1.0, 2.0),
        Item("a.mp4", ("run",), "row 3", 1.0, 3.0),
        Item("b.mp4", (), "row 4"),
    ]
    found = as_list(Export(items), "x.json", str(tmp_path), multilabel=None)
    assert [(row.labels, row.end, row.where) for row in found.rows] == [
        (("run", "jump"), 2.0, "row 1"),
        (("run",), 3.0, "row 3"),
        ((), None, "row 4"),
    ]
    assert found.sparse
    alone = as_list(Export(items[2:]), "x.json", str(tmp_path), multilabel=None)
    assert not alone.sparse and len(alone.rows) == 1


def test_videos_are_found_by_the_ends_of_their_paths(tmp_path: Path) -> None:
    for name in ("a.mp4", "set/b.mp4", "other/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["/data/other/a.mp4", "C:\\videos\\set\\b.mp4", "x/a.mp4", f"{tmp_path}/set/b.mp4", "s3://bucket/c.mp4"]
    found = as_list(Export([Item(n, (str(k),), "") for k, n in enumerate(names)]), "x", str(tmp_path))
    assert [row.path for row in found.rows] == [
        "other/a.mp4",
        "set/b.mp4",
        "a.mp4",
        f"{tmp_path}/set/b.mp4",
        "s3://bucket/c.mp4",
    ]
    assert found.notes == ()


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    export = Export([Item("a.mp4", ("x",), "")], Counter({"boxes": 3, "notes": 1}), ["has no end"])
    assert as_list(export, "x.json", str(tmp_path)).notes[:2] == (
        "x.json: has no end",
        "x.json: left out: boxes (3), notes (1)",
    )
    with pytest.raises(ManifestError, match=r"^x.json: names no video that could be used; left out: boxes \(3\)$"):
        as_list(Export([], Counter(boxes=3)), "x.json", str(tmp_path))


def test_splits_and_classes(tmp_path: Path) -> None:
    items = [Item("a.mp4", ("x",), "", split="Training"), Item("b.mp4", ("y",), "", split="dev")]
    found = as_manifest(Export(items, class_names=("y", "x")), "x", root=str(tmp_path), multilabel=False)
    assert found.splits == ("train", "val") and found.class_names == ("y", "x")
    with pytest.raises(ManifestError, match="split 'mine' is none of train, val and test"):
        as_list(Export([Item("a.mp4", ("x",), "", split="mine")]), "x", str(tmp_path))
    with pytest.raises(ManifestError, match=r"a.mp4 is in two splits, Training and dev"):
        as_list(Export([items[0], Item("a.mp4", ("x",), "", split="dev")]), "x", str(tmp_path))


def test_which_field() -> None:
    assert chosen_field([], None, "x", "field") is None and chosen_field(["a", "a"], None, "x", "field") == "a"
    assert chosen_field(["a", "b"], "b", "x", "field") == "b"
    with pytest.raises(ManifestError, match="no field 'c' holds labels; it has none"):
        chosen_field([], "c", "x", "field")
