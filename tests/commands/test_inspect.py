"""``stvid inspect`` as a user types it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Call = Callable[..., tuple[int, str, str]]


def test_inspect_with_a_checkpoint(checkpoint: str, video: str, tmp_path: Path, call: Call) -> None:
    picture = tmp_path / "sheet.png"
    code, out, _ = call("inspect", video, "--checkpoint", checkpoint, "--clips", "test", "--out", picture)
    assert code == 0 and out.count("test, clip") == 6 and "50 frames of 64 x 48" in out
    with Image.open(picture) as sheet:
        assert sheet.size[0] > 400
    code, out, err = call("inspect", video, "--checkpoint", checkpoint, "--out", picture, "--draws", 3)
    assert code == 0 and out.count("train, epoch") == 3 and "alone" in err


def test_inspect_shows_the_draws_of_the_very_training(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from stvid.config import load_config
    from stvid.data.dataset import Draw, TrainDataset
    from stvid.runs import read_data

    folder = make_dataset(tmp_path / "videos", per_class=2)
    path = sorted(folder.rglob("*.mp4"))[3]
    sizes = [
        "--protocol.frames=4",
        "--protocol.crop=32",
        "--protocol.short_side=40",
        "--data.repeats=1",
        "--data.val_fraction=0",
    ]
    options = [f"--data.train={folder}", "--seed=7", *sizes]
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", "uniformer_xxs_folder.yaml", "--clips", "train", "--draws", 1]
    code, out, err = call("inspect", path, *arguments, *options)
    assert code == 0 and err == "" and (tmp_path / f"{path.stem}_clips.png").is_file()
    config = load_config("uniformer_xxs_folder.yaml", options)
    manifest, _ = read_data(config)
    index = next(n for n in range(len(manifest)) if manifest[n].path == str(path))
    sample = TrainDataset(manifest, config.protocol, config.augment, seed=7)[Draw(index, 0)]
    box = sample.crop_boxes[0]
    assert f"crop {box.width:.0f} x {box.height:.0f} at ({box.left:.0f}, {box.top:.0f})" in out
    assert ("mirrored" in out) == sample.flipped[0]


def test_inspect_needs_to_know_how(video: str, tmp_path: Path, call: Call) -> None:
    code, _, err = call("inspect", video)
    assert code == 2 and "--config or --checkpoint" in err
    code, _, err = call("inspect", tmp_path / "gone.mp4", "--config", "uniformer_s_k400.yaml")
    assert code == 1 and "no such file" in err
