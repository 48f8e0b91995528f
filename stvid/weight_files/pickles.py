"""Reads pickles without running anything: a small machine for their opcodes, which calls code of this package alone.

The standard unpickler imports what a file names and calls it. Here a name is only looked up in a table of rebuilders
(see `stvid.weight_files.rebuilders`); any other name becomes a `Placeholder`, on which all later instructions (calls,
states, items) are noted and none is done. Sizes are checked against the bytes that are there before memory is taken,
and keys are simple values, so that a small file can neither fill the memory nor keep the processor busy.

The opcodes are those of CPython's ``Lib/pickletools.py``, protocols 0 to 5, with the strings of Python 2.
"""

from __future__ import annotations

import codecs
import collections
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from stvid.weight_files.placeholders import Placeholder, shown_name

__all__ = ["DamagedFile", "Deferred", "ForeignValue", "Machine", "Named", "Rebuild", "checked_key"]

Rebuild = Callable[[tuple[Any, ...]], Any]
BULK = 4096  # bytes from which on a string of a file is given as a view of the file, not as a copy
MAX_DIGITS = 4000
SIMPLE = (str, bytes, int, float, bool, type(None), complex)
HASHED_BY_PLACE = (torch.dtype, torch.device, torch.Tensor, np.generic)


class DamagedFile(ValueError):
    """A file that does not hold what its first bytes promise; the message says where it breaks."""


class ForeignValue(DamagedFile):
    """Arguments that make no plain value; the call is noted as one of a foreign class."""


class Named:
    """A class or function that a pickle names.

    Attributes:
        name: Module and name, such as ``collections.OrderedDict``.
        rebuild: Makes the value of arguments, in the place of the class or function; None for a foreign one.
    """

    __slots__ = ("name", "rebuild")

    def __init__(self, name: str, rebuild: Rebuild | None) -> None:
        self.name = name
        self.rebuild = rebuild

    def __repr__(self) -> str:
        return f"<name {self.name}>"


class Deferred:
    """A value that is complete once the pickle gives its state; a later reference gets the complete value.

    Attributes:
        finish: Makes the value of the state.
        slots: Numbers under which the machine remembers it.
    """

    __slots__ = ("finish", "slots")

    def __init__(self, finish: Callable[[Any], Any]) -> None:
        self.finish = finish
        self.slots: list[int] = []


def checked_key(key: Any) -> Any:
    """Returns a value that may be a key; hashing others could take forever (tuples in tuples) or run their code."""
    if isinstance(key, memoryview):
        return bytes(key)
    if type(key) in SIMPLE or isinstance(key, (Placeholder, Named, *HASHED_BY_PLACE)):
        return key
    if isinstance(key, tuple) and all(type(part) in SIMPLE or isinstance(part, Named) for part in key):
        return key
    raise DamagedFile(f"a {type(key).__name__} cannot be a key")


class Machine:
    """Runs one pickle.

    Args:
        data: The bytes, from the beginning of the file.
        table: What is rebuilt, by module and name; values that are not functions stand for themselves (``torch.int8``).
        persistent: Returns what a persistent id stands for; None refuses such ids.
        foreign: Counts the foreign classes and functions that were asked for.
    """

    def __init__(
        self,
        data: memoryview,
        table: Mapping[str, Any],
        *,
        persistent: Callable[[Any], Any] | None = None,
        foreign: Counter[str] | None = None,
    ) -> None:
        self.data = data
        self.table = table
        self.persistent = persistent
        self.foreign: Counter[str] = Counter() if foreign is None else foreign
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, Any] = {}

    def load(self, start: int = 0) -> Any:
        """Returns the value of the pickle that begins at a position; `position` is behind it then.

        Raises:
            DamagedFile: If the bytes are no pickle, or one that cannot be.
        """
        self.position = start
        self.stack, self.marks, self.memo = [], [], {}
        data, steps = self.data, _STEPS
        try:
            while (code := data[self.position]) != STOP:
                self.position += 1
                steps[code](self)
            self.position += 1
            return self._settled(self.stack.pop())
        except KeyError as error:
            raise DamagedFile(
                f"byte {self.position - 1} is no instruction of a pickle, or refers to nothing"
            ) from error
        except IndexError as error:
            where = "ends too early" if self.position >= len(data) else f"breaks at byte {self.position}"
            raise DamagedFile(f"the pickle {where}") from error
        except DamagedFile:
            raise
        except (ValueError, TypeError, OverflowError, MemoryError, RuntimeError, struct.error) as error:
            reason = " ".join(str(error).split())[:100]
            raise DamagedFile(f"the pickle breaks at byte {self.position}: {reason}") from error

    # --- bytes --------------------------------------------------------------------------------------------------------

    def take(self, count: int) -> memoryview:
        """Returns the next bytes."""
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise DamagedFile(f"the pickle ends too early: byte {self.position} promises {count} more")
        view = self.data[self.position : end]
        self.position = end
        return view

    def number(self, width: int, *, signed: bool = False) -> int:
        """Returns the next bytes as a number, the lowest byte first."""
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self, limit: int = 1 << 20) -> bytes:
        """Returns the bytes up to the end of the line, without it."""
        window = bytes(self.data[self.position : self.position + limit])
        end = window.find(b"\n")
        if end < 0:
            raise DamagedFile(f"the line at byte {self.position} has no end")
        self.position += end + 1
        return window[:end]

    def bulk(self, width: int) -> bytes | memoryview:
        """Returns bytes whose number comes first; many of them as a view of the file."""
        view = self.take(self.number(width))
        return view if len(view) >= BULK else bytes(view)

    # --- the stack ----------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """Returns all values since the last mark and takes them off."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def remember(self, slot: int) -> None:
        """Keeps the value on the top under a number."""
        value = self.stack[-1]
        self.memo[slot] = value
        if isinstance(value, Deferred):
            value.slots.append(slot)

    def _settled(self, value: Any) -> Any:
        return Placeholder("unfinished") if isinstance(value, Deferred) else value

    # --- names, calls and states --------------------------------------------------------------------------------------

    def find(self, module: Any, name: Any) -> Any:
        """Returns what the table has under a name, else a name that stands for itself."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedFile("the name of a class is not text")
        full = normal_name(module, name)
        if full not in self.names:
            known = self.table.get(full)
            self.names[full] = Named(full, known) if known is None or callable(known) else known
        return self.names[full]

    def call(self, function: Any, args: Any) -> Any:
        """Rebuilds a known value, or notes the call of a foreign class."""
        if not isinstance(args, tuple):
            raise DamagedFile("the arguments of a call are not a tuple")
        if isinstance(function, Named):
            name = function.name
            if function.rebuild is not None:
                try:
                    return function.rebuild(args)
                except ForeignValue:
                    return self._note(name, args)
            if name == "copyreg._reconstructor" and len(args) == 3:  # (class, base, what the base is made of)
                function, args = args[0], args[2:]
                name = getattr(function, "name", name)
            elif name in ("copyreg.__newobj__", "copyreg.__newobj_ex__") and args:
                return self.call(args[0], args[1:] if name.endswith("__newobj__") else ())
        else:
            name = function.name if isinstance(function, Placeholder) else type(function).__name__
        return self._note(name, args)

    def _note(self, name: str, args: tuple[Any, ...]) -> Placeholder:
        """Makes a placeholder, and counts it."""
        self.foreign[shown_name(name)] += 1
        made = Placeholder(name, args)
        if len(args) == 1 and isinstance(args[0], dict):  # of a class that is a mapping
            made.entries.update(args[0])
        return made

    def build(self) -> None:
        """Gives the value on the top its state; containers and tensors of ours have none that matters."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.state = state
        elif isinstance(target, Deferred):
            value = target.finish(state)
            self.stack[-1] = value
            for slot in target.slots:
                self.memo[slot] = value
        elif hasattr(type(target), "take_state"):
            target.take_state(state)

    def extend(self, items: list[Any]) -> None:
        """Appends to the list on the top, or adds to the set."""
        target = self.stack[-1]
        items = [self._settled(item) for item in items]
        if isinstance(target, list | collections.deque):
            target.extend(items)
        elif isinstance(target, set):
            target.update(checked_key(item) for item in items)
        elif isinstance(target, Placeholder):
            target.elements.extend(items)
        else:
            raise DamagedFile(f"nothing can be appended to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        """Sets keys and values, which alternate, in the mapping on the top."""
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Placeholder) else target
        if not isinstance(entries, dict):
            raise DamagedFile(f"a {type(target).__name__} has no keys")
        if len(items) % 2:
            raise DamagedFile("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[checked_key(key)] = self._settled(value)


def normal_name(module: str, name: str) -> str:
    """Returns module and name as the newest Python, numpy and torch have them, or the oldest where they moved."""
    module = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}.get(module, module)
    if module.startswith("numpy._core"):
        module = "numpy.core" + module[len("numpy._core") :]
    if module == "pathlib._local":
        module = "pathlib"
    return f"{module}.{name}"


# --- the instructions -------------------------------------------------------------------------------------------------

STOP = ord(".")


def _text_number(machine: Machine) -> int | bool:
    line = machine.line()
    if line in (b"00", b"01"):
        return line == b"01"
    return int(_short(line), 0)


def _short(line: bytes) -> bytes:
    if len(line) > MAX_DIGITS:
        raise DamagedFile("a number has too many digits")
    return line


def _long_number(machine: Machine) -> int:
    return int(_short(machine.line()).rstrip(b"L"), 0)


def _old_text(value: bytes | memoryview) -> str | memoryview:
    """Returns a string of Python 2, which may be text or bytes; much of it is bytes."""
    return value if isinstance(value, memoryview) else value.decode("latin-1")


def _quoted(machine: Machine) -> str:
    line = machine.line().strip()
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise DamagedFile("a text without quotation marks")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _text(machine: Machine, width: int) -> str:
    return str(machine.take(machine.number(width)), "utf-8", "surrogatepass")


def _dict_of(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.push({})
    machine.set_items(items)


def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _tuple_of(machine: Machine, count: int) -> None:
    items = machine.stack[-count:]
    if len(items) < count:
        raise IndexError
    del machine.stack[-count:]
    machine.push(tuple(machine._settled(item) for item in items))


def _reduce(machine: Machine) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.push(machine.call(function, args))


def _new_with_keywords(machine: Machine) -> None:
    _, args, cls = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.push(machine.call(cls, args))


def _instance(machine: Machine) -> None:
    module, name = machine.line().decode("latin-1"), machine.line().decode("latin-1")
    args = machine.pop_mark()
    machine.push(machine.call(machine.find(module, name), tuple(args)))


def _object(machine: Machine) -> None:
    cls, *args = machine.pop_mark()
    machine.push(machine.call(cls, tuple(args)))


def _global(machine: Machine) -> None:
    machine.push(machine.find(machine.line().decode("utf-8"), machine.line().decode("utf-8")))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.push(machine.find(module, name))


def _extension(machine: Machine, width: int) -> None:
    machine.push(Named(f"copyreg.extension{machine.number(width)}", None))


def _persistent(machine: Machine, key: Any) -> None:
    if machine.persistent is None:
        raise DamagedFile("it refers to data outside the pickle")
    machine.push(machine.persistent(key))


def _mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _protocol(machine: Machine) -> None:
    if (version := machine.number(1)) > 5:
        raise DamagedFile(f"protocol {version} of pickle is not known")


def _out_of_band(machine: Machine) -> None:
    raise DamagedFile("it refers to buffers outside the file")


def _frozen(machine: Machine) -> None:
    machine.push(frozenset(checked_key(item) for item in machine.pop_mark()))


def _list_of(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.push([machine._settled(item) for item in items])


def _all_tuple(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.push(tuple(machine._settled(item) for item in items))


_STEPS: dict[int, Callable[[Machine], Any]] = {
    0x80: _protocol,
    0x95: lambda machine: machine.take(8),  # a frame is a hint for readers from a stream
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): lambda machine: machine.pop_mark(),
    ord("2"): lambda machine: machine.push(machine.stack[-1]),
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("I"): lambda machine: machine.push(_text_number(machine)),
    ord("J"): lambda machine: machine.push(machine.number(4, signed=True)),
    ord("K"): lambda machine: machine.push(machine.number(1)),
    ord("M"): lambda machine: machine.push(machine.number(2)),
    ord("L"): lambda machine: machine.push(_long_number(machine)),
    0x8A: lambda machine: machine.push(machine.number(machine.number(1), signed=True)),
    0x8B: lambda machine: machine.push(machine.number(machine.number(4, signed=True), signed=True)),
    ord("F"): lambda machine: machine.push(float(_short(machine.line()))),
    ord("G"): lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),
    ord("S"): lambda machine: machine.push(_quoted(machine)),
    ord("T"): lambda machine: machine.push(_old_text(machine.bulk(4))),
    ord("U"): lambda machine: machine.push(_old_text(machine.bulk(1))),
    ord("B"): lambda machine: machine.push(machine.bulk(4)),
    ord("C"): lambda machine: machine.push(machine.bulk(1)),
    0x8E: lambda machine: machine.push(machine.bulk(8)),
    0x96: lambda machine: machine.push(machine.bulk(8)),
    0x97: _out_of_band,
    0x98: lambda machine: None,  # whether a buffer may be written to
    ord("V"): lambda machine: machine.push(machine.line().decode("raw-unicode-escape")),
    ord("X"): lambda machine: machine.push(_text(machine, 4)),
    0x8C: lambda machine: machine.push(_text(machine, 1)),
    0x8D: lambda machine: machine.push(_text(machine, 8)),
    ord("]"): lambda machine: machine.push([]),
    ord("l"): _list_of,
    ord("a"): lambda machine: machine.extend([machine.stack.pop()]),
    ord("e"): lambda machine: machine.extend(machine.pop_mark()),
    ord(")"): lambda machine: machine.push(()),
    ord("t"): _all_tuple,
    0x85: lambda machine: _tuple_of(machine, 1),
    0x86: lambda machine: _tuple_of(machine, 2),
    0x87: lambda machine: _tuple_of(machine, 3),
    ord("}"): lambda machine: machine.push({}),
    ord("d"): _dict_of,
    ord("s"): _set_item,
    ord("u"): lambda machine: machine.set_items(machine.pop_mark()),
    0x8F: lambda machine: machine.push(set()),
    0x90: lambda machine: machine.extend(machine.pop_mark()),
    0x91: _frozen,
    ord("g"): lambda machine: machine.push(machine.memo[int(_short(machine.line()))]),
    ord("h"): lambda machine: machine.push(machine.memo[machine.number(1)]),
    ord("j"): lambda machine: machine.push(machine.memo[machine.number(4)]),
    ord("p"): lambda machine: machine.remember(int(_short(machine.line()))),
    ord("q"): lambda machine: machine.remember(machine.number(1)),
    ord("r"): lambda machine: machine.remember(machine.number(4)),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    ord("c"): _global,
    0x93: _stack_global,
    ord("i"): _instance,
    ord("o"): _object,
    0x81: _reduce,
    0x92: _new_with_keywords,
    ord("R"): _reduce,
    ord("b"): lambda machine: machine.build(),
    0x82: lambda machine: _extension(machine, 1),
    0x83: lambda machine: _extension(machine, 2),
    0x84: lambda machine: _extension(machine, 4),
    ord("P"): lambda machine: _persistent(machine, machine.line().decode("latin-1")),
    ord("Q"): lambda machine: _persistent(machine, machine.stack.pop()),
}
