from __future__ import annotations

from pathlib import Path

import pytest

import stvid.downloads
from stvid import sources
from stvid.errors import CheckpointError, UnknownNameError
from stvid.models.registry import find_weights
from stvid.sources import fetch_weights, newest_checkpoint, resolve_source


def test_what_is_there_is_a_file_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("uniformer_s.k400_16x4").write_bytes(b"x")
    assert resolve_source("uniformer_s.k400_16x4") == sources.Source(
        "uniformer_s.k400_16x4", Path("uniformer_s.k400_16x4")
    )


def test_a_run_is_its_best_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_bytes(b"x")
    (folder / "last.ckpt").write_bytes(b"x")
    assert resolve_source(tmp_path / "run").path == folder / "best.ckpt"
    assert resolve_source(str(tmp_path / "run"), prefer=None).path == newest_checkpoint(tmp_path / "run")


def test_names_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = find_weights("timesformer_base.k400")
    asked = []

    def fetch(url: str, **facts: object) -> Path:
        asked.append((url, facts))
        return tmp_path / "w.pyth"

    said = []
    monkeypatch.setattr(stvid.downloads, "fetch", fetch)
    monkeypatch.setattr(stvid.downloads, "say_licence", lambda name, licence: said.append((name, licence)))
    assert weights is not None
    assert resolve_source(weights.name) == sources.Source(weights.name, tmp_path / "w.pyth", weights)
    assert fetch_weights(weights) == tmp_path / "w.pyth"
    assert asked[0] == asked[1]
    assert asked[0][0] == weights.url and asked[0][1]["sha256"] == weights.sha256
    assert said[0] == (weights.name, weights.licence)


def test_addresses_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stvid.downloads, "fetch", lambda url: tmp_path / url.rpartition("/")[2])
    monkeypatch.setattr(stvid.downloads, "fetch_hub_folder", lambda source: tmp_path / source.rpartition("/")[2])
    assert resolve_source("https://example.org/a/w.pth").path == tmp_path / "w.pth"
    assert resolve_source("hf-hub:org/repo@main").path == tmp_path / "repo@main"


@pytest.mark.parametrize("name", ["m.onnx", "m.PT2"])
def test_an_exported_program_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"program")
    with pytest.raises(CheckpointError, match=r"is a program that stvid export wrote, .*load_exported"):
        resolve_source(tmp_path / name)


def test_what_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its name is empty"):
        resolve_source("")  # and not the folder in which one is
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        resolve_source(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=r"uniformer_s: is a model, not weights; .*uniformer_s\.k400_16x4"):
        resolve_source("uniformer_s")
    with pytest.raises(CheckpointError, match=r"^uniformer_xxs: is a model, not weights$"):
        resolve_source("uniformer_xxs")
    with pytest.raises(UnknownNameError, match=r"nearest: .*k400_16x4"):
        resolve_source("uniformer_s.k400_16x")
