"""Lists of class names in every published form, and what comes out of odd ones: the right order, or one line."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

import stvid
from stvid.classes import class_list, class_lists
from stvid.data.class_names import read_class_names
from stvid.errors import ManifestError

NAMES = ("abseiling", "air drumming", "answering questions", "zumba")
QUOTED = {(f'"{name}"' if " " in name else name): number for number, name in enumerate(NAMES)}
ID2LABEL = {str(number): name for number, name in enumerate(NAMES)}
LABEL2ID = {name: number for number, name in enumerate(NAMES)}
SHUFFLED = (2, 0, 3, 1)


def lines(form: str, *, first: int = 0, order: tuple[int, ...] = SHUFFLED) -> str:
    """The names in another order than their numbers, a line each."""
    return "".join(form.format(number=n + first, name=NAMES[n]) + "\n" for n in order)


PUBLISHED = {
    "kinetics_classnames.json": json.dumps(QUOTED),
    "id2label.json": json.dumps(ID2LABEL),
    "backwards.json": json.dumps(dict(reversed(ID2LABEL.items()))),
    "config.json": json.dumps({"model_type": "timesformer", "id2label": ID2LABEL, "label2id": LABEL2ID}),
    "label2id.json": json.dumps({"label2id": dict(reversed(LABEL2ID.items()))}),
    "labels.json": json.dumps({name: str(number) for name, number in LABEL2ID.items()}),
    "from_one.json": json.dumps({name: number + 1 for name, number in LABEL2ID.items()}),
    "list.json": json.dumps(NAMES),
    "nested.json": json.dumps({"version": 3, "names": ID2LABEL}),
    "stvid.json": json.dumps({"protocol": {"frames": 8, "class_names": NAMES}}),
    "records.json": json.dumps([{"id": n, "name": NAMES[n], "supercategory": "x"} for n in SHUFFLED]),
    "json_in_text.txt": json.dumps(NAMES, indent=1),
    "python.txt": repr(dict(enumerate(NAMES))),
    "data.yaml": "path: x\nnames:\n" + "".join(f"  {n}: {NAMES[n]}\n" for n in SHUFFLED),
    "list.yaml": "names: [abseiling, air drumming, answering questions, zumba]\n",
    "label_map_k400.txt": "\n".join(NAMES),
    "classInd.txt": lines("{number} {name}", first=1),
    "from_zero.txt": lines("{number} {name}"),
    "tabs.txt": lines("{number}\t{name}"),
    "colons.txt": lines("{number}: {name}", first=1),
    "dots.txt": lines("{number}. {name}", first=1),
    "padded.txt": lines("  {number:03d}   {name}  "),
    "behind.txt": lines("{name},{number}"),
    "behind_tab.txt": lines("{name}\t{number}"),
    "behind_space.txt": lines("{name} {number}"),
    "header.txt": "id name\n" + lines("{number} {name}"),
    "lone_header.txt": "class_name\n" + "\n".join(NAMES),
    "kinetics.csv": "id,name\n" + lines("{number},{name}"),
    "label_id.csv": "label,id\n" + lines("{name},{number}"),
    "name_label.csv": "name,label\n" + lines("{name},{number}"),
    "spelled.csv": "Class ID,Class Name\n" + lines("{number}, {name}"),
    "other_words.csv": "moment,place\n" + lines("{name},{number}"),
    "epic.csv": "id,key,instances,category\n" + lines("{number},{name},\"['a', 'b']\",c"),
    "from_one.csv": "id,name\n" + lines("{number},{name}", first=1),
    "no_header.csv": lines("{number},{name}"),
    "no_header_behind.csv": lines("{name},{number}"),
    "quoted.csv": "id,name\n" + lines('{number},"{name}"'),
    "semicolons.csv": "id;name\n" + lines("{number};{name}"),
    "name_only.csv": "name\n" + "\n".join(NAMES),
    "name_only_bare.csv": "\n".join(NAMES),
    "name_more.csv": "name,remark\n" + lines("{name},x{number}", order=(0, 1, 2, 3)),
    "table.tsv": "index\tlabel\n" + lines("{number}\t{name}"),
    "bom.csv": "\ufeffid,name\n" + lines("{number},{name}"),
    "crlf.txt": "\ufeff" + lines("{number} {name}", first=1).replace("\n", "\r\n") + "\r\n\r\n",
    "old_mac.txt": "\r".join(NAMES) + "\r",
    "blank_lines.txt": "\n\n" + "\n\n".join(f" {name}\t" for name in NAMES) + "\n\n \n",
    "quotes.txt": "\n".join(f'"{name}"' for name in NAMES),
    "no_suffix": "\n".join(NAMES),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_forms_give_the_plain_names_in_the_order_of_their_numbers(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(PUBLISHED[file].encode())
    assert read_class_names(tmp_path / file) == NAMES


# Names that look like something else, and stay what they are.
KEPT: dict[str, tuple[str, ...]] = {
    "commas.txt": ("Holding something", "Putting something, something and something on the table"),
    "commas.csv": ("Putting something, something on the table", "Holding something"),
    "numbers.txt": ("0", "1", "10", "2"),
    "some_numbers.txt": ("3x3 (basketball)", "run", "100 metres", "throw"),
    "counted.txt": ("gesture 1", "gesture 2", "gesture 10"),
    "brackets.txt": ("[Something] falling", "Holding [something]"),
    "apostrophes.txt": ("opening bottle (not wine)", "rock n' roll", "'n' 5"),
    "other_scripts.txt": ("yağlı güreş", "跑步", "café"),
    "one.txt": ("run",),
    "spaces.txt": ("air  drumming", "run"),
}


@pytest.mark.parametrize("file", KEPT)
def test_names_that_look_like_numbers_or_cells_are_kept(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("\n".join(KEPT[file]) + "\n", encoding="utf-8")
    assert read_class_names(tmp_path / file) == KEPT[file]


REFUSED = {
    "gap.json": ('{"0": "a", "2": "b"}', "do not run from 0 to 1 .or from 1.: 1 is missing"),
    "gap_back.json": ('{"a": "0", "b": "2"}', "do not run from 0 to 1"),
    "twice.json": ('{"a": 0, "b": 0}', "0 occurs twice"),
    "key_twice.json": ('{"0": "a", "0": "b"}', "the key '0' occurs twice"),
    "from_two.json": ('{"a": 2, "b": 3}', "0 is missing"),
    "negative.json": ('{"a": -1, "b": 0}', "are not numbers of classes"),
    "fraction.json": ('{"a": 0.0, "b": 1.5}', "are not numbers of classes"),
    "truth.json": ('{"a": true, "b": false}', "are not numbers of classes"),
    "word.json": ('{"a": 0, "b": "x"}', "are not numbers of classes.*'x'"),
    "both.json": ('{"0": "1", "1": "2", "2": "0"}', "both sides are numbers"),
    "differ.json": ('{"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}', "different orders"),
    "numbers.json": ("[1, 2]", "needs a list of names"),
    "mixed.json": ('["a", {"b": 1}]', "needs a list of names"),
    "text.json": ('"abc"', "needs a list of names"),
    "none.json": ("{}", "needs a table"),
    "empty_list.json": ('{"names": []}', "needs a list of names"),
    "broken.json": ('{"a": 0,', "line 1: is not JSON"),
    "deep.json": ("[" * 100_000, "too many times"),
    "long_number.json": (f'{{"a": 1{"0" * 5000}}}', "is not JSON that can be read"),
    "nested.json": ('{"names": ' * 6 + '["a"]' + "}" * 6, "needs a list|are not numbers"),
    "records.json": ('[{"id": 0, "name": "a"}, {"id": 1}]', "item 2: needs a name and a number"),
    "records2.json": ('[{"id": 0, "colour": "a", "x": "y"}]', "no column is called name or label"),
    "truth.yaml": ("names: [no, yes]\n", "needs a list of names, and False is no text .YAML reads a bare no"),
    "truth_of_number.yaml": ("0: jump\n1: no\n", "and False is no text .YAML reads a bare no"),
    "page.txt": ("<!DOCTYPE html>\n<html><body>404</body></html>\n", "is a page of the web"),
    "pointer.txt": ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "a pointer of git-lfs"),
    "truth_keys.yaml": ("no: 0\nyes: 1\n", "are not numbers of classes|needs"),
    "twice.yaml": ("0: a\n0: b\n", "line 1: is neither JSON nor YAML .a key occurs twice"),
    "broken.yaml": ("names: [a, b\n", "is neither JSON nor YAML"),
    "object.yaml": ("!!python/object/apply:os.system ['true']\n", "is neither JSON nor YAML"),
    "date.yaml": ("- 2001-99-99\n", "is neither JSON nor YAML"),
    "deep.yaml": ("[" * 5000, "is neither JSON nor YAML"),
    "not_python.txt": ("{0: a, 1", "is neither JSON nor YAML"),
    "gap.txt": ("1 a\n2 b\n4 c\n", "do not run from 0 to 2 .or from 1.: 3 is missing"),
    "twice.txt": ("1 a\n2 b\n2 c\n", "2 occurs twice"),
    "from_two.txt": ("2 a\n3 b\n", "0 is missing"),
    "below.txt": ("-1 none\n0 a\n1 b\n", "-1 is no place of a class"),
    "one_without.txt": ("0 a\n1 b\nc\n", "2 of 3 lines have a number.*'c'"),
    "behind_gap.txt": ("walk 1\nrun 3\n", "do not run"),
    "behind_one_without.txt": ("a,0\nb,1\nc\n", "2 of 3 lines have a number"),
    "both.txt": ("0 1\n1 0\n", "begins and ends with a number"),
    "both_ends.txt": ("0,a,5\n1,b,6\n", "begins and ends with a number"),
    "same_name.txt": ("1 clap\n2 clap\n", "'clap' occurs twice"),
    "same_in_other_form.txt": ("café\n" + unicodedata.normalize("NFD", "café"), "occurs twice"),
    "gap.csv": ("id,name\n0,a\n3,b\n", "do not run from 0 to 1"),
    "word.csv": ("id,name\n0,a\nx,b\n", "line 3: 'id' is 'x', not the number of a class"),
    "no_number.csv": ("id,name\n0,a\n,b\n", "line 3: 'id' is '', not the number of a class"),
    "ragged.csv": ("id,name\n0,a\n1,b,c\n", "line 3: has 3 columns, not 2"),
    "columns.csv": ("a,b\nc,d\n", "has 2 columns; name them"),
    "no_name.csv": ("id,name\n0,a\n1,\n", "a class name is empty"),
    "quote.csv": ('id,name\n0,"a\n', "is not CSV"),
    "empty.txt": ("", "is empty"),
    "blank.txt": (" \r\n\t\n", "is empty"),
    "escape.txt": ("run\n\x1b[2Jjump\n", r"holds a control character"),
    "separator.json": ('["a\\u2028b"]', r"holds a control character"),
    "zeros.txt": ("a\0b\0", "holds zero bytes"),
    "latin.txt": (b"caf\xe9\n", "is not UTF-8"),
    "utf16.txt": ("run\nwalk".encode("utf-16"), "is not UTF-8"),
}


@pytest.mark.parametrize("file", REFUSED)
def test_odd_files_are_refused_with_one_line_that_names_the_file(file: str, tmp_path: Path) -> None:
    content, message = REFUSED[file]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError, match=message) as caught:
        read_class_names(tmp_path / file)
    assert str(caught.value).startswith(str(tmp_path / file)) and "\n" not in str(caught.value)


def test_letters_are_composed(tmp_path: Path) -> None:
    (tmp_path / "mac.txt").write_text(unicodedata.normalize("NFD", "café\nyağlı güreş\n"), encoding="utf-8")
    assert read_class_names(tmp_path / "mac.txt") == ("café", "yağlı güreş")
    for name in class_lists():
        assert all(unicodedata.is_normalized("NFC", label) for label in class_list(name))


def test_packaged_lists_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_class_names("kinetics400_uniformer") == class_list("kinetics400_uniformer")
    Path("kinetics400").write_text("a\nb\n")  # a file of that name wins
    assert read_class_names("kinetics400") == ("a", "b")
    with pytest.raises(ManifestError, match=r"no such file, and no packaged list of class names.*kinetics600"):
        read_class_names("kinetics60O")
    with pytest.raises(ManifestError, match="is a folder, and no packaged list"):
        read_class_names(tmp_path)


@pytest.mark.parametrize("name", class_lists())
def test_a_written_list_is_read_as_it_was(name: str, tmp_path: Path) -> None:
    names = class_list(name)
    if len(set(names)) < len(names):  # gym99 has one name twice, as it was published
        pytest.skip("names occur twice")
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (tmp_path / "names.csv").write_text("\n".join(names) + "\n", encoding="utf-8")
    assert read_class_names(tmp_path / "names.txt") == read_class_names(tmp_path / "names.csv") == names
    assert stvid.Protocol(class_names=names).class_names == names
