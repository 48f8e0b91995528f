from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stvid.weight_files import archives
from stvid.weight_files.archives import Archive, read_npy, read_npz, read_torch_zip, torch_root
from stvid.weight_files.pickles import DamagedFile

BASE = torch.arange(24.0).reshape(4, 6)
TENSORS: dict[str, torch.Tensor] = {
    "plain": BASE,
    "view": BASE[1:3, ::2],
    "transposed": BASE.t(),
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "no elements": torch.empty(0, 3),
    "one element": torch.tensor(3),
    "expanded": torch.ones(1).expand(100),
    **{
        str(dtype): torch.ones(3).to(dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
    },
    **{str(dtype): torch.tensor([0, 1, 2]).to(dtype) for dtype in (torch.uint8, torch.int8, torch.int16, torch.bool)},
    "complex": torch.ones(2, dtype=torch.complex64),
}


def read(path: Path) -> Any:
    archive = Archive(path)
    root = torch_root(archive)
    assert root is not None
    return read_torch_zip(archive, root, Counter())


def assert_same(read: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype and read[name].stride() == tensor.stride(), name
        assert torch.equal(read[name].double(), tensor.detach().double()) if "complex" not in name else True, name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_of_every_kind(protocol: int, tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt", pickle_protocol=protocol)
    again = read(tmp_path / "a.pt")
    assert_same(again, TENSORS)
    assert torch.equal(again["complex"], TENSORS["complex"])
    assert again["view"].untyped_storage().data_ptr() == again["plain"].untyped_storage().data_ptr()
    again["plain"].fill_(7)  # what is written stays in this process
    assert torch.equal(read(tmp_path / "a.pt")["plain"], BASE)


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    whole = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.quint8)
    scales, zeros = torch.tensor([0.5, 0.25]), torch.tensor([0, 1])
    channels = torch.quantize_per_channel(torch.arange(4.0).reshape(2, 2), scales, zeros, 0, torch.qint8)
    torch.save({"whole": whole, "channels": channels}, tmp_path / "a.pt")
    again = read(tmp_path / "a.pt")
    assert torch.equal(again["whole"], whole.dequantize()) and torch.equal(again["channels"], channels.dequantize())


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_that_was_packed_again(compression: int, tmp_path: Path) -> None:
    torch.save({"a": BASE, "b": BASE.double()}, tmp_path / "a.pt")
    again = read(pack(tmp_path / "b.pt", members_of(tmp_path / "a.pt"), compression))
    assert torch.equal(again["a"], BASE) and torch.equal(again["b"], BASE.double())


def test_damage_is_said(tmp_path: Path) -> None:
    torch.save({"a": BASE}, tmp_path / "a.pt")
    whole = members_of(tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedFile, match="no whole zip file"):
        Archive(tmp_path / "cut.pt")
    for change, reason in (
        ({"a/data/0": None}, "missing"),
        ({"a/data/0": b"1234"}, "has 4 bytes for 24 elements"),
        ({"a/data.pkl": b"\x80\x02}"}, "ends too early"),
        ({"a/byteorder": b"big"}, "another order of bytes"),
    ):
        members = {name: data for name, data in {**whole, **change}.items() if data is not None}
        with pytest.raises(DamagedFile, match=reason):
            read(pack(tmp_path / "b.pt", members))


def test_a_storage_cannot_name_a_place_outside(tmp_path: Path) -> None:
    class Persistent(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.key if isinstance(value, Key) else None

    class Key:
        def __init__(self, *key: Any) -> None:
            self.key = key

    for key, reason in (
        (("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 1), "missing"),
        (("storage", torch.FloatStorage, "0", "cpu", 1 << 60), "for 1152921504606846976 elements"),
        (("storage", torch.FloatStorage, "0", "cpu", -1), "incomplete"),
        (("storage", "text", "0", "cpu", 1), "incomplete"),
        (("file", "/etc/passwd"), "other than a storage"),
    ):
        stream = io.BytesIO()
        Persistent(stream).dump({"a": Key(*key)})
        with pytest.raises(DamagedFile, match=reason):
            read(pack(tmp_path / "a.pt", {"a/data.pkl": stream.getvalue(), "a/data/0": b"12345678"}))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED", 100_000)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10_000))
    assert read_npz(Archive(tmp_path / "a.npz"), Counter())["a"].shape == (10_000,)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1_000_000))
    with pytest.raises(DamagedFile, match="would unpack to"):
        read_npz(Archive(tmp_path / "a.npz"), Counter())


def npy(value: Any, **options: Any) -> memoryview:
    stream = io.BytesIO()
    np.save(stream, value, **options)
    return memoryview(bytearray(stream.getvalue()))


def test_arrays_in_files_of_numpy() -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.array(2), np.zeros((0, 2))):
        again = read_npy(npy(array), Counter())
        assert again.dtype == array.dtype and np.array_equal(again, array)
    foreign: Counter[str] = Counter()
    assert read_npy(npy({"a": np.ones(2)}, allow_pickle=True), foreign)["a"].tolist() == [1, 1]
    assert read_npy(npy(np.array({"a": Harm()}), allow_pickle=True), foreign)["a"].name.endswith("._exit")


class Harm:
    def __reduce__(self) -> Any:
        return (os._exit, (3,))


def test_heads_that_lie(tmp_path: Path) -> None:
    good = bytes(npy(np.zeros(4, np.float32)))
    for bad, reason in (
        (good.replace(b"(4,)", b"(9,)"), "instead of 36"),
        (good.replace(b"(4,), ", b"(1<<4)"), "head of an array is damaged"),
        (good[:20], "head of an array is damaged"),
        (good[:-4], "instead of 16"),
    ):
        with pytest.raises(DamagedFile, match=reason):
            read_npy(memoryview(bad), Counter())


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_random_damage_of_compressed_arrays_is_said(compression: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = npy(rng.integers(0, 3, 999).astype(np.float32))
    good = pack(tmp_path / "a.npz", {"kernel.npy": bytes(array)}, compression).read_bytes()
    damaged = 0
    for _ in range(120):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 2):
            bad[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.npz").write_bytes(bad)
        try:
            read_npz(Archive(tmp_path / "b.npz"), Counter())
        except DamagedFile:
            damaged += 1
    assert damaged > 60
