"""`make demo`: train on the embedded demo set, test, ask whether the model uses time, and predict a file.

It runs the commands that a user types, prints each before it runs, and fails if one fails or a number is out of its
bounds: at least 95% top-1 on the held-out split, at most 20% with frozen frames and 35% with shuffled ones (chance is
12.5%; the classes of the set differ only in how things move).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from stvid.data.manifest import read_manifest
from stvid.data.motion import resolve_motion

CONFIG = "uniformer_xxs_motion.yaml"
BOUNDS = {"normal": (0.95, 1.0), "frozen": (0.0, 0.20), "shuffled": (0.0, 0.35)}


def run(*arguments: str) -> None:
    """Runs `stvid` with arguments; ends this program if it fails."""
    print(f"\n$ stvid {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "stvid", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def new_output() -> Path:
    """Returns a run folder that does not exist yet."""
    output = Path("runs/demo")
    number = 2
    while output.exists():
        output = Path(f"runs/demo-{number}")
        number += 1
    return output


def main() -> int:
    """Runs the demo; returns the exit code."""
    started = time.perf_counter()
    output = new_output()
    run("train", "--config", CONFIG, "--out", str(output))
    trained = time.perf_counter() - started
    accuracy = {}
    for temporal in BOUNDS:
        options = [] if temporal == "normal" else ["--frame_order", temporal]
        run("test", "--checkpoint", str(output), *options)
        folder = output if temporal == "normal" else output / f"test-{temporal}"
        metrics = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
        accuracy[temporal] = next(value for name, value in metrics.items() if name.startswith("top1@"))
    video = read_manifest(resolve_motion("val"))[0]
    run("predict", video.path, "--checkpoint", str(output), "--topk", "3")
    print(f"(its label: {', '.join(video.labels)})")

    print(f"\ntrained in {trained / 60:.1f} minutes, data generation included; {output}")
    failed = False
    for temporal, (low, high) in BOUNDS.items():
        value = accuracy[temporal]
        bad = not low <= value <= high
        failed |= bad
        bound = f"at least {low:.0%}" if high == 1.0 else f"at most {high:.0%}"
        print(f"  top-1, {temporal:<9} frames {value:7.2%}   expected: {bound}{'   <-- MISSED' if bad else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
