from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.errors import ManifestError


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def entries(count: int) -> list[VideoEntry]:
    return [VideoEntry(f"/v/{'x' * (n % 7)}{n}.mp4", (f"c{n % 3}",), float(n) if n % 2 else None) for n in range(count)]


def test_subset_and_pickle() -> None:
    rows = entries(20)
    manifest = Manifest.from_entries(rows, source="here")
    assert list(manifest) == rows and manifest.source == "here"
    picked = manifest.subset([19, 3, 3, 0])
    assert list(picked) == [rows[19], rows[3], rows[3], rows[0]] and picked.class_names == manifest.class_names
    assert list(manifest.subset(np.flatnonzero(manifest.primary == 1))) == [
        row for row in rows if row.labels == ("c1",)
    ]
    assert len(manifest.subset([])) == 0 and not manifest.subset([]).has_labels
    for bad in ([20], [-1]):
        with pytest.raises(IndexError, match="of a manifest of 20 videos"):
            manifest.subset(bad)
    with pytest.raises(TypeError, match="whole numbers"):
        manifest.subset([True, False])
    for copy in (pickle.loads(pickle.dumps(manifest)), pickle.loads(pickle.dumps(picked))):
        assert copy[0] in rows and copy.class_names == manifest.class_names


def test_a_video_that_is_listed_by_a_relative_and_an_absolute_path(tmp_path: Path) -> None:
    text = f"path,label\nvideos/a.mp4,run\n{tmp_path}/videos/a.mp4,jump\n"
    with pytest.raises(ManifestError, match=r"line 3: .*a\.mp4' is already at line 2"):
        read_manifest(write(tmp_path / "list.csv", text))


def test_from_entries_checks_too() -> None:
    with pytest.raises(ManifestError, match=r"<entries>, entry 1: 'a' is already at entry 0"):
        Manifest.from_entries([VideoEntry("a"), VideoEntry("a")])
    with pytest.raises(ManifestError, match="label 'x' is not among the 1 class names"):
        Manifest.from_entries([VideoEntry("a", ("x",))], class_names=["y"])
    assert Manifest.from_entries([VideoEntry("a")])[0].path == os.path.abspath("a")
    assert len(Manifest.from_entries([])) == 0


def test_with_class_names_matches_by_name() -> None:
    manifest = Manifest.from_entries(entries(6))
    other = manifest.with_class_names(["c2", "unused", "c0", "c1"])
    assert other.primary.tolist() == [2, 3, 0, 2, 3, 0] and other[1] == manifest[1]
    assert manifest.primary.tolist() == [0, 1, 2, 0, 1, 2]  # unchanged
    with pytest.raises(ManifestError, match=r"label 'c1' \(and 1 more\) is not among the 1 class names"):
        manifest.with_class_names(["c0"])
    assert manifest.subset([0, 3]).with_class_names(["c0"]).primary.tolist() == [0, 0]  # c1 and c2 do not occur
    with pytest.raises(ManifestError, match="occurs twice"):
        manifest.with_class_names(["c0", "c0"])


def test_it_survives_a_spawn(tmp_path: Path) -> None:
    manifest = Manifest.from_entries(entries(5))
    state = dict(manifest.__dict__)
    assert state.pop("members") is None and state.pop("groups") is None  # not in shards, no column of groups
    assert all(isinstance(value, (np.ndarray, str, tuple)) for value in state.values())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Manifest.__getitem__, (manifest, 3)) == manifest[3]


def test_a_large_manifest_is_small(tmp_path: Path) -> None:
    text = "path,label\n" + "".join(f"videos/{n:08d}.mp4,class {n % 400}\n" for n in range(20000))
    manifest = read_manifest(write(tmp_path / "big.csv", text))
    parts = [part for value in manifest.__dict__.values() for part in (value if isinstance(value, tuple) else [value])]
    size = sum(part.nbytes for part in parts if isinstance(part, np.ndarray))
    assert 20 * len(manifest) < size < 70 * len(manifest)
    assert manifest[12345].path.endswith("videos/00012345.mp4") and manifest[12345].labels == ("class 345",)
