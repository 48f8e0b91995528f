"""The models of the demo page: what it offers, how many stay loaded, and what is said of weights that are not here."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stvid
from stvid.errors import CheckpointError, ConfigError, DownloadError, UnknownNameError
from stvid.look.demo_models import ModelShelf, is_on_this_machine, licence_note, published_weights, short_names
from stvid.models.base import VideoModel
from stvid.models.registry import find_weights
from stvid.models.weights import Weights
from stvid.protocol import Protocol

PROTOCOL = Protocol(frames=4, stride=2, short_side=32, crop=32, class_names=("walk", "jump"))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Published weights that are not on this machine, where the network is switched off."""
    monkeypatch.setenv("STVID_HOME", str(tmp_path))
    monkeypatch.setenv("STVID_OFFLINE", "1")
    found = find_weights("uniformer_s.k400_16x4")
    assert found is not None
    return dataclasses.replace(found, url="https://weights.invalid/uniformer_s.pth", sha256="", bytes=None)


def test_the_models_used_last_stay_loaded(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    made: list[str] = []

    def maker(name: str) -> Callable[[], VideoModel]:
        def make() -> VideoModel:
            made.append(name)
            return tiny_model(PROTOCOL).train()

        return make

    shelf = ModelShelf({name: maker(name) for name in "abc"}, limit=2, device="cpu")
    first = shelf.get("a")
    assert not first.training and shelf.get("a") is first
    shelf.get("b")
    shelf.get("a")
    shelf.get("c")  # b was used least recently
    assert shelf.loaded == ("a", "c") and shelf.get("a") is first and made == ["a", "b", "c"]
    shelf.get("b")
    assert made == ["a", "b", "c", "b"] and len(shelf.loaded) == 2


def test_two_visitors_load_a_model_once(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    made = []

    def make() -> VideoModel:
        made.append(1)
        time.sleep(0.1)
        return tiny_model(PROTOCOL)

    shelf = ModelShelf({"a": make})
    threads = [threading.Thread(target=shelf.get, args=("a",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_model_that_cannot_be_loaded_leaves_no_trace(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    def fail() -> VideoModel:
        raise CheckpointError("broken.pt: is damaged")

    shelf = ModelShelf({"good": lambda: tiny_model(PROTOCOL), "broken": fail}, limit=2)
    shelf.get("good")
    with pytest.raises(CheckpointError, match="is damaged"):
        shelf.get("broken")
    assert shelf.loaded == ("good",)
    with pytest.raises(UnknownNameError, match=r"'goood'.*nearest: good"):
        shelf.get("goood")


def test_features_and_devices_are_refused(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    def features() -> VideoModel:
        return stvid.create_model("uniformer_xxs", num_classes=0, num_frames=4, img_size=32)

    with pytest.raises(CheckpointError, match="has no classifier"):
        ModelShelf({"features": features}).get("features")
    with pytest.raises(ConfigError, match="device 'cuda:99' cannot hold it"):
        ModelShelf({"a": lambda: tiny_model(PROTOCOL)}, device="cuda:99").get("a")
    with pytest.raises(ConfigError, match="limit: 0"):
        ModelShelf({"a": lambda: tiny_model(PROTOCOL)}, limit=0)
    with pytest.raises(ConfigError, match="no model to offer"):
        ModelShelf({})


def test_published_weights_are_offered_and_said_to_be_away(
    tiny_model: Callable[[Protocol], VideoModel], weights: Weights
) -> None:
    by_hand = dataclasses.replace(weights, tag="by_hand", url="gdrive-folder:abc")
    shelf = ModelShelf({"mine": lambda: tiny_model(PROTOCOL)}, published=(weights, by_hand))
    assert shelf.choices() == [
        ("mine", "mine"),
        ("uniformer_s.k400_16x4 (published, to be fetched)", "uniformer_s.k400_16x4"),
        ("uniformer_s.by_hand (published, to be fetched by hand)", "uniformer_s.by_hand"),
    ]
    assert shelf.names == ("mine", "uniformer_s.k400_16x4", "uniformer_s.by_hand")
    with pytest.raises(DownloadError, match=r"uniformer_s\.k400_16x4: is not on this machine, and the network is"):
        shelf.get("uniformer_s.k400_16x4")


def test_a_page_for_others_fetches_nothing(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = ModelShelf({}, published=(weights,), downloads=False)
    assert shelf.choices() == [("uniformer_s.k400_16x4 (published, not here)", "uniformer_s.k400_16x4")]
    monkeypatch.setattr("stvid.look.demo_models.load_model", lambda name: pytest.fail("must not be loaded"))
    with pytest.raises(DownloadError, match="a page that is open to others fetches none"):
        shelf.get("uniformer_s.k400_16x4")


def test_published_weights_that_are_here_come_first(
    tmp_path: Path,
    tiny_model: Callable[[Protocol], VideoModel],
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = dataclasses.replace(weights, tag="away", url="https://weights.invalid/other.pth")
    assert not is_on_this_machine(weights)
    monkeypatch.setattr("stvid.look.demo_models.where_kept", lambda url, name: tmp_path if url == weights.url else None)
    assert is_on_this_machine(weights) and not is_on_this_machine(away)
    shelf = ModelShelf({}, published=(away, weights), downloads=False)
    assert [name for _, name in shelf.choices()] == ["uniformer_s.k400_16x4", "uniformer_s.away"]
    assert "on this machine" in shelf.choices()[0][0]
    loaded = tiny_model(PROTOCOL)
    monkeypatch.setattr("stvid.look.demo_models.load_model", lambda name: loaded)
    assert shelf.get("uniformer_s.k400_16x4") is loaded


def test_weights_of_the_hub_are_looked_for_in_its_cache(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(Path.cwd() / "no such folder"))
    assert not is_on_this_machine(dataclasses.replace(weights, url="hf:nobody/nothing/weights.pth"))


def test_all_published_weights_with_classes_are_there() -> None:
    names = [weights.name for weights in published_weights()]
    assert "uniformer_s.k400_16x4" in names and len(names) == len(set(names))
    listed = stvid.list_models(pretrained=True)
    assert [name for name in listed if name in set(names)] == names
    left_out = {name: find_weights(name) for name in set(listed) - set(names)}
    assert left_out and all(found is not None and found.num_classes == 0 for found in left_out.values())


def test_the_licence_is_said(tiny_model: Callable[[Protocol], VideoModel], weights: Weights) -> None:
    model = tiny_model(PROTOCOL)
    assert licence_note(model) == ""
    model.weights = dataclasses.replace(weights, licence="CC BY-NC 4.0")
    assert licence_note(model) == "The licence of these weights forbids commercial use: CC BY-NC 4.0."
    model.weights = dataclasses.replace(weights, licence="MIT")
    assert licence_note(model) == ""


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["runs/a"], ["a"]),
        (["runs/a/", "other/b.ckpt"], ["a", "b.ckpt"]),
        (["x/run", "y/run"], ["x/run", "y/run"]),
        (["x/run", "run"], ["x/run", "run"]),
        (["uniformer_s.k400_16x4", "hf-hub:org/repo"], ["uniformer_s.k400_16x4", "hf-hub:org/repo"]),
        (["https://a.b/c.pt"], ["https://a.b/c.pt"]),
    ],
)
def test_names_are_short_and_differ(sources: list[str], names: list[str]) -> None:
    assert short_names(sources) == names


def test_a_source_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--checkpoint: a is named twice"):
        short_names(["a", "b", "a"])


def test_models_run_where_they_should(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    model = ModelShelf({"a": lambda: tiny_model(PROTOCOL)}, device="cpu").get("a")
    assert {p.device for p in model.parameters()} == {torch.device("cpu")}
