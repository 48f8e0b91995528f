"""``stvid explain`` as a user types it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import stvid
from stvid.data.manifest import Manifest

Call = Callable[..., tuple[int, str, str]]


def test_explain(checkpoint: str, video: str, tmp_path: Path, call: Call) -> None:
    arguments = ["explain", video, "--checkpoint", checkpoint, "--out", tmp_path / "e", "--device", "cpu"]
    code, out, _ = call(*arguments, "--class", "turn")
    assert code == 0 and "turn" in out and "gradcam" in out
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"tool_gradcam.png", "tool_gradcam.mp4"}
    code, _, err = call(*arguments, "--class", "trun")
    assert code == 2 and "nearest: turn" in err
    code, out, err = call("explain", tmp_path / "gone.mp4", *arguments[1:])
    assert code == 1 and "gone.mp4: no such file" in err and "written to" in out


def test_inspect_and_explain_name_videos_in_shards(
    checkpoint: str,
    make_dataset: Callable[..., Path],
    make_shards: Callable[..., Manifest],
    tmp_path: Path,
    call: Call,
) -> None:
    files = stvid.read_manifest(make_dataset(tmp_path / "videos", per_class=1))
    shards = make_shards(files, tmp_path / "shards")
    file, member = files[1].path, shards[1].path
    shown = {}
    for path in (file, member):
        arguments = ["inspect", path, "--checkpoint", checkpoint, "--clips", "test", "--out", tmp_path / "clips.png"]
        code, out, err = call(*arguments)
        assert code == 0 and "test, clip 2 of 2" in out, err
        explained = ["explain", path, "--checkpoint", checkpoint, "--out", tmp_path / "e", "--device", "cpu"]
        code, told, err = call(*explained)
        assert code == 0, err
        shown[path] = (out.replace(path, "PATH"), told.replace(path, "PATH").partition("; written to")[0])
    assert shown[file] == shown[member]
    assert (tmp_path / "e" / f"{Path(member).stem}_gradcam.png").exists()
    gone = str(Path(member).with_name("gone.mp4"))
    for command in ("inspect", "explain"):
        code, _, err = call(command, gone, "--checkpoint", checkpoint)
        assert code == 1 and f"{gone}: there is no such video in the shards" in err
