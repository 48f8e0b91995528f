"""The kinds of files that stvid reads, as `tools/fuzz.py` damages them: good files of each, and how they are read."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_damage import REFUSED, Seed

import stvid
from stvid.checkpoints import describe, load_checkpoint, save_model
from stvid.config import TrainConfig, dump_config, load_config
from stvid.config_sections import AugmentConfig
from stvid.data.annotations import read_diving48, read_hmdb51, read_kinetics, read_ssv1, read_ssv2, read_ucf101
from stvid.data.class_names import read_class_names
from stvid.data.dataset import TrainDataset
from stvid.data.manifest import read_manifest
from stvid.data.shard_stream import ShardStream
from stvid.data.sharding import plan_shards, write_shard, write_shard_index
from stvid.errors import StvidError, VideoError
from stvid.evaluation.comparison import compare
from stvid.evaluation.features import ClipFeatures, check_settings, load_features, save_features
from stvid.evaluation.progress import ProgressFile, VideoRecord
from stvid.evaluation.record import EvaluationResult
from stvid.evaluation.result import ViewAccumulator
from stvid.hub import save_pretrained
from stvid.journal import Journal
from stvid.look.report import report_html
from stvid.models.base import VideoModel
from stvid.protocol import Protocol
from stvid.runs import resume_config, stored_run
from stvid.video.reader import VideoReader, scan
from stvid.video.stored_index import StoredIndex, index_folder, pack_index, unpack_index, write_index

__all__ = ["MODES"]

Reading = Callable[[Path, str, np.random.Generator], Mapping[str, str]]
CLASSES = ("left", "right", "turn")
NOT_VIDEOS = (".csv", ".md", ".json", ".txt")
JOB = {"key": str, "stamp": list, "result": dict, "error": str}


def digest(*values: Any) -> str:
    """Returns a digest of arrays, tensors, bytes and whatever has a `repr`."""
    state = hashlib.blake2b(digest_size=12)
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        state.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode(errors="surrogatepass"))
    return state.hexdigest()


def once(read: Callable[[Path], Any]) -> Reading:
    """Makes a reading of a function that reads a path and returns all that it found."""

    def reading(path: Path, name: str, rng: np.random.Generator) -> Mapping[str, str]:
        found = read(path)
        return {"all": digest(*(found if isinstance(found, list) else [found]))}

    return reading


def files_of(folder: Path, first: str) -> dict[str, bytes]:
    """Returns all files below a folder, the named one first."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).read_bytes() for name in sorted(names, key=lambda name: name != first)}


# --- videos -----------------------------------------------------------------------------------------------------------


def videos(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Real videos; each is read frame by frame in one process, and in spans in another."""
    files = sorted(path for path in Path(options.clips).iterdir() if path.stat().st_size > 0)
    files = [path for path in files if path.suffix not in NOT_VIDEOS]
    if not files:
        raise SystemExit(f"{options.clips}: holds no videos; --clips names their folder")
    return [Seed(path.name, {path.name: path.read_bytes()}, read_video, ("single", "spans")) for path in files]


def read_video(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    """Reads some frames one by one, or those that follow each other together; returns a digest of each."""
    found: dict[str, str] = {}
    with VideoReader(path.read_bytes() if rng.random() < 0.3 else path) as reader:
        count = len(reader)
        assert len(reader.timestamps) == count > 0 and reader.fps > 0
        assert bool(np.all(np.diff(reader.timestamps) >= 0))
        begin = int(rng.integers(count))
        span = list(range(begin, min(begin + 3, count)))
        wanted = [*span, *(int(number) for number in rng.integers(count, size=2))]
        found["count"] = str(count)
        for numbers in [wanted] if reading == "spans" else [[number] for number in reversed(wanted)]:
            # Damage that only decoding shows leaves fewer frames than the reader had when it was opened.
            there = [number for number in numbers if number < len(reader)]
            try:
                frames = reader.get_batch(there)
            except VideoError:
                found |= {str(number): REFUSED for number in numbers}
                continue
            assert frames.shape == (len(there), reader.height, reader.width, 3)
            for number, frame in zip(there, frames, strict=True):
                value = digest(frame)
                if found.get(str(number), value) not in (value, REFUSED):
                    value = "two values in one reading"
                found[str(number)] = value
    return found


def small_videos(folder: Path) -> list[Path]:
    """Writes a few small videos: by time stamps and by counting."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for name, codec in (("a.mp4", "libx264"), ("b.webm", "libvpx-vp9"), ("c.avi", "mpeg4"), ("d.mp4", "libx265")):
        if codec not in av.codecs_available:
            continue
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(25))
            context = stream.codec_context
            context.width, context.height, context.pix_fmt, context.gop_size = 64, 64, "yuv420p", 6
            context.thread_count = 1
            if codec == "libx265":  # which writes beyond its memory for smaller frames
                params = "log-level=none:pools=1:frame-threads=1:rc-lookahead=10"
                context.options = {"preset": "ultrafast", "x265-params": params}
            for _ in range(18):
                picture = np.repeat(np.repeat(rng.integers(256, size=(8, 8, 3), dtype=np.uint8), 8, 0), 8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")))
            container.mux(stream.encode(None))
        paths.append(folder / name)
    return paths


# --- indices and shards -----------------------------------------------------------------------------------------------


def indices(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Stored indices: those of a list, and the packed one of a single video, also with all checksums right."""
    paths = small_videos(folder / "set" / "v")
    write_index(
        index_folder(folder / "set" / "v"),
        [(str(p), p.stat().st_size, pack_index(scan(p))) for p in paths],
        root=folder / "set" / "v",
    )
    seeds = []
    for name in ("index.json", "videos.npy", "indices.bin"):
        target = f"v.index/{name}"
        plain = name == "index.json"
        seeds.append(Seed(name, files_of(folder / "set", target), once(read_indices), sealed=not plain, plain=plain))
    for path in paths:
        content = {f"{path.name}.scan": pack_index(scan(path)), path.name: path.read_bytes()}
        seeds.append(Seed(f"scan of {path.name}", content, once(read_packed), sealed=True))
        seeds.append(
            Seed(
                f"inside the scan of {path.name}",
                content,
                once(read_packed),
                unpack=zlib.decompress,
                pack=lambda inner: zlib.compress(inner, 1),
            )
        )
        seeds.append(
            Seed(
                f"head of the scan of {path.name}",
                content,
                once(read_packed),
                plain=True,
                unpack=lambda packed: zlib.decompress(packed).partition(b"\n")[0],
                pack=functools.partial(_with_head, content[f"{path.name}.scan"]),
            )
        )
    return seeds


def _with_head(packed: bytes, head: bytes) -> bytes:
    return zlib.compress(head + b"\n" + zlib.decompress(packed).partition(b"\n")[2], 1)


def frames_of(source: Path | bytes, index: Any) -> list[Any]:
    """Returns some frames of a video that is read by an index, and its times; or that it is refused."""
    try:
        with VideoReader(source, index=index) as reader:
            numbers = [0, len(reader) // 2, len(reader) - 1]
            return [reader.get_batch(numbers), reader.timestamps]
    except VideoError as error:
        return [type(error).__name__]


def read_indices(path: Path) -> list[Any]:
    """Reads all videos of a list by its index."""
    stored = StoredIndex(path.parent)
    return [part for video in sorted((path.parent.parent / "v").iterdir()) for part in frames_of(video, stored)]


def read_packed(path: Path) -> list[Any]:
    """Reads one video by its own index."""
    return frames_of(path.with_name(path.name.removesuffix(".scan")), unpack_index(path.read_bytes()))


def shards(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Tar shards with their list, read by place and from front to back."""
    for number, path in enumerate(small_videos(folder / "flat")):
        place = folder / "set" / CLASSES[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    manifest = read_manifest(folder / "set")
    plan, _ = plan_shards(manifest, size=14_000, seed=0)
    (folder / "plan").mkdir()
    (folder / "shards").mkdir()
    made = []
    for number, rows in enumerate(plan):
        (folder / "plan" / f"shard-{number:06d}.json").write_text(json.dumps(rows))
        made.append(write_shard(str(folder / "shards" / f"shard-{number:06d}.tar"), {"plan": str(folder / "plan")}))
    write_shard_index(folder / "shards", manifest.class_names, made)
    seeds = [Seed("shards.json", files_of(folder / "shards", "shards.json"), once(read_shard), plain=True)]
    seeds += [Seed(shard["file"], files_of(folder / "shards", shard["file"]), once(read_shard)) for shard in made]
    return seeds


def read_shard(path: Path) -> list[Any]:
    """Reads each video of some shards by its place, then all of them from front to back."""
    manifest = read_manifest(path.parent)
    found: list[Any] = [manifest.class_names]
    for number in range(len(manifest)):
        assert manifest.members is not None
        try:
            content, index = manifest.members.read(number)
            found += frames_of(content, index)
        except VideoError as error:
            found.append(type(error).__name__)
    protocol = Protocol(frames=2, stride=1, short_side=16, crop=16)
    dataset = TrainDataset(manifest, protocol, AugmentConfig(jitter=(16, 20)), seed=0)
    for batch in ShardStream(dataset, videos_per_batch=1, seed=0, lanes=1):
        found.append(type(batch).__name__ if isinstance(batch, StvidError) else str(batch.labels.tolist()))
    return found


# --- weights ----------------------------------------------------------------------------------------------------------


@functools.cache
def small_model() -> VideoModel:
    """Returns the smallest model of the package, with random weights that are always the same."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"depth": (1, 1, 1, 1), "embed_dim": (8, 8, 8, 8), "head_dim": 8}
    model = stvid.create_model("uniformer_xxs", num_classes=3, num_frames=2, img_size=32, **shape)
    protocol = Protocol(frames=2, stride=2, short_side=32, crop=32, class_names=CLASSES)
    model.default_protocol = protocol
    return model.eval()


def read_weights(path: Path) -> list[Any]:
    """Loads weights into the small model."""
    model = small_model()  # of this process alone
    report = load_checkpoint(model, path)
    return [report.format, *model.state_dict().values(), model.default_protocol]


def checkpoints(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Weights of stvid, which carry a digest, and those of other programs."""
    model = small_model()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    arrays = {key: value.numpy() for key, value in state.items()}
    own = ("own.safetensors", "own.pt", "own.ckpt")
    for name in own[:2]:
        save_model(model, folder / name)
    _save_run(folder / "own.ckpt")
    torch.save({"model": state, "epoch": 3}, folder / "foreign.pth")
    torch.save({"model": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    (folder / "arrays.pkl").write_bytes(pickle.dumps({"blobs": arrays}, protocol=2))
    (folder / "checkpoint").write_bytes(pack_msgpack({"params": arrays}))
    from safetensors.torch import save_file

    save_file(state, folder / "foreign.safetensors")
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    return [Seed(name, {name: (folder / name).read_bytes()}, once(read_weights), sealed=name in own) for name in names]


def _save_run(path: Path) -> None:
    """Writes the checkpoint of a run as Lightning does, by stvid's own writer."""
    from stvid.engine.saving import AtomicCheckpointIO

    model = small_model()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    about = {**describe(model), "config": dump_config(TrainConfig()), "clips_per_step": 8, "training_videos": 16}
    content = {"state_dict": state, "stvid": about, "loops": {}, "epoch": 1, "global_step": 4, "callbacks": {}}
    AtomicCheckpointIO().save_checkpoint(content, path)


def pack_msgpack(value: Any) -> bytes:
    """Packs tables, texts and arrays as flax does (msgpack's specification; flax/serialization.py, extension 1)."""
    if isinstance(value, dict):
        parts = [pack_msgpack(key) + pack_msgpack(item) for key, item in value.items()]
        return struct.pack(">BI", 0xDF, len(parts)) + b"".join(parts)
    if isinstance(value, list | tuple):
        return struct.pack(">BI", 0xDD, len(value)) + b"".join(pack_msgpack(item) for item in value)
    if isinstance(value, str):
        return struct.pack(">BI", 0xDB, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, int):
        return struct.pack(">BI", 0xCE, value)
    inner = pack_msgpack([list(value.shape), value.dtype.name, np.ascontiguousarray(value).tobytes()])
    return struct.pack(">BIB", 0xC9, len(inner), 1) + inner


def descriptions(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """The descriptions in weights: of models and of runs, each value of which may be anything; and configs of hubs."""
    model = small_model()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    about = json.dumps(describe(model)).encode()
    run = {**describe(model), "config": dump_config(TrainConfig()), "clips_per_step": 8, "training_videos": 16}
    save_pretrained(model, folder / "hub")
    as_text = {"unpack": lambda content: content, "plain": True}
    return [
        Seed(
            "of .safetensors",
            {"m.safetensors": about},
            once(read_model),
            plain=True,
            pack=functools.partial(_in_safetensors, state),
            unpack=as_text["unpack"],
        ),
        Seed(
            "of .pt",
            {"m.pt": about},
            once(read_model),
            plain=True,
            pack=functools.partial(_in_pt, state),
            unpack=as_text["unpack"],
        ),
        Seed(
            "of a run",
            {"last.ckpt": json.dumps(run).encode()},
            once(read_run),
            plain=True,
            pack=functools.partial(_in_run, state),
            named=False,
            unpack=as_text["unpack"],
        ),
        Seed("hub's config.json", files_of(folder / "hub", "config.json"), once(read_hub), plain=True),
    ]


def _parsed(about: bytes) -> Any:
    try:
        return json.loads(about)
    except (ValueError, RecursionError):
        return about.decode(errors="replace")


def _in_safetensors(state: Mapping[str, torch.Tensor], about: bytes) -> bytes:
    from safetensors.torch import save

    return save(dict(state), {"format": "pt", "stvid": about.decode(errors="replace")})


def _in_pt(state: Mapping[str, torch.Tensor], about: bytes) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": dict(state), "stvid": _parsed(about)}, stream)
    return stream.getvalue()


def _in_run(state: Mapping[str, torch.Tensor], about: bytes) -> bytes:
    stream = io.BytesIO()
    content = {f"model.{key}": value for key, value in state.items()}
    torch.save({"state_dict": content, "stvid": _parsed(about), "loops": {}}, stream)
    return stream.getvalue()


def read_model(path: Path) -> list[Any]:
    """Builds the model of a file and runs it."""
    model = stvid.load_model(path)
    protocol = model.default_protocol
    return [*model.state_dict().values(), protocol, model.task, dict(model.measured)]


def read_run(path: Path) -> list[Any]:
    """Reads what a checkpoint holds of its run, as a continuation does, and its model."""
    config = resume_config(path)
    return [stored_run(path)["protocol"], dump_config(config).replace(str(path), ""), *read_model(path)]


def read_hub(path: Path) -> list[Any]:
    """Builds the model of a folder of the hub."""
    return read_model(path.parent)


# --- texts ------------------------------------------------------------------------------------------------------------


def _listed(manifest: Any) -> list[Any]:
    entries = [manifest[number] for number in range(len(manifest))]
    rows = [(os.path.basename(entry.path), entry.labels, entry.start, entry.end) for entry in entries]
    return [manifest.class_names, rows, manifest.notes]


def lists(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Lists of videos, and the annotations of data sets."""
    rows = [(f"v/{CLASSES[n % 3]} {n}.mp4", CLASSES[n % 3], n / 2, n + 1.5) for n in range(12)]
    plain = "path,label,start,end,split,group\n" + "".join(
        f'"{path}",{label},{start},{end},{"train" if n % 3 else "val"},g{n // 2}\n'
        for n, (path, label, start, end) in enumerate(rows)
    )
    kinetics = "label,youtube_id,time_start,time_end,split\n" + "".join(
        f"{label},abcdefghij{n},{start:g},{end:g},train\n" for n, (_, label, start, end) in enumerate(rows)
    )
    ssv2 = [{"id": str(n), "label": f"Moving {n % 3}", "template": f"Moving [thing] {n % 3}"} for n in range(12)]
    diving = [{"vid_name": f"v_{n}", "label": n % 3, "start_frame": 0, "end_frame": 9} for n in range(12)]
    texts = {
        "list.csv": (plain, lambda path: _listed(read_manifest(path))),
        "labels.csv": (
            plain.replace("split,group", "note,place"),
            lambda p: _listed(read_manifest(p, multilabel=True)),
        ),
        "two.csv": ("".join(f"{path},{label}\n" for path, label, *_ in rows), lambda p: _listed(read_manifest(p))),
        "kinetics.csv": (kinetics, lambda path: [read_kinetics(path)]),
        "ssv2.json": (json.dumps(ssv2), lambda path: [read_ssv2(path)]),
        "ssv1.csv": ("".join(f"{n};Moving {n % 3}\n" for n in range(12)), lambda path: [read_ssv1(path)]),
        "trainlist01.txt": (
            "".join(f"Dive/v_Dive_g{n:02d}_c01.avi {n % 3}\n" for n in range(12)),
            lambda path: [read_ucf101(path)],
        ),
        "wave_test_split1.txt": (
            "".join(f"video {n}.avi {n % 3}\n" for n in range(12)),
            lambda path: [read_hmdb51(path.parent)],
        ),
        "Diving48_V2_train.json": (json.dumps(diving), lambda path: [read_diving48(path)]),
    }
    return [
        Seed(name, {name: text.encode()}, once(read), plain=name.endswith(".json"))
        for name, (text, read) in texts.items()
    ]


def class_names(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Class names in all their forms."""
    names = [f"move {n} left" for n in range(20)]
    numbered = {name: n for n, name in enumerate(names)}
    texts = {
        "lines.txt": "\n".join(names),
        "classInd.txt": "".join(f"{n + 1} {name}\n" for n, name in enumerate(names)),
        "table.csv": "id,name\n" + "".join(f'{n},"{name}"\n' for n, name in enumerate(names)),
        "list.json": json.dumps(names),
        "numbers.json": json.dumps(numbered),
        "config.json": json.dumps({"id2label": {str(n): name for name, n in numbered.items()}}),
        "names.yaml": "names:\n" + "".join(f"  {n}: '{name}'\n" for n, name in enumerate(names)),
    }
    return [
        Seed(name, {name: text.encode()}, once(read_class_names), plain=name.endswith(".json"))
        for name, text in texts.items()
    ]


def configs(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Configs: a complete one as a run writes it, as YAML and as JSON, which is YAML, too."""
    import yaml

    text = dump_config(TrainConfig())
    as_json = json.dumps(yaml.safe_load(text))

    def read(path: Path) -> str:
        return dump_config(load_config(path))

    return [
        Seed("config.yaml", {"config.yaml": text.encode()}, once(read), named=False),
        Seed("values of a config", {"config.yaml": as_json.encode()}, once(read), plain=True, named=False),
    ]


# --- what stvid measures ----------------------------------------------------------------------------------------------


def small_result() -> EvaluationResult:
    """Returns an evaluation of a few videos."""
    protocol = Protocol(frames=2, stride=2, short_side=32, crop=32, views="2x1", class_names=CLASSES)
    accumulator = ViewAccumulator(protocol)
    rng = np.random.default_rng(0)
    for number in range(9):
        logits = torch.from_numpy(rng.normal(size=(len(accumulator.layout.views), 3)).astype(np.float32))
        accumulator.add(number, logits, np.array(number % 3), path=f"v/{number}.mp4")
    accumulator.add_failure(9, "v/9.mp4", "is empty (0 bytes)", labels=np.array(0))
    return accumulator.result()


def results(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Results of tests: their numbers and their logits, read, compared and shown; and features."""
    small_result().save(folder / "result")
    rng = np.random.default_rng(0)
    seconds = np.arange(5.0)
    found = ClipFeatures(
        rng.normal(size=(5, 8)).astype(np.float32),
        seconds,
        seconds + 1,
        np.arange(10).reshape(5, 2),
        "v/a.mp4",
        ("left",),
    )
    (folder / "features").mkdir()
    names = ["features.npz"]
    try:
        import pyarrow  # noqa: F401

        names.append("features.parquet")
    except ImportError:
        pass
    for name in names:
        save_features(found, folder / "features" / name)
    settings = {"model": "uniformer_s", "window": 2.0, "views": "1x1"}
    check_settings(folder / "settings", settings)
    written = (folder / "settings" / "features.json").read_bytes()
    return [
        Seed("result.json", files_of(folder / "result", "result.json"), once(read_result), plain=True),
        Seed("logits.npz", files_of(folder / "result", "logits.npz"), once(read_result), sealed=True),
        *(Seed(name, {name: (folder / "features" / name).read_bytes()}, once(read_features)) for name in names),
        Seed(
            "features.json",
            {"features.json": written},
            once(lambda path: check_settings(path.parent, settings)),
            plain=True,
        ),
    ]


def read_result(path: Path) -> list[Any]:
    """Reads a result and makes of it all that is made of results."""
    result = EvaluationResult.load(path.parent)
    page = report_html(result)
    return [result.summary(), result.logits, result.labels, compare(result, result).difference, len(page)]


def read_features(path: Path) -> list[Any]:
    """Reads the features of a video."""
    found = load_features(path)
    return [getattr(found, field.name) for field in dataclasses.fields(found)]


def journals(folder: Path, options: argparse.Namespace) -> list[Seed]:
    """Journals: of jobs and of evaluations, also with all checksums right."""
    header = {"job": {"title": "index", "root": "v"}}
    with Journal(folder / "job.journal", header, what="a journal", each=lambda record: None) as journal:
        for number in range(6):
            journal.add({"key": f"v/{number}.mp4", "stamp": [10, 20], "result": {"out": f"{number}"}, "error": ""})
    with ProgressFile(folder / "progress", "key") as progress:
        for number in range(3):
            logits = np.full((2, 3), number, np.float32)
            progress.add([VideoRecord(number, logits, np.array(number), 2, {"frozen": logits})])

    def read_job(path: Path) -> list[Any]:
        found: list[Any] = []
        with Journal(path, header, what="a journal", each=found.append, fields=JOB) as journal:
            journal.add({"key": "v/9.mp4", "stamp": [1, 2], "result": {}, "error": ""})
        with Journal(path, header, what="a journal", each=found.append, fields=JOB):
            return [found]

    def read_progress(path: Path) -> list[Any]:
        with ProgressFile(path, "key") as progress:
            return [(record.index, record.logits.tolist(), record.labels.tolist()) for record in progress.records]

    seeds = []
    for name, read in (("job.journal", read_job), ("progress", read_progress)):
        content = {name: (folder / name).read_bytes()}
        seeds.append(Seed(name, content, once(read)))
        seeds.append(Seed(f"records of {name}", content, once(read), plain=True, unpack=_records, pack=_with_sums))
    return seeds


def _records(content: bytes) -> bytes:
    rows = [json.loads(line) for line in content.splitlines()]
    return json.dumps([{key: value for key, value in row.items() if key != "crc32"} for row in rows]).encode()


def _with_sums(content: bytes) -> bytes:
    rows = _parsed(content)
    if not isinstance(rows, list):
        return content
    lines = []
    for number, row in enumerate(rows):
        if isinstance(row, dict) and number:
            row = {**row, "crc32": zlib.crc32(json.dumps(row).encode() + b"\n")}
        lines.append(json.dumps(row).encode() + b"\n")
    return b"".join(lines)


MODES: dict[str, Callable[[Path, argparse.Namespace], Sequence[Seed]]] = {
    "indices": indices,
    "shards": shards,
    "checkpoints": checkpoints,
    "descriptions": descriptions,
    "lists": lists,
    "class_names": class_names,
    "configs": configs,
    "results": results,
    "journals": journals,
    "videos": videos,
}
"""For each mode what makes its good files, in a folder of their own."""
