"""Texts as classes, ``--classes`` of stvid predict and test, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import stvid

pytest.importorskip("transformers")

Call = Callable[..., tuple[int, str, str]]
TINY = {
    "num_frames": 4,
    "img_size": (32, 32),
    "depth": 1,
    "embed_dim": 48,
    "num_heads": 4,
    "joint_dim": 32,
    "text_depth": 1,
    "text_dim": 64,
    "vocab_size": 55,
    "context_length": 32,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny X-CLIP without classes, with a tokenizer that spells."""
    folder = tmp_path_factory.mktemp("xclip")
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters[:26], *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    model = stvid.create_model("xclip_b16", num_classes=0, text=True, tokenizer=str(folder), **TINY)
    stvid.save_model(model, folder / "xclip.pt")
    return str(folder / "xclip.pt")


def test_predict_with_texts(weights: str, video: str, call: Call, tmp_path: Path) -> None:
    code, out, _ = call("predict", video, "--checkpoint", weights, "--classes", "opening a door, running", "--json")
    found = json.loads(out)[0]
    assert code == 0 and sorted(found["classes"]) == ["opening a door", "running"]
    assert sum(found["probabilities"]) == pytest.approx(1.0)
    (tmp_path / "texts.txt").write_text("running\nopening, then closing\n")
    code, out, _ = call("predict", video, "--checkpoint", weights, "--classes", tmp_path / "texts.txt", "--json")
    assert code == 0 and sorted(json.loads(out)[0]["classes"]) == ["opening, then closing", "running"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "its classes are texts: give them, --classes"),
        (["--classes", "a,,b"], "a text is empty"),
        (["--classes", "a", "--class_names", "kinetics400"], "give one of them"),
    ],
)
def test_predict_without_usable_texts(weights: str, video: str, options: list[str], words: str, call: Call) -> None:
    code, _, err = call("predict", video, "--checkpoint", weights, *options)
    assert code == 2 and words in err and len(err.splitlines()) == 1


def test_test_takes_the_labels_as_texts(
    weights: str, make_video: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    rows = ["path,label"]
    for number, label in enumerate(("opening a door", "running", "running")):
        rows.append(f"{make_video(f'text_{number}.mp4')},{label}")
    (tmp_path / "videos.csv").write_text("\n".join(rows) + "\n")
    arguments = ["test", "--checkpoint", weights, "--data", tmp_path / "videos.csv", "--workers", "0"]
    code, out, err = call(*arguments, "--out", tmp_path / "own", "--json")
    assert code == 0 and "the classes are the 2 labels of the videos, as texts" in err
    assert json.loads(out)["protocol"]["class_names"] == ["opening a door", "running"]
    more = ["--classes", "running,opening a door,sitting"]
    code, out, err = call(*arguments, *more, "--out", tmp_path / "more", "--json")
    assert code == 0 and "as texts" not in err
    assert json.loads(out)["protocol"]["class_names"] == ["running", "opening a door", "sitting"]
