"""The inflated ResNet-50 beside the hand-written I3D of 50 layers: same weights, same logits, alternating rounds.

    python tools/benchmark_inflation.py                        # forward, 8 frames of 224 x 224
    python tools/benchmark_inflation.py --step train --batch 2 --device cuda
    python tools/benchmark_inflation.py --step build --rounds 3  # four networks of timm, with the proof and without

Prints the largest difference of the logits (relative), the medians of wall and CPU time, and their ratios.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from benchmarking import alternate, medians
from torch import Tensor, nn

import stvid
from stvid.inflation.sources import ImageOrigin

# The places of I3D's kernels in time (Wang et al. 2018), as stvid/models/families/i3d_resnet.py has them.
PLACES = r"^conv1$|^layer1\.\d\.conv1$|^layer2\.[02]\.conv1$|^layer3\.[024]\.conv1$|^layer4\.1\.conv1$"


def models(size: int, device: str) -> dict[str, nn.Module]:
    """Returns both models, with the weights of the hand-written one."""
    torch.manual_seed(0)
    i3d = stvid.create_model("i3d_r50", num_classes=400, num_frames=8, img_size=size)
    for parameter in i3d.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.3, std=0.1)  # the last norm of each branch starts at zero
    inflated = stvid.create_model(
        "torchvision/resnet50",
        num_classes=400,
        num_frames=8,
        img_size=size,
        temporal="conv",
        layers=PLACES,
        kernel_size={"^conv1$": 5, "": 3},
        padding="zeros",
        temporal_strides={"^layer1$": 2},
    )
    own, state = inflated.state_dict(), {}
    for key, value in i3d.state_dict().items():
        key = key.replace("stem.0.", "conv1.").replace("stem.1.", "bn1.").replace(".norm", ".bn")
        key = key if key.startswith("head.") else f"network.{key}"
        state[key] = value.reshape(own[key].shape)
    inflated.load_state_dict(state)
    return {"i3d_r50": i3d.to(device), "inflated resnet50": inflated.to(device)}


BUILT = {
    "resnet50": "conv",
    "convnext_tiny": "conv",
    "vit_base_patch16_224": "attention",
    "swin_tiny_patch4_window7_224": "shift",
}


def time_building(rounds: int) -> None:
    """Prints the CPU time that `stvid.inflate` takes for modules, without the proof and with it."""
    for name, mode in BUILT.items():
        network = ImageOrigin("timm", name).build(num_classes=1000, img_size=(224, 224))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for proved, times in seconds.items():
                started = time.process_time()
                stvid.inflate(network, num_frames=8, temporal=mode, prove=proved)
                times.append(time.process_time() - started)
        plain, proven = (statistics.median(times) for times in seconds.values())
        print(f"{name}, {mode}: without the proof {plain:.2f} s, with it {proven:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=("forward", "train", "build"), default="forward")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.step == "build":
        time_building(options.rounds)
        return
    both = models(options.size, options.device)
    clip = torch.randn(options.batch, 3, 8, options.size, options.size, device=options.device)
    labels = torch.zeros(options.batch, dtype=torch.long, device=options.device)
    with torch.no_grad():
        first, second = (model.eval()(clip) for model in both.values())
    print(f"largest difference of the logits: {((first - second).abs().max() / first.abs().max()).item():.1e}")

    def forward(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(clip)

    def train(model: nn.Module) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(clip), labels)
        loss.backward()
        return loss

    step: Callable[[nn.Module], Tensor] = forward if options.step == "forward" else train
    for model in both.values():
        model.train(options.step == "train")
    steps = {name: functools.partial(step, model) for name, model in both.items()}
    seconds = alternate(steps, rounds=options.rounds, device=options.device, warm_up=2)
    for kind, title in (("wall", "wall"), ("cpu", "CPU")):
        middle = medians(seconds, kind)
        ratio = middle["inflated resnet50"] / middle["i3d_r50"]
        print(
            f"{title}: " + ", ".join(f"{name} {value:.3f} s" for name, value in middle.items()) + f", ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
