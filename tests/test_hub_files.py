from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stvid.errors import DownloadError
from stvid.hub_files import HubAddress, HubFiles, parse_hub_address
from tests.loopback import Hub, as_json


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("hf:org/name", ("org/name", "", None)),
        ("hf-hub:org/name@v1", ("org/name", "", "v1")),
        ("hf:org/name@refs/pr/3", ("org/name", "", "refs/pr/3")),
        ("hf:org/name/a/b.pth@1a2b", ("org/name", "a/b.pth", "1a2b")),
        ("hf://org/name/b.pth", ("org/name", "b.pth", None)),
        ("https://huggingface.co/org/name/resolve/main/a/b%20c.pth?download=true", ("org/name", "a/b c.pth", "main")),
        ("https://huggingface.co/org/name/blob/v1/b.pth", ("org/name", "b.pth", "v1")),
    ],
)
def test_addresses_of_the_hub(source: str, place: tuple[str, str, str | None]) -> None:
    found = parse_hub_address(source)
    assert found is not None and (found.repo, found.file, found.revision) == place


@pytest.mark.parametrize(
    "source", ["https://huggingface.co/org/name", "https://a.org/o/n/resolve/main/x", "uniformer_s"]
)
def test_addresses_of_others(source: str) -> None:
    assert parse_hub_address(source) is None


@pytest.mark.parametrize("source", ["hf:", "hf-hub:org/na me", "hf:org/name@", "hf:/x y"])
def test_addresses_that_name_no_repository(source: str) -> None:
    with pytest.raises(DownloadError, match="no place on the Hugging Face hub"):
        parse_hub_address(source)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"{", "is no JSON"),
        (b"[]", "lists no shards"),
        (as_json({"weight_map": {}}), "lists no shards"),
        (as_json({"weight_map": {"a": "b.safetensors"}}), "has no file 'b.safetensors'"),
    ],
)
def test_a_broken_index_is_said(hub: Hub, index: bytes, words: str) -> None:
    hub.put("org/name", {"config.json": b"{}", "model.safetensors.index.json": index})
    with pytest.raises(DownloadError, match=words):
        HubFiles(HubAddress("org/name"), "net", offline=False).folder()


def test_one_file_and_its_folder(hub: Hub, tmp_path: Path) -> None:
    hub.put("org/name", {"config.json": b"{}", "model.safetensors": b"weights"}, "v2")
    files = HubFiles(HubAddress("org/name", revision="v2"), "net", offline=False)
    assert files.file("model.safetensors").parent == files.folder()
    assert files.folder().is_relative_to(tmp_path / "cache")
    assert files.place.link == f"{hub.url}/org/name"
    before = len(hub.requests)
    files.folder()
    assert len(hub.requests) == before + 1  # which commit the branch is at; nothing else can have changed
    with pytest.raises(DownloadError, match=r"has no file 'x.txt' at revision v2"):
        files.file("x.txt")
