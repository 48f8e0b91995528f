"""Data sets of Hugging Face on disk, as Parquet and as Arrow; the videos lie in them as bytes or by their paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvid.commands.prep import main
from stvid.data.exchange.formats import format_of
from stvid.data.exchange.hub_files import holds_videos, is_hub_folder, read_hub_files
from stvid.data.manifest import Manifest, read_manifest
from stvid.errors import ManifestError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["sit", "run"]
FEATURES = {"video": {"_type": "Video"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


@pytest.fixture
def contents(make_video: Callable[..., Path]) -> list[bytes]:
    content = make_video("hub_files.mp4", frames=20, fps=20).read_bytes()
    return [content + bytes([number]) for number in range(7)]


def table(contents: list[bytes], *, features: Any = FEATURES, **columns: list[Any]) -> Any:
    """The table that datasets makes of videos in memory; the other columns are given."""
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    videos = [{"bytes": content, "path": f"clips/{number}.mp4"} for number, content in enumerate(contents)]
    made = {"video": pyarrow.array(videos, kind)}
    columns = columns or {"label": [number % 2 for number in range(len(contents))]}
    made |= {name: pyarrow.array(values) for name, values in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return pyarrow.table(made).replace_schema_metadata(metadata)


def save_to_disk(made: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    place = str(folder / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(place, "wb") as file, pyarrow.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made, max_chunksize=3)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "x", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def contents_of(manifest: Manifest) -> list[Any]:
    return [manifest.content(number) for number in range(len(manifest))]


@pytest.mark.parametrize("kind", ["parquet", "folder", "saved"])
def test_videos_are_read_from_their_rows(kind: str, contents: list[bytes], tmp_path: Path) -> None:
    made = table(contents)
    place = tmp_path / "set"
    if kind == "parquet":
        place = tmp_path / "set.parquet"
        parquet.write_table(made, place, row_group_size=3)
    elif kind == "folder":
        (place / "data").mkdir(parents=True)
        parquet.write_table(made.slice(0, 4), place / "data/train-00000-of-00002.parquet")
        parquet.write_table(made.slice(4), place / "data/train-00001-of-00002.parquet")
    else:
        save_to_disk(made, place)
    found = read_manifest(place)
    assert contents_of(found) == contents
    assert found.class_names == ("sit", "run") and [e.labels[0] for e in found] == [NAMES[n % 2] for n in range(7)]
    assert len({e.path for e in found}) == 7 and all(e.path.startswith(str(place)) for e in found)
    assert found[0].path.endswith("/0-0.mp4")
    some = found.subset([5, 1, 5, 0])
    assert contents_of(some) == [contents[number] for number in (5, 1, 5, 0)]


def test_splits_are_those_of_the_names(contents: list[bytes], tmp_path: Path) -> None:
    for name, part in (("train-00000-of-00001", [0, 1, 2]), ("test-00000-of-00001", [3, 4])):
        parquet.write_table(table([contents[number] for number in part]), tmp_path / f"{name}.parquet")
    assert is_hub_folder(str(tmp_path)) and format_of(str(tmp_path), is_folder=True) == "hugging-face"
    found = read_manifest(tmp_path, splits=("test",))
    assert contents_of(found) == contents[3:5] and found.splits == ("test", "train")
    assert len(read_manifest(tmp_path)) == 5
    both = tmp_path / "both"
    save_to_disk(table(contents[:2]), both / "train")
    save_to_disk(table(contents[2:3]), both / "test")
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert contents_of(read_manifest(both, splits=("train",))) == contents[:2]


def test_labels_and_times(contents: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    parquet.write_table(table(contents[:2], features=None, labels=[["run", "sit"], []]), path)
    assert [e.labels for e in read_manifest(path, multilabel=True)] == [("run", "sit"), ()]
    parquet.write_table(table(contents[:2], features=None, label=["a", "b"], start=[None, 0.25], end=[0.5, None]), path)
    assert [(e.start, e.end) for e in read_manifest(path)] == [(None, 0.5), (0.25, None)]
    parquet.write_table(table(contents[:3], label=[0, -1, 1]), path)
    found = read_manifest(path)
    assert contents_of(found) == [contents[0], contents[2]]  # the second shows none of the classes
    assert any("videos without a label (1)" in note for note in found.notes)
    parquet.write_table(table(contents[:2], features=None, verb=["a", "b"]), path)
    with pytest.raises(ManifestError, match="has no column 'verbs'; nearest: verb"):
        read_hub_files(str(path), field="verbs")
    assert [item.labels for item in read_hub_files(str(path), field="verb").items] == [("a",), ("b",)]
    assert not read_manifest(path).has_labels


def test_columns_of_plain_bytes_and_of_paths(contents: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    parquet.write_table(pyarrow.table({"mp4": contents[:2], "label": ["a", "b"]}), path)
    assert holds_videos(str(path)) and contents_of(read_manifest(path)) == contents[:2]
    names = [str(tmp_path / f"{number}.mp4") for number in range(2)]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = pyarrow.array([{"bytes": None, "path": name} for name in names], kind)
    parquet.write_table(pyarrow.table({"video": rows, "label": ["a", "b"]}), path)
    found = read_manifest(path)
    assert [e.path for e in found] == names and found.members is None
    mixed = pyarrow.array([{"bytes": contents[0], "path": None}, {"bytes": None, "path": names[0]}], kind)
    parquet.write_table(pyarrow.table({"video": mixed, "label": ["a", "b"]}), path)
    with pytest.raises(ManifestError, match="row 1: holds no bytes, but 1 other rows do; write files"):
        read_manifest(path)
    parquet.write_table(pyarrow.table({"video": pyarrow.array([{"bytes": None, "path": None}], kind)}), path)
    with pytest.raises(ManifestError, match="row 0: has neither path nor bytes"):
        read_manifest(path)
    parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(ManifestError, match=r"has no column 'path' \(text\)"):
        read_manifest(path)


def test_odd_columns(contents: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    only_bytes = pyarrow.array([{"bytes": content} for content in contents[:2]])
    parquet.write_table(pyarrow.table({"clip": only_bytes}), path)  # no path, no label
    found = read_manifest(path)
    assert contents_of(found) == contents[:2] and [Path(e.path).name for e in found] == ["0", "1"]
    times: dict[str, list[Any]] = {"start": ["soon"], "end": [float("nan")]}
    parquet.write_table(pyarrow.table({"mp4": contents[:1], "end": times["end"]}), path)
    assert read_manifest(path)[0].end is None
    parquet.write_table(pyarrow.table({"mp4": contents[:1], "start": times["start"]}), path)
    with pytest.raises(ManifestError, match="row 0: start: is 'soon', not a number"):
        read_manifest(path)
    parquet.write_table(pyarrow.table([contents[:1], contents[:1]], names=["mp4", "mp4"]), path)
    with pytest.raises(ManifestError, match=r"two columns of one name \(mp4, mp4\)"):
        read_manifest(path)
    made = table(contents[:1]).replace_schema_metadata({"huggingface": '{"info": '})
    parquet.write_table(made, path)
    with pytest.raises(ManifestError, match="its schema"):
        read_manifest(path)
    parquet.write_table(table(contents[:1], label=[7]), path)
    with pytest.raises(ManifestError, match="row 0: label: class 7 is none of the 2"):
        read_manifest(path)


def test_bytes_become_files(contents: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "set.parquet"
    parquet.write_table(table(contents), path)
    for format in ("hugging-face", "parquet"):
        out = tmp_path / f"{format}.csv"
        assert main(["manifest", format, str(path), "--out", str(out)]) == 0, capsys.readouterr().err
        found = read_manifest(out)
        assert [Path(e.path).read_bytes() for e in found] == contents
        assert [e.labels[0] for e in found] == [NAMES[number % 2] for number in range(7)]
    assert main(["scan", str(path)]) == 2
    assert "its videos lie as bytes in a data set, not in files" in capsys.readouterr().err


def test_damage_is_one_line(contents: list[bytes], tmp_path: Path) -> None:
    saved = save_to_disk(table(contents), tmp_path / "saved")
    parquet.write_table(table(contents), tmp_path / "set.parquet")
    for file, source in ((saved / "state.json", saved), (saved / "data-00000-of-00001.arrow", saved)):
        whole = file.read_bytes()
        for length in (0, 10, len(whole) // 2):
            file.write_bytes(whole[:length])
            try:
                contents_of(read_manifest(source))
            except ValueError as error:  # ManifestError, or VideoError of a row
                assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
            else:
                assert length == len(whole) // 2
        file.write_bytes(whole)
    (saved / "state.json").write_text('{"_data_files": [{"filename": "../../x"}]}')
    with pytest.raises(ManifestError, match="is no name of a file in this folder"):
        read_manifest(saved)
    (saved / "state.json").write_text('{"_data_files": [], "_indices_files": [{"filename": "x"}]}')
    with pytest.raises(ManifestError, match="selection of rows; save it again"):
        read_manifest(saved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="is no data set of Hugging Face"):
        read_manifest(tmp_path / "empty", format="hugging-face")
