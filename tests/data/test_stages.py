"""The stages give what the functions give that they run, in tables, and can follow each other."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.data.leakage import hash_video
from stvid.data.manifest import read_manifest
from stvid.data.scanning import examine
from stvid.data.sharding import plan_shards, write_shard
from stvid.data.stages import Hash, Index, Scan, Shard, Transcode
from stvid.data.transcoding import DEFAULTS, transcode
from stvid.errors import ConfigError
from stvid.video.reader import scan
from stvid.video.stored_index import pack_index, unpack_index


def test_scan_then_transcode_then_index(make_video: Callable[..., Path], tmp_path: Path) -> None:
    videos = [str(make_video("a.mp4", frames=30, to=tmp_path / "v")), str(tmp_path / "v" / "none.mp4")]
    rows = Scan()({"path": videos, "label": ["x", "y"]})
    facts = examine(videos[0], {"full": False})
    assert {name: rows[name][0] for name in Scan.fields} == facts
    assert rows["error"][1] == f"{videos[1]}: no such file" and rows["frames"].tolist() == [30, 0]

    stage = pickle.loads(pickle.dumps(Transcode(tmp_path / "v", tmp_path / "one", short_side=32, preset="ultrafast")))
    rows = stage(rows)
    settings = {**DEFAULTS, "root": str(tmp_path / "v"), "short_side": 32, "preset": "ultrafast"}
    again = transcode(videos[0], {**settings, "out": str(tmp_path / "two")})
    assert rows["out"] == [str(tmp_path / "one" / "a.mp4"), ""]
    assert Path(rows["out"][0]).read_bytes() == Path(again["out"]).read_bytes()
    assert {**again, "out": rows["out"][0]} == {name: rows[name][0] for name in Transcode.fields}

    rows = Index(tmp_path / "index", column="out")(rows)
    packed = (tmp_path / "index" / rows["file"][0]).read_bytes()
    assert packed == pack_index(scan(rows["out"][0])) and unpack_index(packed) is not None
    assert [path.name for path in (tmp_path / "index").iterdir()] == [rows["file"][0]]
    assert rows["error"] == ["", f"{videos[1]}: no such file"] and rows["label"] == ["x", "y"]


def test_shard_and_hash(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    manifest = read_manifest(make_dataset(tmp_path / "v", classes=("a", "b"), per_class=2))
    plan, _ = plan_shards(manifest, size=1e9, seed=0)
    (tmp_path / "t.json").write_text(json.dumps(plan[0]))
    found = Shard(tmp_path)({"path": [str(tmp_path / "t.tar")]})
    content = (tmp_path / "t.tar").read_bytes()
    (outcome,) = Shard(tmp_path).outcomes(found)
    assert outcome == (str(tmp_path / "t.tar"), write_shard(str(tmp_path / "t.tar"), {"plan": str(tmp_path)}), "")
    assert (tmp_path / "t.tar").read_bytes() == content  # done twice, it writes the same

    path = manifest[0].path
    (outcome,) = Hash().outcomes(Hash()({"path": [path]}))
    assert outcome == (path, hash_video(path, {}), "")


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="short_sid: no such setting of Transcode; nearest: short_side"):
        Transcode(tmp_path, tmp_path / "out", short_sid=3)
