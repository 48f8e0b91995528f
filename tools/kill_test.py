"""Kills stvid at random moments, lets it go on, and compares what comes out with an uninterrupted run.

    python tools/kill_test.py                      # train, test, features and prep, 20 moments each
    python tools/kill_test.py train --moments 5 --seed 3

Each kind of work runs once without interruption, which also tells how long it takes. Then it is started again and
again, killed with SIGKILL after a random time within that, with all the processes that it has started, and at last
started once more and left alone. The files that it leaves must be those of the uninterrupted run: weights bit by bit,
numbers, logits, features, indices and copies of videos. What it may leave beside them is nothing: no temporary file,
no lock. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COMMAND = [sys.executable, "-m", "stvid"]
VIDEOS = 6  # of each of two classes
SIZE, FRAMES = 48, 12
CLOCK = ("clips_per_second", "data_wait")  # columns that no two runs share
SMALL = [
    *("--protocol.frames", "4", "--protocol.short_side", "32", "--protocol.crop", "32", "--augment.jitter", "[32,40]"),
    *("--data.batch_size", "4", "--data.workers", "0", "--trainer.accelerator", "cpu", "--trainer.devices", "1"),
    *("--trainer.progress", "false", "--protocol.fps", "null"),
]


@dataclass(frozen=True)
class Kind:
    """A kind of work.

    Attributes:
        start: The words of the command after ``stvid``, from the folder of the inputs and that of the output.
        again: The words that let it go on after a kill, from the same folders and whether it can.
        digest: Returns a digest of each thing that the work leaves in the output.
    """

    start: Callable[[Path, Path], list[str]]
    again: Callable[[Path, Path], list[str]]
    digest: Callable[[Path], Mapping[str, str]]


def digest_of(*parts: bytes) -> str:
    """Returns a digest of bytes."""
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()


def arrays_of(path: Path, *, without: Sequence[str] = ()) -> str:
    """Returns a digest of the arrays in an ``.npz``."""
    with np.load(path) as held:
        return digest_of(*(f"{name} ".encode() + held[name].tobytes() for name in sorted(held) if name not in without))


def left_over(out: Path) -> dict[str, str]:
    """Names what should not be there any more; the lock of a run stays in its folder."""
    names = [path.name for pattern in (".*.tmp", ".?*.lock") for path in out.parent.rglob(pattern)]
    return {f"left over: {name}": "there" for name in names}


def trained(out: Path) -> Mapping[str, str]:
    """Returns digests of the weights and of the lines of a training."""
    import torch

    found = {}
    for name in ("last.ckpt", "best.ckpt"):
        state = torch.load(out / "checkpoints" / name, weights_only=True)["state_dict"]
        found[name] = digest_of(*(key.encode() + value.numpy().tobytes() for key, value in sorted(state.items())))
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            numbers = {key: value for key, value in row.items() if key not in CLOCK}
            found[f"line {line} of metrics.csv"] = digest_of(json.dumps(numbers).encode())
    return found | left_over(out)


def tested(out: Path) -> Mapping[str, str]:
    """Returns digests of the numbers and the logits of a test."""
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    found = {"metrics": digest_of(json.dumps([record["metrics"], record["per_class"]]).encode())}
    return {**found, "logits": arrays_of(out / "logits.npz", without=["run"]), **left_over(out)}


def featured(out: Path) -> Mapping[str, str]:
    """Returns digests of the features of each video, and of their list."""
    found = {path.relative_to(out).as_posix(): arrays_of(path) for path in sorted(out.rglob("*.npz"))}
    return {**found, "index.csv": digest_of((out / "index.csv").read_bytes()), **left_over(out)}


def prepared(out: Path) -> Mapping[str, str]:
    """Returns digests of the copies of videos."""
    found = {path.relative_to(out).as_posix(): digest_of(path.read_bytes()) for path in sorted(out.rglob("*.mp4"))}
    return {**found, **left_over(out)}


def _train(inputs: Path, out: Path) -> list[str]:
    lists = ["--data.train", str(inputs / "train"), "--data.val", str(inputs / "val")]
    config = ["--config", "uniformer_xxs_folder.yaml", "--trainer.max_epochs", "4", "--trainer.val_every", "1"]
    return ["train", *config, *SMALL, *lists, "--out", str(out)]


def _train_again(inputs: Path, out: Path) -> list[str]:
    saved = any((out / "checkpoints").glob("*.ckpt"))
    return ["train", "--resume", str(out)] if saved else _train(inputs, out)


def _test(inputs: Path, out: Path) -> list[str]:
    data = ["--checkpoint", str(inputs / "model.safetensors"), "--data", str(inputs / "val")]
    return ["test", *data, "--batch_size", "1", "--workers", "0", "--out", str(out)]


def _features(inputs: Path, out: Path) -> list[str]:
    data = ["--checkpoint", str(inputs / "model.safetensors"), "--data", str(inputs / "train")]
    return ["features", *data, "--workers", "0", "--device", "cpu", "--out", str(out)]


def _prep(inputs: Path, out: Path) -> list[str]:
    return ["prep", "transcode", str(inputs / "train"), "--out", str(out), "--short_side", "32", "--workers", "1"]


KINDS = {
    "train": Kind(_train, _train_again, trained),
    "test": Kind(_test, _test, tested),
    "features": Kind(_features, _features, featured),
    "prep": Kind(_prep, _prep, prepared),
}


def make_inputs(folder: Path) -> None:
    """Writes small videos of two classes, and a small model with random weights."""
    import av
    import torch

    import stvid
    from stvid.checkpoints import save_model
    from stvid.protocol import Protocol

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2 * VIDEOS):
            path = folder / split / ("left", "right")[number % 2] / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=25, options={"threads": "1"})
                stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
                picture = np.repeat(np.repeat(rng.integers(256, size=(6, 6, 3), dtype=np.uint8), 8, 0), 8, 1)
                for step in range(FRAMES):
                    moved = np.roll(picture, step * (1 if number % 2 else -1), axis=1)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, "rgb24")))
                container.mux(stream.encode(None))
    torch.manual_seed(0)
    shape = {"depth": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "head_dim": 8}
    model = stvid.create_model("uniformer_xxs", num_classes=2, num_frames=4, img_size=32, **shape)  # type: ignore[arg-type]
    protocol = Protocol(frames=4, stride=2, short_side=32, crop=32, views="2x3", class_names=("left", "right"))
    save_model(model.eval(), folder / "model.safetensors", protocol=protocol)


def run(words: Sequence[str], *, kill_after: float | None = None) -> tuple[int, str]:
    """Runs stvid in a process group of its own; returns its exit code and the last line that it printed."""
    command = [*COMMAND, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return process.returncode, lines[-1] if lines else ""


@dataclass
class Outcome:
    """The outcome of all kills of one kind.

    Attributes:
        kind: Its name.
        seconds: How long it takes without interruption.
        moments: How many rounds of kills there were.
        killed: How many processes were killed.
        equal: How many rounds ended with the files of the uninterrupted run.
        problems: What differed.
    """

    kind: str
    seconds: float
    moments: int = 0
    killed: int = 0
    equal: int = 0
    problems: tuple[str, ...] = ()

    def row(self) -> list[str]:
        """Returns its line in the table."""
        return [self.kind, f"{self.seconds:.1f}", str(self.moments), str(self.killed), str(self.equal)]


def kill_kind(name: str, inputs: Path, scratch: Path, options: argparse.Namespace) -> Outcome:
    """Kills one kind of work at several moments."""
    kind = KINDS[name]
    good = scratch / name / "good" / "out"
    good.parent.mkdir(parents=True)
    begin = time.monotonic()
    code, said = run(kind.start(inputs, good))
    outcome = Outcome(name, time.monotonic() - begin)
    if code != 0:
        raise SystemExit(f"{name}: does not run without interruption: {said}")
    expected = kind.digest(good)
    chance = random.Random(f"{options.seed} {name}")
    for number in range(options.moments):
        out = scratch / name / str(number) / "out"
        out.parent.mkdir(parents=True)
        words = kind.start(inputs, out)
        for _ in range(options.kills):
            code, said = run(words, kill_after=chance.uniform(0.2, 1.0) * outcome.seconds)
            outcome.killed += code == -signal.SIGKILL
            words = kind.again(inputs, out)
        code, said = run(words)
        outcome.moments += 1
        found = kind.digest(out) if code == 0 else {}
        differing = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        outcome.equal += code == 0 and not differing
        if code != 0 or differing:
            reason = said if code != 0 else f"{len(differing)} differ: {', '.join(differing[:4])}"
            outcome.problems += (f"{name}, moment {number}: {reason}",)
            print(outcome.problems[-1], flush=True)
        shutil.rmtree(out.parent)
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns the table: a line for each kind."""
    rows = [["kind", "s", "moments", "killed", "equal"], *(outcome.row() for outcome in outcomes)]
    return "\n".join("  ".join(cell.rjust(8) for cell in row) for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Kills what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"default all: {', '.join(KINDS)}")
    parser.add_argument("--moments", type=int, default=20, help="rounds of kills of each kind")
    parser.add_argument("--kills", type=int, default=1, help="kills in each round, one after the other")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", help="folder for the files; default a temporary one")
    options = parser.parse_args(argv)
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"there is no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    outcomes = []
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="kill_test_") as folder:
        make_inputs(Path(folder) / "inputs")
        for name in options.kinds or KINDS:
            outcomes.append(kill_kind(name, Path(folder) / "inputs", Path(folder), options))
            print(f"{table(outcomes)}\n", flush=True)
    return 1 if any(outcome.equal != outcome.moments for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
