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
    code, _, err = call(*arguments, "--device", "abacus")
    assert code == 2 and "--device: 'abacus' cannot be used here" in err


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
