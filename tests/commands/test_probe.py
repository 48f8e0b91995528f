"""``stvid probe`` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def videos(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("probe") / "videos", per_class=3)


def test_probe(checkpoint: str, videos: Path, tmp_path: Path, call: Call) -> None:
    arguments = ["probe", "--checkpoint", checkpoint, "--data.train", videos, "--data.val", videos, "--views", "1x1"]
    arguments += ["--device", "cpu", "--workers", 0, "--out", tmp_path / "p"]
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "top1@1x1 100.00%" in out and "guessing: top1 33.33%" in out and "linear probe of 9 training videos" in out
    assert "probe.safetensors" in out
    record = json.loads((tmp_path / "p" / "result.json").read_text())
    assert record["metrics"]["top1@1x1"] == 1.0 and record["classes"] == ["left", "right", "turn"]
    saved = tmp_path / "p" / "probe.safetensors"
    code, out, err = call(
        "test", "--checkpoint", saved, "--data", videos, "--device", "cpu", "--workers", 0, "--also", "none", "--json"
    )
    assert code == 0 and json.loads(out)["metrics"] == record["metrics"], err
    video = sorted((videos / "turn").glob("*.mp4"))[0]
    code, out, err = call("predict", video, "--checkpoint", saved, "--device", "cpu")
    assert code == 0 and "turn" in out, err
    code, out, err = call(*arguments, "--kind", "knn", "--k", 1, "--json")
    assert code == 0 and json.loads(out)["metrics"]["top1@1x1"] == 1.0 and "replacing the probe" in err


def test_without_val_a_part_is_held_out(checkpoint: str, videos: Path, tmp_path: Path, call: Call) -> None:
    code, out, err = call(
        *("probe", "--checkpoint", checkpoint, "--data.train", videos, "--views", "1x1", "--device", "cpu"),
        *("--workers", 0, "--out", tmp_path / "p", "--kind", "knn", "--protocol.stride", 1),
    )
    assert code == 0 and "knn probe of 6 training videos: k 6, temperature 0.07" in out, err
    assert "3 videos counted" in out and "protocol.stride: 1 instead of 2" in err


def test_mistakes(checkpoint: str, videos: Path, tmp_path: Path, call: Call) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("path\n" + "".join(f"{path}\n" for path in sorted(videos.glob("*/*.mp4"))))
    one = tmp_path / "one"
    one.mkdir()
    (one / "left").symlink_to(videos / "left")
    single = tmp_path / "single.csv"
    firsts = [sorted((videos / name).glob("*.mp4"))[0] for name in ("left", "right", "turn")]
    single.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in firsts))
    held = tmp_path / "held"
    held.mkdir()
    (held / "result.json").write_text("{}")
    start = ["probe", "--checkpoint", checkpoint, "--device", "cpu", "--workers", 0, "--views", "1x1"]
    new = ["--out", tmp_path / "new"]
    for arguments, words in (
        (new, "--data.train: missing"),
        ([*new, "--data.train", plain], "has no labels"),
        ([*new, "--data.train", videos, "--data.val", plain], "data.val: "),
        ([*new, "--data.train", one], "all its videos are of one class, 'left'"),
        ([*new, "--data.train", single, "--data.val", videos], "each class has a single training video"),
        ([*new, "--data.train", single], "no class has two videos"),
        ([*new, "--data.train", videos, "--kind", "forest"], "--kind"),
        ([*new, "--data.train", videos, "--optim.lr", "1"], "--optim.lr: has no meaning here"),
        (["--data.train", videos, "--out", held], "holds the result of an evaluation"),
    ):
        code, _, err = call(*start, *arguments)
        assert code in (1, 2) and words in err and err.count("stvid: error") == 1, err
