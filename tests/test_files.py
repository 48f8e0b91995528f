import csv
import errno
import io
import os
import re
import resource
import shutil
import signal
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from stvid import files
from stvid.checkpoints import save_model
from stvid.engine.saving import AtomicCheckpointIO
from stvid.errors import StvidError
from stvid.evaluation.features import ClipFeatures, save_features
from stvid.evaluation.result import ViewAccumulator
from stvid.files import (
    TEMPORARY,
    claimed,
    clear_leftovers,
    draft_folder,
    load_arrays,
    save_arrays,
    write_atomically,
    write_folder_atomically,
    write_lines,
    write_table,
    write_together,
)
from stvid.hub import save_pretrained
from stvid.journal import Journal
from stvid.look.report import write_report
from stvid.protocol import Protocol


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


# --- every kind of output ---------------------------------------------------------------------------------------------

PROTOCOL = Protocol(frames=2, stride=2, short_side=32, crop=32, class_names=("left", "right"))


def evaluated() -> Any:
    accumulator = ViewAccumulator(PROTOCOL)
    for number in range(400):
        accumulator.add(number, torch.full((1, 2), float(number)), np.array(number % 2), path=f"{number}.mp4")
    return accumulator.result()


def write_result(path: Path, model: Any) -> None:
    evaluated().save(path.parent)


def write_page(path: Path, model: Any) -> None:
    write_report(evaluated(), path.parent)


def write_features(path: Path, model: Any) -> None:
    seconds = np.arange(900.0)
    frames = np.arange(1800).reshape(900, 2)
    save_features(ClipFeatures(np.ones((900, 8), np.float32), seconds, seconds, frames, "a.mp4"), path)


def write_model(path: Path, model: Any) -> None:
    save_model(model, path)


def write_hub(path: Path, model: Any) -> None:
    save_pretrained(model, path.parent)


def write_run(path: Path, model: Any) -> None:
    AtomicCheckpointIO().save_checkpoint({"state_dict": model.state_dict()}, path)


OUTPUTS: dict[str, Callable[[Path, Any], None]] = {
    "table.csv": lambda path, model: write_table(path, ("a", "b"), [("x", "y")] * 9000),
    "lines.txt": lambda path, model: write_lines(path, ["line"] * 9000),
    "result.json": write_result,
    "logits.npz": write_result,
    "report.html": write_page,
    "features.npz": write_features,
    "model.safetensors": write_model,
    "model.pt": write_model,
    "last.ckpt": write_run,
    "hub/model.safetensors": write_hub,
}


def in_child(work: Callable[[], str]) -> str:
    """Returns what a function says in a process of its own, whose end is no end of this one."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            os.write(theirs, work().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_leaves_the_earlier_file(name: str, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    model, path = tiny_model(PROTOCOL), tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"earlier")

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # as a disk on which no more than that is left
        try:
            OUTPUTS[name](path, model)
        except (StvidError, OSError) as error:
            return str(error)
        return "written"

    said = in_child(work)
    assert "\n" not in said and str(path.parent) in said
    assert re.search("File too large|Input/output error|disk may be full", said)
    assert path.read_bytes() == b"earlier"
    assert [other.name for other in path.parent.iterdir() if other.name.endswith((TEMPORARY, ".lock"))] == []


@pytest.mark.parametrize("name", ["table.csv", "features.npz", "model.safetensors", "model.pt"])
def test_the_next_run_clears_what_a_killed_one_left(
    name: str, tmp_path: Path, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = tiny_model(PROTOCOL), tmp_path / name

    def work() -> str:
        monkeypatch.setattr(os, "replace", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        OUTPUTS[name](path, model)
        return "written"

    assert in_child(work) == ""
    assert not path.exists() and any(other.name.endswith(TEMPORARY) for other in tmp_path.iterdir())
    OUTPUTS[name](path, model)
    assert [other.name for other in tmp_path.iterdir()] == [name]


def test_what_another_process_writes_is_no_leftover(tmp_path: Path) -> None:
    left = tmp_path / f".b.{'0' * 12}{TEMPORARY}"

    def clear() -> str:
        files._cleared.clear()  # as in a new process
        clear_leftovers(tmp_path)
        return "cleared"

    with draft_folder(tmp_path / "a") as draft:
        (draft / "file").touch()
        left.mkdir()
        assert in_child(clear) == "cleared"
        assert (draft / "file").exists() and not left.exists()
    assert not draft.exists()


@pytest.mark.parametrize("kind", ["export", "journal"])
def test_two_processes_on_one_output(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"

    def claim() -> Any:
        if kind == "export":
            return claimed(path)
        return Journal(path, {"job": 1}, what="a journal", each=lambda record: None)

    def work() -> str:
        try:
            with claim():
                return "claimed"
        except StvidError as error:
            return str(error)

    with claim():
        assert "another process" in in_child(work) and str(path) in in_child(work)
    assert in_child(work) == "claimed"
    assert [other.name for other in tmp_path.iterdir() if other.name.endswith(".lock")] == []


# --- arrays and cells -------------------------------------------------------------------------------------------------


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array("text"),
        "d": np.empty((0, 3), np.float32),
    }
    save_arrays(tmp_path / "a.npz", arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    for name in ("a.npz", "b.npz"):
        found = load_arrays(tmp_path / name)
        assert found.keys() == arrays.keys()
        assert all(
            np.array_equal(found[key], value) and found[key].dtype == value.dtype for key, value in arrays.items()
        )


def npz(head: bytes, content: bytes, *, compressed: bool = False) -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", head + content)
    return stream


def head(shape: str, dtype: str = "<f8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (lambda: npz(head("(1000000000,)"), b"x"), "another number of bytes"),
        (lambda: npz(head("(1,)", "|O"), b"cos\nsystem\n."), "no plain array"),
        (lambda: npz(head("(-1,)"), b"x" * 8), "no plain array"),
        (lambda: npz(head("(" * 200), b""), "head is damaged|malformed|Cannot parse"),
        (lambda: io.BytesIO(b"PK\x03\x04"), "not a zip"),
    ],
)
def test_arrays_that_are_none(file: Callable[[], io.BytesIO], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_arrays(file())


def test_a_zip_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_UNPACKED", 2**20)
    bomb = npz(head("(20000000,)", "|u1"), b"\0" * 20_000_000, compressed=True)
    tracemalloc.start()
    with pytest.raises(ValueError, match="would unpack to"):
        load_arrays(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_cells_that_begin_like_formulas(tmp_path: Path) -> None:
    rows = [("=1+1", "+x", "-x", "@x", " =x", "|x", "\t=x"), ("-1.5", -1.5, "+3e-5", "a=b", "", None, "'=x")]
    write_table(tmp_path / "a.csv", tuple("abcdefg"), rows)
    with open(tmp_path / "a.csv", newline="") as file:
        _, first, second = csv.reader(file)
    assert all(cell.startswith("'") for cell in first)
    assert second == ["-1.5", "-1.5", "+3e-5", "a=b", "", "", "'=x"]
    write_table(tmp_path / "b.csv", tuple("abcdefg"), rows, formulas=True)
    assert "'" not in (tmp_path / "b.csv").read_text().splitlines()[1]
