"""Does an inflated network learn to see motion? Trains one of each mode on `motion`, from weights that begin at chance.

    python tools/inflation_training.py --out /tmp/inflation_training            # conv, shift and attention
    python tools/inflation_training.py --out /tmp/inflation_training --quick    # a few steps each, no bound

For each mode: a small 2D network of timm learns which of 15 things (5 shapes times 3 textures) a still frame of the
demo set shows, which says nothing of how it moves. `stvid inflate` makes it a video model, `stvid.evaluate` says what
that scores on the 8 classes of motion, `stvid train` trains it, and `stvid test` tests it, also on frozen frames. The
commands are printed. The exit code is 0 only if each mode starts at chance (12.5%; at most 20%), ends at 90% top-1 or
more, and falls back to chance without motion.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = "uniformer_xxs_motion.yaml"
SIDE = 64  # pixels of the files
MEAN, STD = 0.45, 0.225  # as in the config
FRAMES, STRIDE = 8, 2  # all 16 frames of a video, every second one
SHAPES, TEXTURES = 5, 3  # that `motion` draws
BATCH = 64  # stills
STILL_EPOCHS = 30
STILL_LEARNT = 0.3  # top-1 of 15 classes that the 2D network must reach to count as trained
CHANCE, LEARNT = 0.20, 0.90  # bounds of the top-1


@dataclass(frozen=True)
class Trial:
    """A network to inflate and train.

    Attributes:
        mode: ``temporal`` of `stvid inflate`.
        name: The name of the 2D network in timm, a small one: minutes on two cores.
        side: Pixels to which the frames, still and moving, are scaled.
        epochs: On `motion`, 4,800 videos each.
    """

    mode: str
    name: str
    side: int
    epochs: int


TRIALS = (
    Trial("conv", "test_resnet", side=32, epochs=3),
    Trial("shift", "test_resnet", side=32, epochs=4),
    # Learns in fewer epochs than test_coatnet.
    Trial("attention", "mobilevit_xxs", side=64, epochs=4),
)


# --- still frames -----------------------------------------------------------------------------------------------------


def draw_stills(split: str, videos: int) -> tuple[Tensor, Tensor]:
    """Draws a random frame of each of the first videos of a split of `motion`.

    Returns:
        Images (videos, 3, SIDE, SIDE) in [0, 1], and the classes of what they show (videos,).
    """
    from stvid.data import motion

    drawn: dict[str, int] = {}

    def noting(what: str, kinds: int, draw: Callable[[np.random.Generator], Any]) -> Callable[..., Any]:
        def call(rng: np.random.Generator) -> Any:
            drawn[what] = int(copy.deepcopy(rng).integers(kinds))  # the first that the function draws is the kind
            return draw(rng)

        return call

    choose = np.random.default_rng(0)
    images, labels = [], []
    with (
        mock.patch.object(motion, "_outline", noting("shape", SHAPES, motion._outline)),
        mock.patch.object(motion, "_texture", noting("texture", TEXTURES, motion._texture)),
    ):
        for index in range(videos):
            frames, _ = motion.render_clip(index, split=split)
            images.append(torch.from_numpy(frames[choose.integers(len(frames))]).permute(2, 0, 1))
            labels.append(drawn["shape"] * TEXTURES + drawn["texture"])
    return torch.stack(images).float() / 255, torch.tensor(labels)


def prepare(images: Tensor, side: int) -> Tensor:
    """Scales and normalises images (N, 3, SIDE, SIDE) as the config does videos; returns (N, 3, side, side)."""
    return (F.interpolate(images, (side, side), mode="bilinear", antialias=True) - MEAN) / STD


def train_on_stills(
    network: nn.Module, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], *, epochs: int
) -> float:
    """Trains a 2D network to name what a still frame shows; returns its top-1 on other videos."""
    images, labels = train
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            batch = images[chosen]
            batch = batch.flip(3) if torch.rand(()) < 0.5 else batch
            batch = batch.flip(2) if torch.rand(()) < 0.5 else batch
            loss = F.cross_entropy(network(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(batch).argmax(1) for batch in val[0].split(BATCH)])
    return (found == val[1]).float().mean().item()


# --- motion -----------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> None:
    """Runs `stvid` with arguments; ends this program if it fails."""
    print(f"\n$ stvid {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "stvid", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def top1(folder: Path) -> float:
    """Returns what `stvid test` has found."""
    metrics = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
    return next(value for name, value in metrics.items() if name.startswith("top1@"))


def score_untrained(path: Path, side: int) -> float:
    """Returns the top-1 of a video model that has never seen a video, on the held-out split."""
    import stvid
    from stvid.data.motion import MOTION_CLASSES, resolve_motion

    model = stvid.load_model(path)
    protocol = model.default_protocol.replace(
        frames=FRAMES,
        stride=STRIDE,
        sampling="dense",
        short_side=side,
        crop=side,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        views="1x1",
        class_names=MOTION_CLASSES,
    )
    return stvid.evaluate(model, resolve_motion("val"), protocol=protocol).metrics["top1@1x1"]


def make_image_network(
    name: str, side: int, path: Path, stills: Sequence[tuple[Tensor, Tensor]], *, epochs: int
) -> float:
    """Trains a 2D network of timm and writes its weights; returns its top-1 on still frames."""
    from safetensors.torch import save_file

    from stvid.inflation.sources import ImageOrigin

    torch.manual_seed(0)
    network = ImageOrigin("timm", name).build(num_classes=SHAPES * TEXTURES, img_size=(side, side))
    train, val = ((prepare(images, side), labels) for images, labels in stills)
    accuracy = train_on_stills(network, train, val, epochs=epochs)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    print(f"\n{name}: top-1 {accuracy:.1%} of {SHAPES * TEXTURES} shapes and textures on still frames", flush=True)
    return accuracy


def try_mode(trial: Trial, weights: Path, folder: Path, *, quick: bool) -> dict[str, float]:
    """Inflates the 2D network, trains and tests the video model; returns what goes into the table."""
    folder.mkdir(parents=True)
    run(
        *("inflate", "--from", f"timm:{trial.name}", "--weights", str(weights)),
        *("--temporal", trial.mode, "--frames", str(FRAMES), "--img_size", str(trial.side), "--num_classes", "8"),
        *("--out", str(folder / "video.safetensors")),
    )
    before = score_untrained(folder / "video.safetensors", trial.side)
    started = time.perf_counter()
    limits = ("--trainer.max_steps", "3", "--data.limit_val", "16") if quick else ()
    run(
        *("train", "--config", CONFIG, "--model.name", f"timm/{trial.name}"),
        *("--model.hyperparameters", json.dumps({"temporal": trial.mode})),
        *("--model.drop_path_rate", "null", "--init", str(folder / "video.safetensors")),
        *("--protocol.frames", str(FRAMES), "--protocol.stride", str(STRIDE)),
        *("--protocol.short_side", str(trial.side), "--protocol.crop", str(trial.side)),
        *("--augment.jitter", f"[{trial.side}, {trial.side}]"),
        *("--trainer.max_epochs", str(trial.epochs), "--out", str(folder / "run"), *limits),
    )
    seconds = time.perf_counter() - started
    run("test", "--checkpoint", str(folder / "run"))
    run("test", "--checkpoint", str(folder / "run"), "--frame_order", "frozen")
    return {
        "before": before,
        "after": top1(folder / "run"),
        "frozen": top1(folder / "run" / "test-frozen"),
        "epochs": trial.epochs,
        "seconds": seconds,
    }


def missed(row: dict[str, float]) -> list[str]:
    """Returns the bounds that a row misses, in words."""
    bounds = (
        (row["still"] >= STILL_LEARNT, f"stills {row['still']:.1%} < {STILL_LEARNT:.0%}"),
        (row["before"] <= CHANCE, f"before {row['before']:.1%} > {CHANCE:.0%}"),
        (row["after"] >= LEARNT, f"after {row['after']:.1%} < {LEARNT:.0%}"),
        (row["frozen"] <= CHANCE, f"frozen {row['frozen']:.1%} > {CHANCE:.0%}"),
    )
    return [words for holds, words in bounds if not holds]


def main() -> int:
    """Runs the trials; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="New folder for weights, runs and table.json.")
    modes = [trial.mode for trial in TRIALS]
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes, help="The modes to train.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the 2D training.")
    parser.add_argument("--quick", action="store_true", help="A smoke test: a few steps, no bound on the accuracy.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from stvid.data.motion import resolve_motion

    if options.out.exists():
        parser.error(f"--out {options.out}: exists already; name a new folder")
    options.out.mkdir(parents=True)
    resolve_motion("train")
    stills = (
        draw_stills("train", 256 if options.quick else 4800),
        draw_stills("val", 64 if options.quick else 800),
    )
    rows: dict[str, dict[str, float]] = {}
    learnt: dict[tuple[str, int], float] = {}
    for trial in TRIALS:
        if trial.mode not in options.modes:
            continue
        image = (trial.name, trial.side)
        weights = options.out / f"{trial.name}-{trial.side}.safetensors"
        if image not in learnt:
            learnt[image] = make_image_network(*image, weights, stills, epochs=1 if options.quick else STILL_EPOCHS)
        row = try_mode(trial, weights, options.out / trial.mode, quick=options.quick)
        rows[trial.mode] = {"still": learnt[image], **row}
        (options.out / "table.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("\n| temporal | 2D network | stills | before | after | frozen | epochs | training (s) |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for trial in TRIALS:
        if (row := rows.get(trial.mode)) is not None:
            print(
                f"| {trial.mode} | {trial.name} | {row['still']:.1%} | {row['before']:.1%} | {row['after']:.1%} | "
                f"{row['frozen']:.1%} | {row['epochs']:.0f} | {row['seconds']:.0f} |"
            )
    problems = [f"{mode}: {words}" for mode, row in rows.items() for words in missed(row)]
    if options.quick:
        return 0
    for problem in problems:
        print(f"MISSED {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
