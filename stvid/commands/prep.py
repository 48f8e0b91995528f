"""``stvid prep``: from official annotations and downloaded files to a data set that trains without surprises.

There is one function a command, each thin over a module of `stvid.data`. ``stvid-prep X`` is another name of
``stvid prep X``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands import predict, test
from stvid.commands.common import parse, parser_for
from stvid.commands.dispatch import dispatch
from stvid.console import printable
from stvid.data.jobs import Job, Outcome
from stvid.errors import ConfigError, ManifestError, StvidError, nearest
from stvid.files import TEMPORARY, write_atomically, write_lines, write_table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.data.conversion import Annotated
    from stvid.data.manifest import Manifest

__all__ = ["COMMANDS", "main", "run"]


def _add_list(parser: ArgumentParser) -> None:
    parser.add_argument("videos", type=str, help="List of videos: CSV, JSON or a folder per class, as for training.")
    parser.add_argument("--root", type=str | None, help="Folder that relative paths of the list start from.")
    parser.add_argument("--multilabel", action="store_true", help="Labels of the list are several, joined by |.")


def _add_job(parser: ArgumentParser, *, parts: bool = True) -> None:
    parser.add_argument(
        "--workers",
        type=int | None,
        help="Processes; default one for each core, with --ray_address all the cluster has.",
    )
    parser.add_argument(
        "--engine", type=Literal["local", "ray"], default="local", help="Processes of this machine, or tasks of Ray."
    )
    parser.add_argument(
        "--ray_address",
        type=str | None,
        help="Cluster for --engine ray: auto, HOST:PORT or ray://HOST:PORT; default Ray is started on this machine.",
    )
    if parts:
        parser.add_argument(
            "--shard",
            type=str | None,
            help="Do one part of the work, i/n: 1/4 to 4/4 are all of four; slurm takes the place of this process in "
            "its SLURM array. Videos that fail are listed by the merge, and do not count in the exit code. Afterwards "
            "stvid prep merge, with the same command without --shard, writes the result.",
        )


_Merged = list[Path]
"""The journals of the parts that were joined, to be removed when the result is written."""


def _outcomes(job: Job, options: Any, merged: _Merged | None) -> list[Outcome] | None:
    """Does a job, or joins its parts if `merged` is a list; returns None if only a part was done, which is said."""
    from stvid.data.jobs import merge_parts, run_jobs
    from stvid.data.parts import Part

    if options.ray_address is not None and options.engine != "ray":
        raise ConfigError("--ray_address: belongs to --engine ray, which is missing")
    if merged is not None:
        outcomes, journals = merge_parts(job)
        merged += journals
        return outcomes
    shard = getattr(options, "shard", None)
    part = None if shard is None else Part.parse(shard)
    outcomes = run_jobs(job, workers=options.workers, part=part, engine=options.engine, ray_address=options.ray_address)
    if part is None:
        return outcomes
    failed = sum(bool(outcome.error) for outcome in outcomes)
    print(f"shard {part}: {len(outcomes)} of {len(job.keys)} done, {failed} of them failed; {part.beside(job.journal)}")
    return None


def _read(options: Any) -> Manifest:
    from stvid.data.manifest import read_manifest

    videos = _of_files(read_manifest(options.videos, root=options.root, multilabel=options.multilabel))
    for note in videos.notes:
        print(printable(note), file=sys.stderr)
    return videos


def _of_files(manifest: Manifest) -> Manifest:
    if (members := manifest.members) is not None:
        raise ConfigError(f"{manifest.source}: its videos lie {members.place}, not in files; {members.instead}")
    return manifest


def _paths(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(manifest[number].path for number in range(len(manifest))))


def _report_failures(outcomes: Sequence[Outcome], place: Path) -> int:
    """Lists the files that failed; returns the exit code."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if not failed:
        place.unlink(missing_ok=True)
        return 0
    rows = [(outcome.key, outcome.error.removeprefix(f"{outcome.key}: ")) for outcome in failed]
    write_table(place, ("path", "reason"), rows)
    print(printable(f"{len(failed)} of {len(outcomes)} videos failed; they are listed in {place}"), file=sys.stderr)
    return 1


def _manifest_parser() -> ArgumentParser:
    from stvid.data.conversion import DATASETS
    from stvid.data.exchange.formats import EXCHANGE

    parser = parser_for(
        "prep manifest",
        "Write a list of videos (path,label[,start,end]) and its class names from an official annotation, or from what "
        "a tool wrote that people label with. Videos that are annotated but not there are listed beside it.",
    )
    parser.add_argument("dataset", type=str, help=f"{', '.join(DATASETS)}; or the tool: {', '.join(EXCHANGE)}")
    parser.add_argument(
        "annotation", type=str, help="Official file (HMDB51: folder of the split files), or the file of the tool."
    )
    parser.add_argument("--root", type=str | None, help="Folder of the videos; default that of the annotation.")
    parser.add_argument("--out", type=str, required=True, help="The CSV to write.")
    parser.add_argument(
        "--part",
        type=Literal["train", "val", "test"] | None,
        help="HMDB51, HACS, ActivityNet: the part; default train.",
    )
    parser.add_argument("--split", type=Literal[1, 2, 3] | None, help="HMDB51: which split; default 1.")
    parser.add_argument(
        "--rows",
        type=Literal["videos", "segments"] | None,
        help="Charades, HACS, ActivityNet: whole videos, of which one may show several classes (default of Charades), "
        "or each annotated part (default of the others).",
    )
    parser.add_argument(
        "--field",
        type=str | None,
        help="Tools: where the labels stand, if in several places (a control, an attribute, a field, a column).",
    )
    parser.add_argument(
        "--fps",
        type=float | None,
        help="Tools: frames a second by which the file counts frames; default what it says, else the times of the "
        "videos.",
    )
    return parser


def _converted(options: Any) -> Annotated:
    """Returns the list that the options name.

    Raises:
        ConfigError: If an option does not belong to this data set.
        ManifestError: If the annotation cannot be read, or none of its videos is there.
    """
    from stvid.data.conversion import PARTS, ROW_KINDS, SPLITS, convert, convert_export
    from stvid.data.exchange.formats import EXCHANGE, ExchangeOptions

    annotation = Path(options.annotation)
    root = Path(options.root) if options.root else (annotation if annotation.is_dir() else annotation.parent)
    for option, datasets in (("part", PARTS), ("split", SPLITS), ("rows", ROW_KINDS)):
        if options.dataset not in datasets and getattr(options, option) is not None:
            more = "" if option == "rows" else f"; {options.dataset} has a file for each"
            raise ConfigError(f"--{option}: only for {', '.join(datasets)}{more}")
    if options.dataset in EXCHANGE:
        if options.fps is not None and not 0 < options.fps <= 1000:
            raise ConfigError(f"--fps {options.fps:g}: is not a number above 0 and up to 1000")
        out = Path(options.out)
        stored = options.dataset in ("hugging-face", "parquet")  # bytes become files there
        videos = out.with_name(f"{out.stem}_videos") if stored else None
        settings = ExchangeOptions(field=options.field, fps=options.fps, multilabel=None, videos=videos)
        return convert_export(options.dataset, annotation, root, settings)
    for option in ("field", "fps"):
        if getattr(options, option) is not None:
            raise ConfigError(f"--{option}: only for {', '.join(EXCHANGE)}")
    if options.dataset == "folder" and options.root:
        raise ConfigError("--root: has no meaning for a folder per class; leave it out")
    part, split = options.part or "train", options.split or 1
    return convert(options.dataset, annotation, root, part=part, split=split, rows=options.rows)


def manifest(argv: Sequence[str]) -> int:
    """Write the list of videos of a data set from its official annotation, or from what a labelling tool wrote."""
    from stvid.data.conversion import CLASSES, write_class_names, write_list

    options = parse(_manifest_parser(), argv)
    found = _converted(options)
    out = Path(options.out)
    names = out.with_name(f"{out.stem}_classes.txt")
    write_list(out, found)
    try:
        write_class_names(names, found.class_names)
    except ManifestError:
        out.unlink()
        raise
    total = len(found.rows) + len(found.missing)
    print(f"{len(found.rows)} of {total} annotated videos are there: {out}; {len(found.class_names)} classes: {names}")
    for note in found.notes:
        print(printable(note), file=sys.stderr)
    if found.repeated:
        print(f"{found.repeated} rows of the annotation are there twice and were left out once", file=sys.stderr)
    if found.multilabel:
        print(f"labels are joined by |: read {out} with --multilabel (in a config: task: multilabel)")
    expected = CLASSES.get(options.dataset)
    if expected is not None and len(found.class_names) not in (0, expected):
        print(f"{options.dataset} has {expected} classes, the annotation {len(found.class_names)}", file=sys.stderr)
    for kind, values in (("missing", found.missing), ("unexpected", found.unexpected)):
        place = out.with_name(f"{out.stem}_{kind}.txt")
        write_lines(place, values)
        if values:
            print(f"{len(values)} {kind}: {place}", file=sys.stderr)
    return 0


def labels(argv: Sequence[str]) -> int:
    """Write a list of videos with its labels as the file of a labelling tool, or as Parquet or JSON."""
    from stvid.data.exchange.writing import WRITTEN, write_labels

    parser = parser_for(
        "prep labels",
        "Write a list of videos with its labels as the file of a labelling tool, for people to look through and to "
        "correct. stvid prep manifest is the way back.",
    )
    _add_list(parser)
    parser.add_argument("--to", type=str, required=True, help=f"One of {', '.join(WRITTEN)}.")
    parser.add_argument(
        "--out", type=str, required=True, help="The file; for cvat, fiftyone and hugging-face the folder."
    )
    parser.add_argument(
        "--served",
        type=str | None,
        help="Label Studio: the folder that it serves files from (LOCAL_FILES_DOCUMENT_ROOT); default the one that is "
        "above all videos.",
    )
    options = parse(parser, argv)
    if options.served is not None and options.to != "label-studio":
        raise ConfigError("--served: belongs to --to label-studio")
    videos = _read(options)
    written = write_labels(videos, options.to, options.out, served=options.served)
    print(printable(f"{len(_paths(videos))} videos: {', '.join(map(str, written))}"))
    return 0


def scan(argv: Sequence[str], *, merged: _Merged | None = None) -> int:
    """Find videos that are unreadable, damaged, of the wrong length, or there twice."""
    from stvid.data.stages import Scan

    parser = parser_for(
        "prep scan", "Read every video of a list and report what is wrong with it. Exit code 1 if anything is."
    )
    _add_list(parser)
    _add_job(parser)
    parser.add_argument("--out", type=str | None, help="The report (CSV); default beside the list.")
    parser.add_argument("--full", action="store_true", help="Decode every frame, not only the first, middle and last.")
    parser.add_argument("--shortest", type=float, default=0.5, help="Seconds below which a video counts as short.")
    parser.add_argument("--fix", type=str | None, help="Also write a list without the unreadable videos (CSV).")
    options = parse(parser, argv)
    videos = _read(options)
    out = Path(options.out) if options.out else Path(f"{options.videos.rstrip('/')}.scan.csv")
    job = Job(Scan(full=options.full), _paths(videos), "scan", out.with_suffix(".jsonl"))
    outcomes = _outcomes(job, options, merged)
    return 0 if outcomes is None else _report_scan(videos, outcomes, out, options)


def _report_scan(videos: Manifest, outcomes: Sequence[Outcome], out: Path, options: Any) -> int:
    from stvid.data.scanning import findings

    entries = [videos[number] for number in range(len(videos))]
    parts: dict[str, list[tuple[float, float | None]]] = {}
    for entry in entries:
        if entry.start is not None or entry.end is not None:
            parts.setdefault(entry.path, []).append((entry.start or 0.0, entry.end))
    found = findings(outcomes, parts, shortest=options.shortest)
    write_table(out, ("path", "kind", "detail"), found)
    kinds = {kind: sum(1 for row in found if row[1] == kind) for kind in dict.fromkeys(row[1] for row in found)}
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing is wrong"
    print(f"{len(outcomes)} videos: {summary}; {out}")
    if options.fix:
        bad = {outcome.key for outcome in outcomes if outcome.error}
        good = [entry for entry in entries if entry.path not in bad]
        if not good:
            raise ManifestError(f"{options.videos}: none of its videos can be read; {options.fix} is not written")
        _write_manifest(Path(options.fix), good)
        print(f"{len(good)} readable of {len(entries)} listed: {options.fix}")
    return 1 if found else 0


def _write_manifest(path: Path, entries: Sequence[Any]) -> None:
    from stvid.data.conversion import Annotated, write_list

    rows = [(entry.path, "|".join(entry.labels), entry.start, entry.end) for entry in entries]
    write_list(path, Annotated(rows=rows))


def _transcode_parser() -> ArgumentParser:
    from stvid.data.transcoding import DEFAULTS

    parser = parser_for(
        "prep transcode",
        "Copy every video of a list as H.264 with the given short side and distance of key frames. An interrupted run "
        "is continued by the same command; a copy is in its place only when it is whole and was read again.",
    )
    _add_list(parser)
    _add_job(parser)
    parser.add_argument("--out", type=str, required=True, help="Folder for the copies and their list.")
    parser.add_argument(
        "--short_side", type=int, default=DEFAULTS["short_side"], help="Pixels; smaller videos keep their size."
    )
    parser.add_argument("--gop", type=int, default=DEFAULTS["gop"], help="Frames from one key frame to the next.")
    parser.add_argument("--all_intra", action="store_true", help="Only key frames: --gop 1.")
    parser.add_argument("--crf", type=int, default=DEFAULTS["crf"], help="Quality of x264: 18 is good, 28 is small.")
    parser.add_argument("--preset", type=str, default=DEFAULTS["preset"], help="Speed of x264: ultrafast to veryslow.")
    parser.add_argument(
        "--frames_fps",
        type=float | None,
        help="Images a second of videos that are folders of images; 12 for Something-Something v1.",
    )
    return parser


def _transcode_settings(options: Any) -> dict[str, Any]:
    """Returns the options of `stvid.data.stages.Transcode`.

    Raises:
        ConfigError: If an option is out of its range.
    """
    from stvid.data.transcoding import PRESETS

    if not 0 <= options.crf <= 51 or options.gop < 1 or options.short_side < 16:
        raise ConfigError("--crf is 0 to 51, --gop at least 1, --short_side at least 16")
    if options.preset not in PRESETS:
        raise ConfigError(
            f"--preset {options.preset}: is none of {', '.join(PRESETS)}{nearest(options.preset, PRESETS)}"
        )
    if options.frames_fps is not None and not 0 < options.frames_fps <= 1000:
        raise ConfigError(f"--frames_fps {options.frames_fps:g}: is not a number above 0 and up to 1000")
    root = Path(options.root or (options.videos if Path(options.videos).is_dir() else Path(options.videos).parent))
    return {
        "root": str(root.absolute()),
        "out": str(Path(options.out).absolute()),
        "short_side": options.short_side,
        "gop": 1 if options.all_intra else options.gop,
        "crf": options.crf,
        "preset": options.preset,
        "frames_fps": options.frames_fps,
    }


def transcode(argv: Sequence[str], *, merged: _Merged | None = None) -> int:
    """Write small copies that are quick to seek: short side, distance of key frames."""
    import dataclasses

    from stvid.data.stages import Transcode

    options = parse(_transcode_parser(), argv)
    settings = _transcode_settings(options)
    videos = _read(options)
    out = Path(options.out)
    paths = _paths(videos)
    _refuse_collisions(paths, settings)
    if options.shard is None and merged is None:
        for left_over in out.rglob(f".*.mp4.*{TEMPORARY}"):  # left by a run that was killed
            left_over.unlink()

    def intact(result: Mapping[str, Any]) -> bool:
        return os.path.isfile(result["out"]) and os.path.getsize(result["out"]) == result["bytes_after"]

    job = Job(Transcode(**settings), paths, "transcode", out / "transcode.jsonl", intact)
    outcomes = _outcomes(job, options, merged)
    if outcomes is None:
        return 0
    done = {outcome.key: outcome.result for outcome in outcomes if not outcome.error}
    entries = [videos[number] for number in range(len(videos))]
    copies = [dataclasses.replace(e, path=done[e.path]["out"]) for e in entries if e.path in done]
    if copies:
        _write_manifest(out / "videos.csv", copies)
        before, after = (sum(result[key] for result in done.values()) for key in ("bytes_before", "bytes_after"))
        print(f"{len(done)} videos, {before / 1e6:.1f} MB to {after / 1e6:.1f} MB ({after / before:.2f} times): {out}")
        print(f"their list: {out / 'videos.csv'}")
    return _report_failures(outcomes, out / "failed.csv")


def _refuse_collisions(paths: Sequence[str], settings: dict[str, Any]) -> None:
    from stvid.data.transcoding import output_path

    places: dict[Path, str] = {}
    for path in paths:
        place = output_path(path, settings["root"], settings["out"])
        other = places.setdefault(place, path)
        if other != path:
            raise ConfigError(
                f"{path} and {other} would both become {place}; rename one, or give the folder of both with --root"
            )
        if place == Path(path).absolute():
            raise ConfigError(f"{path} would be replaced by its own copy; give another --out")


def index(argv: Sequence[str], *, merged: _Merged | None = None) -> int:
    """Scan all videos once, so that training and tests need not."""
    import shutil

    from stvid.data.stages import Index
    from stvid.video.stored_index import index_folder, unpack_index, write_index

    parser = parser_for(
        "prep index",
        "Scan the packets of every video of a list once. The index lies beside the list (LIST.index), where training "
        "and tests find it.",
    )
    _add_list(parser)
    _add_job(parser)
    options = parse(parser, argv)
    videos = _read(options)
    folder = index_folder(options.videos)
    work = folder.with_name(f"{folder.name}.work")
    if merged is None:
        work.mkdir(parents=True, exist_ok=True)

    def intact(result: Mapping[str, Any]) -> bool:
        file = work / result["file"]
        return file.is_file() and unpack_index(file.read_bytes()) is not None

    job = Job(Index(work), _paths(videos), "index", work / "journal.jsonl", intact)
    outcomes = _outcomes(job, options, merged)
    if outcomes is None:
        return 0
    done = [outcome for outcome in outcomes if not outcome.error]
    indices = ((video.key, video.result["bytes"], (work / video.result["file"]).read_bytes()) for video in done)
    count = write_index(folder, indices, root=folder.parent)
    shutil.rmtree(work)
    print(f"{count} videos: {folder}")
    return _report_failures(outcomes, folder.with_name(f"{folder.name}.failed.csv"))


def _shard_parser() -> ArgumentParser:
    parser = parser_for(
        "prep shard",
        "Write the videos of a list, shuffled and unchanged, and an index of each into WebDataset tar files and "
        "shards.json. Training and tests take the folder, or the URL that it is copied to, in the place of the list. A "
        "video of which the list has several parts is written as often.",
    )
    _add_list(parser)
    _add_job(parser)
    parser.add_argument("--out", type=str, required=True, help="Folder for the shards.")
    parser.add_argument("--size", type=float, default=500.0, help="Megabytes of a shard.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the order of the videos, 0 or more.")
    parser.add_argument("--class_names", type=str | None, help="File or packaged list of the classes; default sorted.")
    return parser


def shard(argv: Sequence[str], *, merged: _Merged | None = None) -> int:
    """Write the videos of a list into WebDataset tar shards."""
    from stvid.data.manifest import read_class_names, read_manifest
    from stvid.data.sharding import plan_shards, write_shard_index
    from stvid.data.stages import Shard

    options = parse(_shard_parser(), argv)
    if not 0 < options.size < float("inf") or options.seed < 0:
        raise ConfigError("--size is a number of megabytes above 0, --seed 0 or more")
    names = read_class_names(options.class_names) if options.class_names else None
    videos = _of_files(
        read_manifest(options.videos, root=options.root, class_names=names, multilabel=options.multilabel)
    )
    plan, failed = plan_shards(videos, size=options.size * 1e6, seed=options.seed)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    code = _report_failures([Outcome(path, {}, failed.get(path, "")) for path in _paths(videos)], out / "failed.csv")
    if not plan:
        raise ManifestError(f"{options.videos}: none of its videos can be put into shards; see {out / 'failed.csv'}")
    with _plan_folder(out, plan, videos.class_names, shared=options.shard is not None) as (folder, tars):
        job = Job(Shard(folder), [str(tar) for tar in tars], "shard", out / "shard.jsonl")
        outcomes = _outcomes(job, options, merged)
        if outcomes is None:
            return 0
        _refuse_broken(outcomes)
        write_shard_index(out, videos.class_names, [outcome.result for outcome in outcomes])
    size = sum(outcome.result["bytes"] for outcome in outcomes)
    print(f"{sum(map(len, plan))} videos in {len(plan)} shards, {size / 1e6:.1f} MB: {out}")
    return code


@contextlib.contextmanager
def _plan_folder(
    out: Path, plan: Sequence[Sequence[Any]], class_names: Sequence[str], *, shared: bool
) -> Iterator[tuple[Path, list[Path]]]:
    """Keeps the plan where the workers find it, until all shards are written or the options are refused.

    Args:
        out: The folder of the shards.
        plan: The rows of each tar.
        class_names: The classes of the list.
        shared: Whether other processes do other parts of the plan, so that it stays.

    Yields:
        The folder of the plan, named after what stands in it, and the tar files to write.
    """
    import hashlib
    import json
    import shutil

    from stvid.data.shards import ROW

    digest = hashlib.sha256(json.dumps([plan, class_names, ROW]).encode()).hexdigest()[:16]
    folder = out / f".plan-{digest}"
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    tars = [out / f"shard-{number:06d}.tar" for number in range(len(plan))]
    for tar, rows in zip(tars, plan, strict=True):
        file, text = folder / f"{tar.stem}.json", json.dumps(rows)
        if not file.exists():  # another process may read it now
            write_atomically(file, functools.partial(Path.write_text, data=text, encoding="utf-8"))
    try:
        yield folder, tars
    except ConfigError:
        if new:
            shutil.rmtree(folder)
        raise
    if not shared:
        shutil.rmtree(folder)


def _refuse_broken(outcomes: Sequence[Outcome]) -> None:
    broken = [outcome for outcome in outcomes if outcome.error]
    if broken:
        raise StvidError(
            f"{len(broken)} of {len(outcomes)} shards could not be written ({broken[0].error}); the same command goes "
            "on from there"
        )


def check_leakage(argv: Sequence[str]) -> int:
    """Find near-duplicates of the training videos among the test videos."""
    from stvid.data.leakage import near_duplicates
    from stvid.data.stages import Hash

    parser = parser_for(
        "prep check-leakage",
        "Find videos of one list of which the other holds a copy, be it encoded anew, scaled or slightly cropped. Exit "
        "code 1 if there are any.",
    )
    parser.add_argument("train", type=str, help="One list of videos.")
    parser.add_argument("test", type=str, help="The other list.")
    parser.add_argument("--out", type=str, default="leakage.csv", help="The pairs.")
    parser.add_argument(
        "--threshold", type=float, default=8.0, help="Largest mean difference of two hashes, in bits of 64."
    )
    _add_job(parser, parts=False)
    options = parse(parser, argv)
    from stvid.data.manifest import read_manifest

    # Labels do not matter here; as a multi-label list, one with unlabelled videos is read, too.
    sides = [_paths(_of_files(read_manifest(source, multilabel=True))) for source in (options.train, options.test)]
    out = Path(options.out)
    everything = list(dict.fromkeys(sides[0] + sides[1]))
    journal = out.with_suffix(".jsonl")
    outcomes = _outcomes(Job(Hash(), everything, "check-leakage", journal), options, None)
    assert outcomes is not None  # there are no parts
    hashes = {outcome.key: outcome.result["hashes"] for outcome in outcomes if not outcome.error}
    first, second = ([path for path in side if path in hashes] for side in sides)
    pairs = near_duplicates([hashes[p] for p in first], [hashes[p] for p in second], threshold=options.threshold)
    write_table(out, ("train", "test", "distance"), [(first[a], second[b], f"{d:.2f}") for a, b, d in pairs])
    print(f"{len(first)} and {len(second)} videos: {len(pairs)} near-duplicate pairs; {out}")
    code = _report_failures(outcomes, out.with_name(f"{out.stem}_failed.csv"))
    return 1 if pairs else code


_IN_PARTS: dict[str, Callable[..., int]] = {
    "scan": scan,
    "transcode": transcode,
    "index": index,
    "shard": shard,
    "test": test.run,
    "predict": predict.run,
}
"""The commands with ``--shard``, whose parts are joined: those of ``stvid prep``, then those of ``stvid``."""


def merge(argv: Sequence[str]) -> int:
    """Join what the parts of a run with --shard did, and write its result."""
    parser = parser_for(
        "prep merge",
        "Join the journals of all parts of a run with --shard and write the result, which is that of one process. All "
        "parts must be there, whole, and of the same options and list. Exit code as that of the command.",
    )
    parser.add_argument("command", type=str, help=f"The command that ran in parts: {', '.join(_IN_PARTS)}.")
    parser.add_argument("options", type=str, nargs="*", default=[], help="Its list and its options, without --shard.")
    if not argv or argv[0].startswith("-"):
        parse(parser, argv)
    command, *rest = argv
    if command not in _IN_PARTS:
        raise ConfigError(f"{command}: has no --shard{nearest(command, _IN_PARTS)} ({', '.join(_IN_PARTS)})")
    if any(word == "--shard" or word.startswith("--shard=") for word in rest):
        raise ConfigError("--shard: merge joins all parts; leave it out")
    merged: _Merged = []
    code = _IN_PARTS[command](rest, merged=merged)
    for journal in merged:
        journal.unlink(missing_ok=True)
    return code


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "manifest": manifest,
    "labels": labels,
    "scan": scan,
    "transcode": transcode,
    "index": index,
    "shard": shard,
    "merge": merge,
    "check-leakage": check_leakage,
}


def run(argv: Sequence[str]) -> int:
    """Prepare data sets: lists, checks, smaller copies, indices, shards."""
    return dispatch("stvid prep", "Prepare data sets of videos.", COMMANDS, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``stvid-prep``, the older name of ``stvid prep``; returns the exit code."""
    return run(sys.argv[1:] if argv is None else argv)
