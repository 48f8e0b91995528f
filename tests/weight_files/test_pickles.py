from __future__ import annotations

import os
import pickle
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stvid.weight_files.pickles import DamagedFile, Machine
from stvid.weight_files.placeholders import Placeholder
from stvid.weight_files.rebuilders import TABLE


def run(data: bytes, foreign: Counter[str] | None = None) -> Any:
    return Machine(memoryview(data), TABLE, foreign=foreign).load()


class Call:
    """Is pickled as the call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -5,
    255,
    65535,
    2**31,
    -(2**31),
    10**40,
    -(10**40),
    1.5,
    float("inf"),
    "text",
    "ü\n€",
    b"",
    b"bytes",
    b"x" * 300,
    bytearray(b"12"),
    (),
    (1,),
    (1, 2),
    (1, 2, 3),
    (1, 2, 3, 4),
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": 1}, 2: "c", None: 0, (1, "x"): 3},
    {1, 2},
    frozenset("ab"),
    1j,
    [b"shared"] * 3,
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(protocol: int) -> None:
    again = run(pickle.dumps(PLAIN, protocol=protocol))
    assert again == PLAIN
    assert [type(value) for value in again if not isinstance(value, bytes)] == [
        type(value) for value in PLAIN if not isinstance(value, bytes | bytearray)
    ]


def test_references_are_kept() -> None:
    inner = [1]
    ring: dict[str, Any] = {"a": inner, "b": inner}
    ring["itself"] = ring
    again = run(pickle.dumps(ring))
    assert again["a"] is again["b"] and again["itself"] is again


def test_long_strings_are_views_of_the_file() -> None:
    data = bytearray(pickle.dumps({"raw": b"y" * 100_000}, protocol=4))
    view = run(data)["raw"]  # type: ignore[arg-type]
    assert isinstance(view, memoryview) and view.obj is data and bytes(view) == b"y" * 100_000


def test_texts_of_python_2() -> None:
    assert run(b"(dp0\nS'key'\np1\nS'a\\x00\\xff'\np2\ns.") == {"key": "a\x00\xff"}  # protocol 0
    assert run(b"\x80\x02}q\x01U\x03keyq\x02U\x02a\xffq\x03s.") == {"key": "a\xff"}
    assert run(b"\x80\x02T\x03\x00\x00\x00a\xffb.") == "a\xffb"
    assert run(b"\x80\x02cUserDict\nUserDict\nq\x01)R.").name == "collections.UserDict"


def test_old_instances_and_objects_are_placeholders() -> None:
    assert run(b"(I1\nios\nsystem\n.").args == (1,)
    assert run(b"(cos\nsystem\nK\x01o.").name == "os.system"
    made = run(b"ccopy_reg\n_reconstructor\n(cframe\nConfig\nc__builtin__\ndict\n}S'a'\nI1\nstR}S'b'\nI2\nsb.")
    assert isinstance(made, Placeholder) and made.name == "frame.Config"
    assert made.entries == {"a": 1} and made.attributes == {"b": 2}


HOSTILE: dict[str, Any] = {
    "a shell": Call(os.system, "touch HARMED"),
    "eval": Call(eval, "open('HARMED', 'w')"),
    "exec": Call(exec, "open('HARMED', 'w')"),
    "import": Call(__import__, "antigravity"),
    "a process": Call(subprocess.check_output, ["touch", "HARMED"]),
    "open": Call(open, "HARMED", "w"),
    "a folder": Call(os.mkdir, "HARMED"),
    "a method of a result": Call(Call, Call(os.system, "touch HARMED")),
    "a huge list": Call(list, range(1 << 40)),
    "huge bytes": Call(bytearray, 1 << 40),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_calls_are_noted_and_not_done(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps({"object": HOSTILE[name]}, protocol=protocol)
    monkeypatch.chdir(tmp_path)
    foreign: Counter[str] = Counter()
    assert isinstance(run(data, foreign)["object"], Placeholder) and foreign
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_done_to_a_foreign_object_is_noted() -> None:
    foreign: Counter[str] = Counter()
    data = b"\x80\x04ca\nb\n)R(K\x01K\x02eK\x03a(K\x04\x90\x8c\x01kK\x05s}\x8c\x01xK\x06sb."
    made = run(data, foreign)
    assert made.elements == [1, 2, 3, 4] and made.entries == {"k": 5} and made.attributes == {"x": 6}
    called = run(b"\x80\x04ca\nb\n)RK\x01\x85R.")  # the call of what a call returned
    assert isinstance(called, Placeholder) and called.args == (1,)
    assert run(b"\x80\x02\x82\x01)R.").name == "copyreg.extension1"
    assert foreign == {"a.b": 1}


def test_names_cannot_write_to_the_terminal() -> None:
    foreign: Counter[str] = Counter()
    made = run(b"\x80\x04ca\x1b[31m\nx\x07" + b"y" * 200 + b"\n)R.", foreign)
    (name,) = foreign
    assert name.isprintable() and len(name) <= 80 and repr(made).isprintable()


DAMAGED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends too early"),
    "only a stop": (b"\x80\x04.", "ends too early"),
    "no stop": (b"\x80\x04}", "ends too early"),
    "an unknown instruction": (b"\x80\x04\xff.", "byte 2 is no instruction"),
    "an unknown protocol": (b"\x80\x09.", "protocol 9"),
    "a reference to nothing": (b"\x80\x04h\x05.", "refers to nothing"),
    "marks that are missing": (b"\x80\x040000.", "breaks at byte"),
    "bytes that are not there": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "promises"),
    "a buffer that is not there": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", "promises"),
    "a number that is not there": (b"\x80\x04\x8b\xff\xff\xff\x7f\x00.", "promises"),
    "a negative length": (b"\x80\x04\x8b\xff\xff\xff\xff\x00.", "promises"),
    "a number of a million digits": (b"I" + b"9" * 1_000_000 + b"\n.", "digits"),
    "a line without an end": (b"I" + b"9" * 100, "no end"),
    "a text that is no UTF-8": (b"\x80\x04}\x8c\x02\xff\xfeNs.", "utf-8"),
    "a tuple of tuples as a key": (b"\x80\x04}N" + b"2\x86" * 60 + b"Ns.", "cannot be a key"),
    "a list as a key": (b"\x80\x04}]Ns.", "cannot be a key"),
    "a list in a set": (b"\x80\x04\x8f(]\x90.", "cannot be a key"),
    "items of a number": (b"\x80\x04K\x01\x8c\x01aNs.", "has no keys"),
    "elements of a number": (b"\x80\x04K\x01Na.", "nothing can be appended"),
    "arguments that are no tuple": (b"\x80\x04ca\nb\n]R.", "not a tuple"),
    "a class without a name": (b"\x80\x04NN\x93.", "not text"),
    "data outside": (b"\x80\x04Vx\nQ.", "outside the pickle"),
    "buffers outside": (b"\x80\x05\x97.", "outside the file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pickles_are_refused_in_words(name: str) -> None:
    data, reason = DAMAGED[name]
    with pytest.raises(DamagedFile, match=reason) as error:
        run(data)
    assert "\n" not in str(error.value)


def test_sizes_that_cost_nothing() -> None:
    assert run(b"\x80\x04}r\xff\xff\xff\x7f.") == {}  # the highest number to remember something under
    assert run(b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.") == {}  # a frame


def test_deep_nesting_needs_no_stack() -> None:
    deep = run(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".")
    assert isinstance(deep, list) and len(deep) == 1
    assert isinstance(run(b"\x80\x04N" + b"\x85" * 100_000 + b"."), tuple)
