from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stvid.errors import CheckpointError
from stvid.weight_files.one_file import read_one_file
from stvid.weight_files.placeholders import is_module

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)}
ARRAYS = {name: value.numpy() for name, value in STATE.items()}


def write(kind: str, path: Path) -> None:
    if kind == "safetensors":
        save_file(STATE, path)
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, **ARRAYS)
    elif kind == "npz, compressed":
        with open(path, "wb") as file:
            np.savez_compressed(file, **ARRAYS)
    elif kind == "npy of a dictionary":
        with open(path, "wb") as file:
            np.save(file, ARRAYS, allow_pickle=True)  # type: ignore[arg-type]
    elif kind == "pickle of arrays":
        path.write_bytes(pickle.dumps(ARRAYS, protocol=2))
    elif kind == "pickle of tensors":
        path.write_bytes(pickle.dumps(STATE))
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "torch")


KINDS = ("safetensors", "npz", "npz, compressed", "npy of a dictionary", "pickle of arrays", "pickle of tensors")


@pytest.mark.parametrize("kind", [*KINDS, "torch", "torch, older"])
@pytest.mark.parametrize("name", ["weights", "weights.safetensors", "weights.npz", "weights.pth", "checkpoint"])
def test_the_first_bytes_tell_the_kind(kind: str, name: str, tmp_path: Path) -> None:
    write(kind, tmp_path / name)
    read = read_one_file(tmp_path / name)
    assert not read.foreign and list(read.content) == list(STATE)
    for key, value in STATE.items():
        assert np.array_equal(np.asarray(read.content[key]), value.numpy())


@pytest.mark.filterwarnings("ignore:.torch.jit.script.")
@pytest.mark.parametrize("script", [False, True])
def test_networks_that_were_saved_whole(script: bool, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3))
    if script:
        torch.jit.script(network).save(tmp_path / "a.pt")
    else:
        torch.save(network, tmp_path / "a.pt")
    assert is_module(read_one_file(tmp_path / "a.pt").content["module"])


def zipped(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, "text")
    return stream.getvalue()


def tarred(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as file:
        file.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def array_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(2))
    return stream.getvalue()


ODD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the file is empty"),
    "a text": (b"not a checkpoint at all", "not a checkpoint, or damaged"),
    "a script": (b"import torch\nprint(1)\n", "not a checkpoint, or damaged"),
    "zeros": (bytes(1000), "not a checkpoint, or damaged"),
    "a web page": (
        b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
        "is a web page, not weights: probably a download",
    ),
    "an answer in XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page, not weights"),
    "a pointer of LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a PNG image"),
    "a photograph": (b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG image"),
    "a video": (b"\x00\x00\x00\x20ftypisom" + bytes(100), "is an MP4 video"),
    "a JSON file": (b'{"model_type": "vivit"}', "is a JSON file"),
    "gzip": (gzip.compress(b"x"), "gunzip"),
    "a tar archive": (tarred("weights.pth"), "tar -xf"),
    "torch's format of 2016": (tarred("sys_info"), "format of 2016"),
    "a zip archive": (zipped("weights.txt"), r"neither torch nor numpy \(weights.txt\)"),
    "a Keras file": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "an index of TensorFlow": (bytes(100) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow"),
    "a cut file of torch": (saved(STATE)[:-100], "no whole zip file"),
    "a cut pickle": (pickle.dumps(ARRAYS)[:-20], "ends too early"),
    "a list": (saved([1, 2]), "one object of type list"),
    "a tensor": (saved(torch.ones(2)), "one object of type Tensor"),
    "an array": (array_file(), "type ndarray"),
    "safetensors, cut": ((100).to_bytes(8, "little") + b"{" + b" " * 200, "safetensors"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, reason = ODD[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as error:
        read_one_file(path)
    assert "\n" not in str(error.value) and str(error.value).count(str(path)) == 1


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        read_one_file(tmp_path / "pipe")
