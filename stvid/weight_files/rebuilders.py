"""Rebuilds what pickles of weights are made of: tensors, numpy's arrays and numbers, and plain containers.

Each function here stands in for the one that a pickle names, takes its arguments, and checks them: shapes and strides
against the bytes that are there, types against a list. None calls what comes out of a file. Sources of the layouts:
``torch/_utils.py`` and ``torch/storage.py`` (rebuilders of tensors), numpy's ``array_reduce`` and
``arraydescr_reduce``.
"""

from __future__ import annotations

import collections
import math
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stvid.weight_files.pickles import DamagedFile, Deferred, ForeignValue, Named, checked_key
from stvid.weight_files.placeholders import Placeholder

__all__ = ["DTYPES", "TABLE", "ArrayType", "Storage", "StorageType", "array_of", "strided"]

DTYPES: dict[str, torch.dtype] = {
    name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype) and name != "dtype"
}
"""Torch's types of elements by name."""

STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "BFloat16": "bfloat16",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "QUInt8": "quint8",
    "QInt8": "qint8",
    "QInt32": "qint32",
    "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
    "Untyped": "uint8",
}
MAX_EXPANSION = 1 << 28
"""Elements that a tensor may have beyond those of its storage, as an expanded one has."""
MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class StorageType:
    """The type of the elements of a storage, as ``torch.FloatStorage`` names it."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """The bytes that tensors share, with the type of their elements.

    Attributes:
        bytes: The storage itself.
        dtype: The type of its elements.
    """

    bytes: torch.UntypedStorage
    dtype: torch.dtype


# --- tensors ----------------------------------------------------------------------------------------------------------


def _numbers(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS:
        raise DamagedFile(f"the {what} of a tensor is no list of numbers")
    if not all(type(value) is int and 0 <= value < 1 << 62 for value in values):
        raise DamagedFile(f"the {what} of a tensor has a number that cannot be")
    return tuple(values)


def strided(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Returns a tensor on a storage.

    Raises:
        DamagedFile: If it would reach beyond the storage.
    """
    if not isinstance(storage, Storage):
        raise DamagedFile("a tensor without a storage")
    size, stride, (offset,) = _numbers(size, "shape"), _numbers(stride, "stride"), _numbers((offset,), "offset")
    if len(size) != len(stride):
        raise DamagedFile("the shape and the stride of a tensor differ in length")
    dtype = storage.dtype if dtype is None else dtype
    elements = len(storage.bytes) // dtype.itemsize
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else offset - 1
    if last >= elements or offset > elements:
        raise DamagedFile(f"a tensor of shape {size} reaches beyond its {elements} stored elements")
    if count - elements > MAX_EXPANSION:
        raise DamagedFile(f"a tensor of shape {size} is expanded from {elements} stored elements")
    return torch.empty(0, dtype=dtype).set_(storage.bytes, offset, size, stride)


def _tensor(args: tuple[Any, ...]) -> Tensor:
    storage, offset, size, stride = args[:4]
    return strided(storage, offset, size, stride)


def _tensor_of_type(args: tuple[Any, ...]) -> Tensor:
    storage, offset, size, stride, _, _, dtype = args[:7]
    if not isinstance(dtype, torch.dtype):
        raise DamagedFile("the type of a tensor is none of torch")
    return strided(storage, offset, size, stride, dtype)


def _first(args: tuple[Any, ...]) -> Any:
    return args[0] if args else Placeholder("torch.nn.parameter.Parameter", args)


def _subclass(args: tuple[Any, ...]) -> Any:
    """Rebuilds a tensor of a subclass as a plain tensor: (function, class, arguments, state)."""
    function, cls, inner = args[:3]
    if isinstance(function, Named) and function.rebuild is not None and isinstance(inner, tuple):
        return function.rebuild(inner)
    return Placeholder(getattr(cls, "name", "torch.Tensor"), args)


def _quantised(args: tuple[Any, ...]) -> Tensor:
    storage, offset, size, stride, parameters = args[:5]
    if not isinstance(storage, Storage) or not isinstance(parameters, tuple) or not parameters:
        raise DamagedFile("a quantised tensor without a storage or a scale")
    plain = strided(storage, offset, size, stride, _RAW.get(storage.dtype))
    scheme, scale, zero, *axis = parameters
    if scheme == torch.per_tensor_affine:
        return _affine(plain, float(scale), float(zero))
    if isinstance(scale, Tensor) and isinstance(zero, Tensor) and axis:
        shape = [-1 if place == axis[0] else 1 for place in range(plain.dim())]
        return _affine(plain, scale.reshape(shape).float(), zero.reshape(shape).float())
    raise DamagedFile("a quantised tensor of an unknown kind")


_RAW = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}


def _affine(plain: Tensor, scale: float | Tensor, zero: float | Tensor) -> Tensor:
    """Returns the numbers that quantised ones stand for."""
    if plain.dtype in (torch.quint4x2, torch.quint2x4):
        raise DamagedFile("a tensor of less than 8 bits is not read")
    return (plain.float() - zero) * scale


def _sparse(args: tuple[Any, ...]) -> Tensor:
    layout, data = args[:2]
    if not isinstance(data, tuple) or not all(isinstance(part, Tensor) for part in data[:2]):
        raise DamagedFile("a sparse tensor without its indices")
    if layout == torch.sparse_coo:
        indices, values, size = data[:3]
        return torch.sparse_coo_tensor(indices, values, _numbers(size, "shape"), check_invariants=True)
    outer, inner, values, size = data[:4]
    return torch.sparse_compressed_tensor(
        outer, inner, values, _numbers(size, "shape"), layout=layout, check_invariants=True
    )


def _meta(args: tuple[Any, ...]) -> Tensor:
    dtype, size, stride = args[:3]
    return torch.empty_strided(_numbers(size, "shape"), _numbers(stride, "stride"), dtype=dtype, device="meta")


def _from_numpy(args: tuple[Any, ...]) -> Any:
    array = args[0]
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _device(args: tuple[Any, ...]) -> Any:
    if not all(isinstance(arg, str | int) for arg in args):
        raise ForeignValue("the name of a device is no text")
    try:
        return torch.device(*args)
    except (RuntimeError, TypeError) as error:
        raise ForeignValue(f"there is no such device: {error}") from error


def _layout(args: tuple[Any, ...]) -> Any:
    layouts = {str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)}
    if len(args) != 1 or args[0] not in layouts:
        raise DamagedFile("an unknown layout of a tensor")
    return layouts[args[0]]


# --- arrays -----------------------------------------------------------------------------------------------------------

SIMPLE_TYPE = re.compile(r"[<>=|]?(?:[biufcSUV]\d{1,6}|[?bBhHiIlLqQefdgFD])")


class ArrayType:
    """The type of the elements of an array of numpy.

    Attributes:
        dtype: One of numpy's types, one of torch's that numpy lacks (bfloat16), or None if it holds anything else.
    """

    def __init__(self, dtype: np.dtype[Any] | torch.dtype | None) -> None:
        self.dtype = dtype

    def take_state(self, state: Any) -> None:
        """Takes the order of the bytes: ``(version, order, subtype, names, fields, ...)``."""
        if not isinstance(state, tuple) or len(state) < 5:
            raise DamagedFile("the type of an array is incomplete")
        if state[2] is not None or state[3] is not None or state[4] is not None:
            self.dtype = None
        elif isinstance(self.dtype, np.dtype) and state[1] in ("<", ">", "=", "|"):
            self.dtype = self.dtype.newbyteorder(state[1])

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 0 if self.dtype is None else self.dtype.itemsize


def _array_type(args: tuple[Any, ...]) -> ArrayType:
    text = args[0] if args else None
    if isinstance(text, Named):  # bfloat16 and float8 of ml_dtypes, which jax uses
        return ArrayType(DTYPES.get(text.name.rpartition(".")[2]))
    if isinstance(text, str) and SIMPLE_TYPE.fullmatch(text):
        return ArrayType(np.dtype(text))
    return ArrayType(None)


def _as_bytes(raw: Any) -> memoryview:
    if isinstance(raw, str):  # of a pickle of Python 2
        raw = raw.encode("latin-1")
    if not isinstance(raw, bytes | bytearray | memoryview):
        raise DamagedFile("the data of an array are no bytes")
    return memoryview(raw)


def array_of(raw: Any, kind: ArrayType, shape: Any, *, fortran: bool = False) -> Any:
    """Returns an array of numpy with its bytes; a tensor if numpy lacks the type.

    Raises:
        DamagedFile: If there are more or fewer bytes than the shape says.
    """
    view = _as_bytes(raw)
    shape = _numbers(shape, "shape")
    if kind.dtype is None:
        return Placeholder("numpy.ndarray of objects or records")
    count = math.prod(shape)
    if count * kind.itemsize != len(view):
        raise DamagedFile(f"an array of shape {shape} has {len(view)} bytes instead of {count * kind.itemsize}")
    if isinstance(kind.dtype, torch.dtype):
        flat = torch.frombuffer(bytearray(view), dtype=kind.dtype) if count else torch.empty(0, dtype=kind.dtype)
        return flat.reshape(shape[::-1]).permute(*range(len(shape) - 1, -1, -1)) if fortran else flat.reshape(shape)
    array = np.frombuffer(view, dtype=kind.dtype, count=count) if len(view) else np.empty(count, kind.dtype)
    if not array.flags.aligned or not array.flags.writeable:
        array = array.copy()
    return array.reshape(shape, order="F" if fortran else "C")


def _new_array(args: tuple[Any, ...]) -> Deferred:
    return Deferred(_array_of_state)


def _array_of_state(state: Any) -> Any:
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise DamagedFile("the state of an array is incomplete")
    shape, kind, fortran, raw = state[-4:]
    if not isinstance(kind, ArrayType):
        raise DamagedFile("an array without a type")
    if isinstance(raw, list):
        made = Placeholder("numpy.ndarray of objects or records")
        made.elements = raw
        return made
    return array_of(raw, kind, shape, fortran=bool(fortran))


def _number(args: tuple[Any, ...]) -> Any:
    kind, *raw = args
    if not isinstance(kind, ArrayType):
        raise DamagedFile("a number of numpy without a type")
    if kind.dtype is None or not raw:
        return Placeholder("numpy.object_", args)
    made = array_of(raw[0], kind, ())
    return made[()] if isinstance(made, np.ndarray) else made


def _from_buffer(args: tuple[Any, ...]) -> Any:
    raw, kind, shape, *order = args
    if not isinstance(kind, ArrayType):
        raise DamagedFile("an array without a type")
    return array_of(raw, kind, shape if isinstance(shape, tuple) else (shape,), fortran=order[:1] == ["F"])


def _jax_array(args: tuple[Any, ...]) -> Any:
    return _array_of_state(args[2])


# --- plain values -----------------------------------------------------------------------------------------------------


def _pairs(values: Any) -> dict[Any, Any]:
    if isinstance(values, dict):
        return values
    if not isinstance(values, list | tuple):
        raise ForeignValue("a mapping is not made of pairs")
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in values):
        raise ForeignValue("a mapping is not made of pairs")
    return {checked_key(key): value for key, value in values}


def _ordered(args: tuple[Any, ...]) -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict(_pairs(args[0]) if args else {})


def _default_dict(args: tuple[Any, ...]) -> collections.defaultdict[Any, Any]:
    return collections.defaultdict(None, _pairs(args[1]) if len(args) > 1 else {})


def _counter(args: tuple[Any, ...]) -> collections.Counter[Any]:
    made: collections.Counter[Any] = collections.Counter()
    dict.update(made, _pairs(args[0]) if args else {})
    return made


def _sequence(args: tuple[Any, ...]) -> Sequence[Any]:
    if not args:
        return []
    if not isinstance(args[0], list | tuple | set | frozenset):
        raise ForeignValue("a list is not made of values")
    return list(args[0])


def _set(args: tuple[Any, ...]) -> set[Any]:
    return {checked_key(value) for value in _sequence(args)}


def _queue(args: tuple[Any, ...]) -> collections.deque[Any]:
    longest = args[1] if len(args) > 1 and isinstance(args[1], int) else None
    return collections.deque(_sequence(args[:1]), longest)


def _raw(args: tuple[Any, ...]) -> bytes | memoryview:
    """Rebuilds bytes as pickles of old protocols hold them: nothing, bytes, or text of latin letters."""
    if not args:
        return b""
    if isinstance(args[0], str) and args[1:2] in (("latin1",), ("latin-1",)):
        return args[0].encode("latin-1")
    if isinstance(args[0], bytes | memoryview):
        return args[0]
    raise ForeignValue("bytes that are not made of bytes")


def _complex(args: tuple[Any, ...]) -> complex:
    if not all(type(arg) in (int, float) for arg in args):
        raise ForeignValue("a complex number is not made of numbers")
    return complex(*args[:2])


def _path(args: tuple[Any, ...]) -> str:
    if not all(isinstance(arg, str) for arg in args):
        raise ForeignValue("a path is not made of names")
    return str(pathlib.PurePosixPath(*args))


def _size(args: tuple[Any, ...]) -> torch.Size:
    return torch.Size(_numbers(args[0] if args else (), "shape"))


def _identity(args: tuple[Any, ...]) -> Any:
    return args[0]


TABLE: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.tensor._rebuild_from_type": _subclass,
    "torch.nn.parameter.Parameter": _first,
    "torch.autograd.variable.Variable": _first,
    "torch.Tensor": _first,
    "torch.TypedStorage": StorageType(torch.uint8),
    "torch.storage.TypedStorage": StorageType(torch.uint8),
    "torch.storage.UntypedStorage": StorageType(torch.uint8),
    **{f"torch.{name}Storage": StorageType(DTYPES[dtype]) for name, dtype in STORAGES.items()},
    **{f"torch.cuda.{name}Storage": StorageType(DTYPES[dtype]) for name, dtype in STORAGES.items()},
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
    **{f"torch.{name}": getattr(torch, name) for name in ("per_tensor_affine", "per_channel_affine")},
    "torch.per_channel_affine_float_qparams": torch.per_channel_affine_float_qparams,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "torch.jit._pickle.build_intlist": _identity,
    "torch.jit._pickle.build_doublelist": _identity,
    "torch.jit._pickle.build_boollist": _identity,
    "torch.jit._pickle.build_tensorlist": _identity,
    "torch.jit._pickle.restore_type_tag": _identity,
    "numpy.dtype": _array_type,
    "numpy.core.multiarray._reconstruct": _new_array,
    "numpy.core.multiarray.scalar": _number,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "jax._src.array._reconstruct_array": _jax_array,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    "collections.deque": _queue,
    "builtins.set": _set,
    "builtins.frozenset": lambda args: frozenset(_set(args)),
    "builtins.list": lambda args: list(_sequence(args)),
    "builtins.tuple": lambda args: tuple(_sequence(args)),
    "builtins.dict": lambda args: dict(_pairs(args[0])) if args else {},
    "builtins.bytes": _raw,
    "builtins.bytearray": _raw,
    "builtins.complex": _complex,
    "_codecs.encode": _raw,
    **{
        f"pathlib.{name}": _path
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
}
"""The names in a pickle that are rebuilt: functions of the arguments, and values that stand for themselves."""
