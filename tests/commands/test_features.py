"""``stvid features`` as a user types it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.errors import ConfigError

Call = Callable[..., tuple[int, str, str]]


def test_features(checkpoint: str, make_dataset: Callable[..., Path], tmp_path: Path, call: Call) -> None:
    folder = make_dataset(tmp_path / "videos", per_class=1)
    arguments = ["features", "--checkpoint", checkpoint, "--data", folder, "--out", tmp_path / "f", "--workers", 0]
    arguments += ["--device", "cpu", "--devices", 1]
    code, out, err = call(*arguments)
    assert code == 0 and "3 videos written, 0 were there, 0 failed; features of 16 numbers" in out, err
    code, out, _ = call(*arguments)
    assert code == 0 and "0 videos written, 3 were there" in out
    code, _, err = call(*arguments, "--window", "1s")
    assert code == 2 and "another --out" in err
    code, _, err = call(*arguments, "--window_stride", "1s")
    assert code == 2 and "--window, which is missing" in err
    code, _, err = call(*arguments, "--ray_address", "auto")
    assert code == 2 and "--ray_address: belongs to --engine ray" in err
    code, _, err = call(*arguments, "--device", "abacus")
    assert code == 2 and "--device: 'abacus' cannot be used here" in err


def test_shards_write_what_one_run_writes(
    checkpoint: str, make_dataset: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    folder = make_dataset(tmp_path / "videos", per_class=2)
    (folder / "left" / "bad.mp4").write_text("no video")
    arguments = ["features", "--checkpoint", checkpoint, "--data", folder, "--workers", 0]
    arguments += ["--device", "cpu", "--devices", 1, "--out"]
    assert call(*arguments, tmp_path / "one")[0] == 1
    out = tmp_path / "parts"
    for number, counts in (
        (1, "2 videos written, 0 were there, 1 failed"),
        (2, "2 videos written, 0 were"),
        (2, "0 videos written, 2"),
    ):
        code, shown, _ = call(*arguments, out, "--shard", f"{number}/3")
        assert code == 0 and shown.startswith(f"shard {number}/3: {counts}")
    assert not (out / "index.csv").exists()
    assert call(*arguments, out, "--shard", "4/3")[0] == 2
    code, shown, err = call(*arguments, out, "--shard", "3/3")
    assert code == 0 and "1 failed" not in err
    code, shown, err = call(*arguments, out)
    assert code == 1 and "0 videos written, 6 were there, 1 failed" in shown and "bad.mp4" in err
    assert contents(out) == contents(tmp_path / "one")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_writes_what_one_run_writes(
    checkpoint: str, make_dataset: Callable[..., Path], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the workers
    folder = make_dataset(tmp_path / "videos", per_class=2)
    (folder / "left" / "bad.mp4").write_text("no video")
    arguments = ["features", "--checkpoint", checkpoint, "--data", folder, "--device", "cpu", "--views", "1x3"]
    assert call(*arguments, "--devices", 1, "--workers", 0, "--out", tmp_path / "one")[0] == 1
    for out, more in (("ray", []), ("ray part", ["--shard", "1/1"])):
        found = call(*arguments, "--engine", "ray", "--workers", 2, "--out", tmp_path / out, *more)
        assert "6 videos written, 0 were there, 1 failed" in found[1]
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [
        (None, "auto", ("auto", "auto")),
        ("auto", "2", ("auto", "2")),
        ("cpu", "auto", ("cpu", "auto")),
        ("cuda", "4", ("gpu", "4")),
        ("gpu", "auto", ("gpu", "auto")),
        ("cuda:1", "auto", ("gpu", "1,")),
    ],
)
def test_features_runs_on_the_device_that_is_named(
    device: str | None, devices: str, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stvid.commands import features

    monkeypatch.setattr(features, "pick_device", lambda name: name)  # there may be no GPU here
    assert features._for_lightning(device, devices) == expected
    with pytest.raises(ConfigError, match="--device cuda:1 names the only one"):
        features._for_lightning("cuda:1", "2")
