from __future__ import annotations

import collections
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from stvid.weight_files.legacy import read_pickle
from stvid.weight_files.pickles import DamagedFile, Machine
from stvid.weight_files.placeholders import Placeholder
from stvid.weight_files.rebuilders import TABLE, ArrayType, Storage, array_of, strided

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.arange(3, dtype=">f4"),
    np.arange(3, dtype="<i2"),
    np.array(2.5),
    np.zeros((0, 3), np.float16),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array(["a", "bc"]),
    np.arange(5000.0),
    np.float64(71.25),
    np.int64(3),
    np.bool_(True),
]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_numbers_of_numpy(protocol: int) -> None:
    again = Machine(memoryview(bytearray(pickle.dumps(ARRAYS, protocol=protocol))), TABLE).load()
    for array, read in zip(ARRAYS, again, strict=True):
        assert type(read) is type(array) and read.dtype == array.dtype and np.array_equal(read, array)


def test_an_array_of_python_2() -> None:
    raw = np.arange(3, dtype=np.float32).tobytes()
    data = (
        b"\x80\x02}q\x01U\x06conv_wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x03\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )
    (array,) = read_pickle(memoryview(bytearray(data)), collections.Counter()).values()
    assert array.dtype == np.float32 and array.tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_containers(protocol: int) -> None:
    content = {
        "ordered": collections.OrderedDict(b=1, a=2),
        "default": collections.defaultdict(list, loss=[1.0]),
        "counter": collections.Counter("aab"),
        "queue": collections.deque([1, 2], maxlen=3),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "layout": torch.strided,
    }
    again = Machine(memoryview(pickle.dumps(content, protocol=protocol)), TABLE).load()
    assert again == content and list(again["ordered"]) == ["b", "a"]
    assert {key: type(value) for key, value in again.items()} == {key: type(value) for key, value in content.items()}
    paths = [pathlib.PurePosixPath("runs/a"), pathlib.PureWindowsPath("b")]
    assert Machine(memoryview(pickle.dumps(paths)), TABLE).load() == ["runs/a", "b"]


class Call:
    """Is pickled as the call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def rebuilt(function: Any, *args: Any) -> Any:
    return read_pickle(memoryview(bytearray(pickle.dumps(Call(function, *args)))), collections.Counter())


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((0, (3,), (1,)), "reaches beyond"),
        ((1, (2,), (1,)), "reaches beyond"),
        ((0, (2,), (2,)), "reaches beyond"),
        ((0, (1 << 40, 1 << 40), (1, 1)), "reaches beyond"),
        ((3, (0,), (1,)), "reaches beyond"),
        ((-1, (1,), (1,)), "cannot be"),
        ((0, (-1,), (1,)), "cannot be"),
        ((0, (2,), (-1,)), "cannot be"),
        ((0, (2.0,), (1,)), "cannot be"),
        ((0, (1,), (1, 1)), "differ in length"),
        ((0, (1 << 40,), (0,)), "is expanded"),
        ((0, (1,) * 100, (1,) * 100), "no list of numbers"),
        ((0, "22", (1, 1)), "no list of numbers"),
    ],
)
def test_tensors_stay_within_their_storage(args: tuple[Any, ...], reason: str) -> None:
    storage = Storage(torch.ones(2).untyped_storage(), torch.float32)
    with pytest.raises(DamagedFile, match=reason):
        strided(storage, *args)
    assert strided(storage, 1, (1,), (1,)).tolist() == [1]
    assert strided(storage, 0, (3, 2), (0, 1)).tolist() == [[1, 1]] * 3
    with pytest.raises(DamagedFile, match="without a storage"):
        strided("text", 0, (1,), (1,))


@pytest.mark.parametrize(
    ("raw", "shape", "reason"),
    [
        (b"1234", (2,), "has 4 bytes instead of 8"),
        (b"1234", (1 << 40,), "instead of"),
        (b"12345678", (1,), "has 8 bytes instead of 4"),
        (b"1234", (-1,), "cannot be"),
        (b"1234", 1, "no list of numbers"),
        (7, (1,), "are no bytes"),
    ],
)
def test_arrays_have_the_bytes_of_their_shape(raw: Any, shape: Any, reason: str) -> None:
    with pytest.raises(DamagedFile, match=reason):
        array_of(raw, ArrayType(np.dtype("<f4")), shape)


def test_arrays_of_objects_are_placeholders() -> None:
    made = rebuilt(list, [np.array([1, "a"], dtype=object), np.zeros(2, dtype=[("x", "f4")])])
    assert all(isinstance(value, Placeholder) for value in made)


def test_bfloat16_of_jax_is_a_tensor() -> None:
    state = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\x04\x80\x3f\x00\x40"
    data += b"cnumpy\ndtype\ncml_dtypes\nbfloat16\nK\x00K\x01\x87R"
    made = Machine(memoryview(data + state + b"K\x02\x85U\x01CtR."), TABLE).load()
    assert torch.equal(made, torch.tensor([1.0, 2.0], dtype=torch.bfloat16))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_tensors_are_checked() -> None:
    good = torch.eye(3).to_sparse()
    assert torch.equal(rebuilt(list, [good])[0].to_dense(), torch.eye(3))
    assert torch.equal(rebuilt(list, [torch.eye(3).to_sparse_csr()])[0].to_dense(), torch.eye(3))
    parts = (torch.tensor([[10]]), torch.ones(1), [3], True)
    with pytest.raises(DamagedFile, match="index"):
        rebuilt(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, parts)


def test_plain_values_of_odd_arguments_are_placeholders() -> None:
    for function, args in (
        (bytearray, (1 << 40,)),
        (set, ("text",)),
        (dict, (3,)),
        (collections.OrderedDict, ([1],)),
        (torch.device, ("no such device",)),
        (pathlib.PurePosixPath, (3,)),
    ):
        data = pickle.dumps({"function": function, "args": args})
        assert data  # both can be pickled; the call is put together by hand
        made = Machine(memoryview(b"\x80\x04" + _global(function) + pickle.dumps(args, 2)[2:-1] + b"R."), TABLE).load()
        assert isinstance(made, Placeholder) and made.args == args


def _global(function: Any) -> bytes:
    return f"c{function.__module__}\n{function.__name__}\n".encode()
