"""Lists of class names as they are published: the name of each logit, in order.

Three kinds of files are read: text (a name a line, or a number and a name), tables (CSV, TSV) and JSON or YAML. A
number that stands beside a name is the place of its logit, wherever the line stands. Numbers count from 0, or all from
1 as in ``classInd.txt`` of UCF101; a list whose numbers have gaps or occur twice is refused, since any guess would give
names to the wrong logits.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from stvid.classes import class_list, class_lists
from stvid.data.text_files import Table, parse_json, parse_table, read_text
from stvid.data.video_table import checked_class_names
from stvid.errors import ManifestError, nearest
from stvid.files import expand_home

__all__ = ["read_class_names"]

Pair = tuple[int, str]
"""A number beside a name, and the name."""

# Words over the columns of published tables, the first that is there counts (compared without "_", "-" and spaces).
_NAME_WORDS = (
    *("classname", "labelname", "displayname", "name", "label", "class"),
    *("action", "key", "category", "template"),
)
_NUMBER_WORDS = ("classid", "labelid", "classindex", "labelindex", "id", "index", "idx", "number", "label", "class")
# A first line of a text file that can only be meant as a header.
_LONE_HEADERS = {"classname", "classnames", "labelname", "labelnames", "classes", "labels", "names"}
# Where other programs keep the names within a larger JSON or YAML file (Ultralytics, torchvision, COCO and others).
_KEYS = (
    *("protocol", "names", "class_names", "classes", "labels", "categories"),
    *("label_map", "class_to_idx", "idx_to_class"),
)
_JOINED = r"[ \t]*[,;\t:][ \t]*"


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads the class names of a file, or of a packaged list, in the order of the logits.

    Forms:
        Text: a name a line; or a number and a name a line, in either order, as in ``classInd.txt``.
        CSV, TSV: a column with the names and perhaps one with their numbers, named by a first line (``id,name``), or
            two columns without one.
        JSON, YAML: a list of names, or a table from name to number or from number to name, by itself or under
            ``id2label`` (transformers), ``label2id`` or ``names``. PyTorchVideo's names in quotes lose these.

    Args:
        path: The file; or the name of a packaged list (`stvid.classes.class_lists`), unless there is such a file.

    Raises:
        ManifestError: If there is neither, the file holds no names, or its numbers are no places of logits.
    """
    source = expand_home(os.fspath(path))
    if not os.path.isfile(source):
        if source in class_lists():
            return class_list(source)
        why = "is a folder" if os.path.isdir(source) else "no such file"
        raise ManifestError(f"{source}: {why}, and no packaged list of class names{nearest(source, class_lists())}")
    text = read_text(source)
    suffix = os.path.splitext(source)[1].lower()
    if suffix == ".json":
        names = _of_value(parse_json(text, source, unique_keys=True), source)
    elif suffix in (".yaml", ".yml") or re.match(r'\s*(\{|\[\s*["{])', text):  # JSON is YAML, too
        names = _of_value(_parse_yaml(text, source), source)
    else:
        names = _of_lines(text, source, table=suffix in (".csv", ".tsv"))
    plain = [_plain(name) for name in names]
    for name in plain:
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
            raise ManifestError(f"{source}: the class name {name!r} holds a control character")
    return checked_class_names(plain, source)


def _plain(name: str) -> str:
    """Returns a name without the quotes around it, with spaces for tabs, and with composed letters."""
    name = name.replace("\t", " ").strip()
    if len(name) > 2 and name[0] == name[-1] == '"':
        name = name[1:-1].replace('""', '"').strip()
    return unicodedata.normalize("NFC", name)


def _whole_number(value: Any) -> int | None:
    """Returns a whole number of 0 or more, which may be written as a text; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    return None


def _in_order(pairs: Iterable[Pair], source: str) -> list[str]:
    """Returns names in the order of their numbers, which run from 0 or from 1 without gaps.

    Raises:
        ManifestError: If they do not; the message names the first number that is wrong.
    """
    found = sorted(pairs, key=lambda pair: pair[0])
    numbers = [number for number, _ in found]
    if numbers[0] < 0:
        raise ManifestError(f"{source}: {numbers[0]} is no place of a class; the numbers run from 0 or from 1")
    first = 1 if numbers[:1] == [1] else 0
    if numbers != list(range(first, first + len(numbers))):
        twice = next((one for one, other in itertools.pairwise(numbers) if one == other), None)
        missing = next(number for number in itertools.count(first) if number not in numbers)
        what = f"{missing} is missing" if twice is None else f"{twice} occurs twice"
        raise ManifestError(
            f"{source}: the numbers of the classes do not run from 0 to {len(numbers) - 1} (or from 1): {what}"
        )
    return [name for _, name in found]


# --- JSON and YAML ----------------------------------------------------------------------------------------------------


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which PyYAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key occurs twice", node.start_mark)
        return mapping


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # a SafeLoader: it makes plain values only
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ManifestError(f"{source}{where}: is neither JSON nor YAML ({error.problem})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # limits of PyYAML, and dates that do not exist
        reason = " ".join(str(error).split())[:120]
        raise ManifestError(f"{source}: is neither JSON nor YAML ({reason})") from error


def _of_value(content: Any, source: str) -> list[str]:
    """Returns the names of a JSON or YAML value."""
    for _ in range(3):  # a table of its own within a larger one
        if not isinstance(content, Mapping) or "id2label" in content or "label2id" in content:
            break
        inner = next((key for key in _KEYS if isinstance(content.get(key), (Mapping, list))), None)
        if inner is None:
            break
        content, source = content[inner], f"{source}: {inner}"
    if isinstance(content, Mapping):
        tables = [_of_table(content[key], f"{source}: {key}") for key in ("id2label", "label2id") if key in content]
        if tables:
            if tables[0] != tables[-1]:
                raise ManifestError(f"{source}: id2label and label2id give the classes in different orders")
            return tables[0]
        return _of_table(content, source)
    if isinstance(content, list) and content:
        if all(isinstance(name, str) for name in content):
            return content
        if all(isinstance(item, Mapping) for item in content):
            return _of_records(content, source)
        _check_texts(content, source)
    raise ManifestError(f"{source}: needs a list of names, or a table from name to number or from number to name")


def _of_table(table: Any, source: str) -> list[str]:
    """Returns the names of a table from name to number, or from number to name."""
    if not isinstance(table, Mapping) or not table:
        raise ManifestError(f"{source}: needs a table from name to number or from number to name")
    keys = [_whole_number(key) for key in table]
    values = [_whole_number(value) for value in table.values()]
    readings: list[list[Pair]] = []
    if None not in values and all(isinstance(key, str) or _whole_number(key) is not None for key in table):
        readings.append([(number, str(key)) for number, key in zip(values, table, strict=True) if number is not None])
    if None not in keys and all(isinstance(name, str) for name in table.values()):
        named = zip(keys, table.values(), strict=True)
        readings.append([(number, name) for number, name in named if number is not None])
    if not readings:
        if None not in keys or None not in values:
            _check_texts(table.values() if None not in keys else table, source)
        wrong = next((v for v, number in zip(table.values(), values, strict=True) if number is None), next(iter(table)))
        raise ManifestError(
            f"{source}: the values are not numbers of classes, and the keys neither, first {str(wrong)[:60]!r}; needs "
            "a table from name to number or from number to name"
        )
    if len(readings) == 1:
        return _in_order(readings[0], source)
    # Names that are numbers themselves: only one of the readings need have places of logits.
    fitting = [reading for reading in readings if sorted(number for number, _ in reading) == list(range(len(reading)))]
    orders = [[_plain(name) for name in _in_order(reading, source)] for reading in fitting or readings[:1]]
    if orders[0] != orders[-1]:
        raise ManifestError(f"{source}: both sides are numbers, so it is not known which are the names; give a list")
    return orders[0]


def _check_texts(names: Iterable[Any], source: str) -> None:
    """Raises ManifestError if a name is no text: YAML takes no and yes for truth values, and numbers for numbers."""
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None and not isinstance(odd, (Mapping, list)):
        reason = "YAML reads a bare no, off, yes or on so; " if isinstance(odd, bool) else ""
        raise ManifestError(
            f"{source}: needs a list of names, and {str(odd)[:60]} is no text ({reason}put quotes around it)"
        )


def _of_records(records: Sequence[Mapping[Any, Any]], source: str) -> list[str]:
    """Returns the names of a list of tables, as in ``[{"id": 0, "name": "run"}]``."""
    columns = [str(key) for key in records[0]]
    table: Table = [(0, columns)]
    for number, record in enumerate(records, start=1):
        if [str(key) for key in record] != columns or not all(isinstance(v, (str, int)) for v in record.values()):
            raise ManifestError(f"{source}, item {number}: needs a name and a number, as {', '.join(columns)!r}")
        table.append((number, [str(value) for value in record.values()]))
    names = _of_columns(table, source)
    if names is None:
        raise ManifestError(f"{source}: no column is called name or label; it has {', '.join(columns)!r}")
    return names


# --- text and tables --------------------------------------------------------------------------------------------------


def _of_lines(text: str, source: str, *, table: bool) -> list[str]:
    """Returns the names of a text file or a table."""
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    delimiter = next((sign for sign in "\t;," if sign in lines[0]), None)
    if delimiter is not None and (table or _heads_numbers(lines, delimiter)):
        # Names with commas need quotes in a table; in a list of lines they need none (Something-Something).
        names = _of_columns(parse_table(text, source, delimiter=delimiter), source)
        if names is not None:
            return names
    headed = len(lines) > 1 and _names_columns(re.split(r"[\s,;:]+", lines[0]))
    for part in (lines[1:], lines) if headed else (lines,):
        if (names := _numbered(part, source)) is not None:
            return names
    if table:
        cells = [cells for _, cells in parse_table(text, source)]
        if len(cells[0]) > 1 and all(len(row) == len(cells[0]) for row in cells):
            raise ManifestError(f"{source}: has {len(cells[0])} columns; name them in a first line, as id,name")
    headers = {*_LONE_HEADERS, *_NAME_WORDS} if table else _LONE_HEADERS
    return lines[1:] if len(lines) > 1 and _word(lines[0]) in headers else lines


def _word(cell: str) -> str:
    """Returns a word of a header as the lists above have it."""
    return re.sub(r"[\s_-]", "", cell).lower().strip('"')


def _names_columns(cells: Sequence[str]) -> bool:
    """Whether the cells of a first line name a column of names and one of numbers."""
    words = {_word(cell) for cell in cells}
    return len(words) > 1 and bool(words & set(_NAME_WORDS)) and bool(words & set(_NUMBER_WORDS))


def _heads_numbers(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the first line names columns, and each other line begins or ends with a number."""
    beside = re.compile(rf'"?[0-9]+"?[ \t]*{delimiter}.*|.*{delimiter}[ \t]*"?[0-9]+"?')
    return _names_columns(lines[0].split(delimiter)) and all(beside.fullmatch(line) for line in lines[1:])


def _of_columns(table: Table, source: str) -> list[str] | None:
    """Returns the names of a table with a header; None if its first line is none."""
    header = table[0][1]
    words = [_word(cell) for cell in header]
    body = table[1:]
    if len(header) < 2 or not body or any(_whole_number(cell) is not None for cell in header):
        return None
    if len({len(header), *(len(cells) for _, cells in body)}) > 1 and not set(words) & {*_NAME_WORDS, *_NUMBER_WORDS}:
        return None  # a line of its own that happens to hold a comma
    for number, cells in body:
        if len(cells) != len(header):
            raise ManifestError(
                f"{source}, line {number}: has {len(cells)} columns, not {len(header)} ({','.join(header)!r}); put "
                "quotes around a name that holds a comma"
            )
    columns = [[cells[place].strip() for _, cells in body] for place in range(len(header))]
    counted = [place for place, column in enumerate(columns) if all(_whole_number(cell) is not None for cell in column)]
    numbers = next((words.index(w) for w in _NUMBER_WORDS if w in words and words.index(w) in counted), None)
    names = next((words.index(w) for w in _NAME_WORDS if w in words and words.index(w) != numbers), None)
    if len(header) == 2 and numbers is None and len(counted) == 1:
        (numbers,) = counted  # a header of other words: nothing else has numbers below it
    if names is None and numbers is not None and len(header) == 2:
        names = 1 - numbers
    if names is None or names == numbers:
        return None
    if numbers is None:
        said = next((word for word in words if word in ("id", "index", "idx", "classid", "labelid", "number")), None)
        if said is not None:
            wrong = next(row for row, cell in enumerate(columns[words.index(said)]) if _whole_number(cell) is None)
            raise ManifestError(
                f"{source}, line {body[wrong][0]}: {header[words.index(said)]!r} is "
                f"{columns[words.index(said)][wrong]!r}, not the number of a class"
            )
        return columns[names]
    pairs = zip(columns[numbers], columns[names], strict=True)
    return _in_order(((int(number), name) for number, name in pairs), source)


def _numbered(lines: Sequence[str], source: str) -> list[str] | None:
    """Returns the names of lines that each have a number before or behind the name; None if they have none.

    Raises:
        ManifestError: If most of the lines have a number, but not all, or some have two.
    """
    before = [re.fullmatch(rf'"?(-?[0-9]{{1,9}})"?(?:{_JOINED}|[.)]?[ \t]+)(.+)', line) for line in lines]
    behind = [re.fullmatch(rf'(.+?){_JOINED}"?(-?[0-9]{{1,9}})"?', line) for line in lines]
    spaced = [re.fullmatch(r"(.+?)[ ]+([0-9]{1,9})", line) for line in lines]
    if all(before) and (all(behind) or all(match and match[1].isdecimal() for match in spaced)):
        raise ManifestError(f"{source}: each line begins and ends with a number; one number and one name are needed")
    for matches, number, name in ((before, 1, 2), (behind, 2, 1)):
        found = [(int(match[number]), match[name]) for match in matches if match]
        if len(found) == len(lines):
            return _in_order(found, source)
        if 2 * len(found) > len(lines):
            odd = next(line for line, match in zip(lines, matches, strict=True) if not match)
            raise ManifestError(
                f"{source}: {len(found)} of {len(lines)} lines have a number beside the name, but not {odd[:60]!r}; a "
                "list of names that hold numbers can be given as JSON"
            )
    pairs = [(int(match[2]), match[1]) for match in spaced if match]
    if len(pairs) == len(lines) and len({name for _, name in pairs}) == len(pairs):
        return _in_order(pairs, source)  # otherwise the number belongs to the name, as in "gesture 1", "gesture 2"
    return None
