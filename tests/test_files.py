import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError

from stvid.errors import StvidError
from stvid.files import (
    save_arrays,
    write_atomically,
    write_folder_atomically,
    write_lines,
    write_table,
    write_together,
)


def full(temporary: Path) -> None:
    """Fails in the middle, as on a full disk."""
    (temporary / "part" if temporary.is_dir() else temporary).write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, full)
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_kind_of_error_whatever_library_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_torch(temporary: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    def by_safetensors(temporary: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    path = tmp_path / "m.pt"
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomically(path, by_torch)
    assert caught.value.filename == str(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    for write in (by_torch, by_safetensors):
        with pytest.raises(OSError, match="No space left on device"):
            write_atomically(path, write)
    assert list(tmp_path.iterdir()) == []

    def own_mistake(temporary: Path) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        write_atomically(path, own_mistake)


def test_a_file_has_the_usual_permissions_whatever_wrote_it(tmp_path: Path) -> None:
    def private(temporary: Path) -> None:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT, 0o600))

    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "file", private)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_of_files_that_belong_together_none_is_new_if_one_fails(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("earlier")
    with pytest.raises(OSError, match="No space"):
        write_together({first: lambda temporary: temporary.write_text("new"), second: full})
    assert first.read_text() == "earlier" and list(tmp_path.iterdir()) == [first]
    write_together({path: lambda temporary: temporary.write_text("new") for path in (first, second)})
    assert first.read_text() == second.read_text() == "new"


def test_a_folder_is_seen_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "above" / "folder"

    def write(temporary: Path) -> None:
        assert not target.exists()
        (temporary / "new").touch()

    with pytest.raises(OSError, match="No space"):
        write_folder_atomically(target, full)
    assert list(target.parent.iterdir()) == []
    write_folder_atomically(target, write)
    assert os.listdir(target) == ["new"] and list(target.parent.iterdir()) == [target]


def test_a_folder_that_is_there_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "earlier").touch()
    with pytest.raises(OSError):  # each system has words of its own
        write_folder_atomically(target, lambda temporary: (temporary / "new").touch())
    with pytest.raises(OSError, match="No space"):
        write_folder_atomically(target, full, replace=True)
    assert os.listdir(target) == ["earlier"]
    write_folder_atomically(target, lambda temporary: (temporary / "new").touch(), replace=True)
    assert os.listdir(target) == ["new"] and list(tmp_path.iterdir()) == [target]


def test_arrays_get_the_name_that_was_asked_for(tmp_path: Path) -> None:
    save_arrays(tmp_path / "arrays.tmp", {"logits": np.arange(3)})
    with np.load(tmp_path / "arrays.tmp") as held:
        assert held["logits"].tolist() == [0, 1, 2]


def test_tables_and_lists(tmp_path: Path) -> None:
    write_table(tmp_path / "new" / "table.csv", ["path", "label"], [("a,b", 1), ("caf\udce9", 2)])
    assert (tmp_path / "new" / "table.csv").read_bytes() == b'path,label\n"a,b",1\ncaf\xe9,2\n'
    write_lines(tmp_path / "list.txt", ["one", "two"])
    assert (tmp_path / "list.txt").read_text() == "one\ntwo\n"
    write_lines(tmp_path / "list.txt", [])
    assert not (tmp_path / "list.txt").exists()
    with pytest.raises(StvidError, match="cannot be written"):
        write_table(tmp_path / "new" / "table.csv" / "below.csv", ["path"], [])
