"""Labels that are numbers are places of the logits, in every kind of list; other labels are names."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.data.labels import label_places, numbers_note, order_labels
from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.errors import ManifestError

CAFE = unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "0"], ["0", "9", "10"]),  # few of many: the numbers that occur
        ([str(n) for n in range(12)], [str(n) for n in range(12)]),
        (["0", "1", "3"], ["0", "1", "2", "3"]),  # 2 has no videos
        (["3", "1", "2"], ["1", "2", "3"]),  # from 1 on
        (["1", "2", "4"], ["1", "2", "3", "4"]),
        (["00", "02", "10", "01"], ["00", "01", "02", "10"]),
        (["00", "03", "01"], ["00", "01", "02", "03"]),
        (["1000017", "5"], ["5", "1000017"]),
        (["7"], ["7"]),
        (["2", "3"], ["2", "3"]),
        (["0", "2"], ["0", "2"]),
        (["0"], ["0"]),
        (["run", "10", "9"], ["10", "9", "run"]),  # not all are numbers, so they are names
        (["10", "2", "1.5"], ["1.5", "2", "10"]),  # names, in the order of the numbers
        (["class10", "class9"], ["class10", "class9"]),
        (["-1", "none"], ["-1", "none"]),
        (["b", "a", "b"], ["a", "b"]),
        ([CAFE, "café", "run"], ["café", "run"]),
        (["٣", "٢٠"], ["٢٠", "٣"]),  # digits of another script are letters
        ([], []),
    ],
)
def test_order(labels: list[str], classes: list[str]) -> None:
    assert list(order_labels(labels, "list")) == classes


def test_numbers_that_are_no_places() -> None:
    with pytest.raises(ManifestError, match=r"^list: label '-1' is no number of a class, they run from 0 up"):
        order_labels(["0", "-1"], "list")
    with pytest.raises(ManifestError, match=r"^list: labels .* are the same number; write it in one way"):
        order_labels(["1", "01", "0"], "list")


def test_gaps_are_said() -> None:
    assert numbers_note(("0", "1", "2"), {"0", "1", "2"}) is None
    assert numbers_note(("run", "sit"), {"run"}) is None
    assert "gaps: 2 without videos" in str(numbers_note(("0", "1", "2", "3"), {"0", "1", "3"}))
    assert "(label 10 is logit 1)" in str(numbers_note(("0", "10"), {"0", "10"}))
    assert "(label 1 is logit 0)" in str(numbers_note(("1", "2"), {"1", "2"}))


WORDS = ("jump", "run", "sit")


@pytest.mark.parametrize(
    ("labels", "names", "places", "numbers"),
    [
        (["sit", "jump"], WORDS, [2, 0], False),
        (["2", "0"], WORDS, [2, 0], True),
        (["02", "0"], WORDS, [2, 0], True),
        (["3", "0", "-1"], WORDS, [-1, 0, -1], True),
        (["2", "run"], WORDS, [-1, 1], False),  # a mixture is words
        (["2", "10"], ("0", "1", "10", "2"), [3, 2], False),  # an older run's order: its own names win
        (["01", "2"], ("0", "1", "2"), [1, 2], False),
        (["1", "0"], ("00", "01"), [1, 0], False),
        (["1", "7"], ("1", "2"), [0, -1], False),
        (["1"], ("1", "01"), [0], False),
        (["100", "0"], ("100", "run"), [0, -1], False),  # one is a name: all are
        ([CAFE], ("run", "café"), [1], False),
        (["café"], ("run", CAFE), [1], False),
        ([], WORDS, [], False),
    ],
)
def test_places(labels: list[str], names: tuple[str, ...], places: list[int], numbers: bool) -> None:
    assert label_places(labels, names) == (places, numbers)


def ids(manifest: Manifest) -> list[list[int]]:
    return [manifest.label_ids(row).tolist() for row in range(len(manifest))]


def test_lists_of_numbers_with_names(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,label\na.mp4,2\nb.mp4,0\nc.mp4,1\n")
    manifest = read_manifest(path, class_names=WORDS)
    assert manifest[0].labels == ("sit",) and ids(manifest) == [[2], [0], [1]] and manifest.labels_are == "numbers"
    plain = read_manifest(path)
    assert plain.class_names == ("0", "1", "2") and ids(plain) == [[2], [0], [1]] and plain.labels_are == "names"
    renamed = plain.with_class_names(WORDS)
    assert (
        renamed[0].labels == ("sit",)
        and renamed.labels_are == "numbers"
        and renamed.subset([0]).labels_are == "numbers"
    )
    with pytest.raises(ManifestError, match=r"list\.csv, line 2: label '2' is not the number of one of the 2 classes"):
        read_manifest(path, class_names=WORDS[:2])
    with pytest.raises(ManifestError, match=r"list\.csv: label '2' is not the number of one of the 2 classes.* 0 to 1"):
        plain.with_class_names(("0", "1"))
    path.write_text("path,label\na.mp4,-1\nb.mp4,0\n")
    with pytest.raises(ManifestError, match="label '-1' is not the number"):
        read_manifest(path, class_names=WORDS)
    with pytest.raises(ManifestError, match="label '-1' is no number of a class"):
        read_manifest(path)


def test_numbers_of_several_labels(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\na.mp4,10|2\nb.mp4,\n")
    manifest = read_manifest(tmp_path / "list.csv", multilabel=True)
    assert manifest.class_names == ("2", "10") and ids(manifest) == [[0, 1], []]
    assert ids(read_manifest(tmp_path / "list.csv", multilabel=True, class_names=[f"c{n}" for n in range(11)])) == [
        [2, 10],
        [],
    ]


def test_folders_of_numbers(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    for name in ("0", "1", "10", "2"):
        make_video("a.mp4", frames=4, to=tmp_path / name)
    (tmp_path / "notes").mkdir()
    manifest = read_manifest(tmp_path)
    assert manifest.class_names == ("0", "1", "2", "10")
    assert sorted(entry.labels[0] for entry in manifest) == ["0", "1", "10", "2"]


def test_shards_of_earlier_versions_are_put_in_order(
    tmp_path: Path, make_video: Callable[..., Path], make_shards: Callable[..., Manifest]
) -> None:
    video = make_video("a.mp4", frames=4)
    entries = [VideoEntry(str(video), (label,), start=n / 100) for n, label in enumerate(["0", "1", "2", "10"])]
    older = Manifest.from_entries(entries, class_names=("0", "1", "10", "2"))
    shards = make_shards(older, tmp_path / "shards")
    assert json.loads((tmp_path / "shards" / "shards.json").read_text())["class_names"] == ["0", "1", "10", "2"]
    assert shards.class_names == ("0", "1", "2", "10")
    assert [shards[row].labels for row in range(4)] == [older[row].labels for row in range(4)]
    kept = read_manifest(tmp_path / "shards", class_names=("0", "1", "10", "2"))
    assert kept.class_names == ("0", "1", "10", "2")


def test_one_class_in_two_unicode_forms() -> None:
    manifest = Manifest.from_entries([VideoEntry("a.mp4", (CAFE,)), VideoEntry("b.mp4", ("café",))])
    assert manifest.class_names == ("café",) and ids(manifest) == [[0], [0]]
    assert ids(manifest.with_class_names(("run", CAFE))) == [[1], [1]]


def test_a_path_in_the_other_unicode_form_is_found(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    make_video("é.mp4", frames=4, to=tmp_path / "mac" / CAFE)
    (tmp_path / "list.csv").write_text("path,label\nmac/café/é.mp4,café\nmac/café/nö.mp4,café\n", encoding="utf-8")
    found, missing = read_manifest(tmp_path / "list.csv")
    assert Path(found.path).is_file() and found.labels == ("café",)
    assert missing.path == str(tmp_path / "mac/café/nö.mp4")  # as it was written
    (tmp_path / "absolute.csv").write_text(f"path,label\n{tmp_path}/mac/café/é.mp4,x\n", encoding="utf-8")
    assert Path(read_manifest(tmp_path / "absolute.csv")[0].path).is_file()
