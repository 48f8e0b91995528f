"""Writes docs/inflation.md: which networks convert by which mode and why not, from a table that it tries out itself.

    python tools/inflation_page.py --out docs/inflation.md    # tries each network of the table; under a minute
    python tools/inflation_page.py --check docs/inflation.md  # exit code 1 if the page says something else

The rows are the small networks of tests/inflation, each in the style of a published one (`FILES`). Each is
inflated by every mode, with the proof on a still video. The page holds what came out, not what should.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
SIDE = 32
MODES = ("none", "conv", "shift", "attention", "head")
STYLES = {
    "hornet": "HorNet: gated recursive convolutions",
    "revcol": "RevCol: columns, several logits while it trains",
    "unireplknet": "UniRepLKNet, RepVGG: parallel kernels",
    "odconv": "ODConv, CondConv: kernels mixed by the image, own layer class",
    "involution": "Involution: a kernel for each place",
    "gfnet": "GFNet: complex weights in the frequency domain",
    "convmixer": "ConvMixer: sequences only",
    "vig": "ViG: nearest neighbours as a graph",
    "coc": "Context Cluster: soft clusters, no softmax",
    "lenet": "LeNet: two convolutions, `view`",
    "unnamed heads": "A transformer that names no heads",
    "n_heads": "DAT, GPT style: heads called `n_heads`",
    "vit-pytorch": "vit-pytorch: layers that are lists of two",
    "cswin": "CSWin: attention in stripes",
    "alternet": "AlterNet, CoAtNet: attention on maps",
    "t2t": "T2T-ViT: patches unfolded again",
    "clip": "CLIP's visual tower: tokens first, then images",
    "densenet": "DenseNet: layers that take lists of maps",
    "hrnet": "HRNet: stages that take and give lists",
    "res2net": "Res2Net: a part of the channels after the other",
    "sknet": "SKNet: a softmax over branches",
    "parametrised": "Standardised weights, spectral and weight norm",
    "reentrant": "Blocks that recompute their activations themselves",
    "gmlp": "gMLP: gates over all places",
    "v-moe": "V-MoE: tokens go to the experts that suit them",
    "swin": "Swin: moved windows with masks, recomputed in training",
    "pvt": "PVT: keys of a smaller map, blocks that are told its size",
    "levit": "LeViT, EfficientFormer: biases kept while it evaluates",
    "mobilevit": "MobileViT: a transformer over unfolded patches",
    "axial": "Axial attention: rows folded into the batch",
    "dat": "DAT: keys at places that the map chooses, a tuple returned",
    "rev-vit": "Rev-ViT: activations found again from the outputs",
    "remembering": "Layers that keep tables and their last scores",
    "albert": "One block that runs three times",
    "torch encoder": "`nn.TransformerEncoder`",
    "torch attention": "`nn.MultiheadAttention`, a mapping returned",
    "deit": "DeiT: two classifiers",
    "clip resnet": "CLIP's ResNet: a pooling by attention makes the logits",
    "perceiver": "Perceiver: learned queries read the pixels",
    "lookvit": "LookViT: few tokens and many, scores used twice",
    "flex attention": "`flex_attention`",
    "windows with registers": "Windows with registers, cut by the network itself",
    "experts with a capacity": "Experts that take so many tokens of the batch",
    "a table of the batch": "A table made for the size of the batch",
}
FILES = ("own_networks", "author_networks", "further_networks")
TOP = """# Inflating image networks

`stvid.inflate(network, num_frames=16, temporal="conv")` makes a video model of any image classifier: of timm
(`"timm:convnext_tiny"`), of torchvision, of the Hugging Face hub (`"hf-hub:timm/..."`), or a module of your own. Before
it returns, an image repeated over time must give the image's logits. `print(model.inflation.proof)` shows the outcome,
`model.inflation.rules` what became of every tensor. A model that fails the proof is not returned; `prove=False` leaves
the proof out. The still video of the proof is as long as the longest kernel, at least three frames; a module of your
own is also trained for one step, on a copy and, where it takes such, on small images.

| mode | what sees other frames | what it needs |
|---|---|---|
| `none` | nothing; the logits of the frames are averaged | nothing |
| `conv` | kernels in time in the first convolution and in every second block | a layer that takes and gives \
maps of whole frames |
| `shift` | a part of the channels moves to the neighbouring frames in front of each block's first layer | a layer \
behind the stem that sees whole frames, with two channels |
| `attention` | attention over time in front of each block with attention | a softmax over places somewhere |
| `head` | a transformer over the features of the frames | features: no classifier inside the network |

How a network is understood: it is run on two images, and on three with those two at other places. The axis that grows
holds the images, also where tokens come first. Attention is where a softmax over places (or
`scaled_dot_product_attention`) happens, whatever heads are called. Branches that the logits do not depend on are left
alone. Nothing depends on names.

## What is special, and what happens

| the network | what is done |
|---|---|
| returns a tuple, or an object with `logits` (transformers) | the logits are taken, and a note says which |
| returns several tensors of logits, as RevCol and MSDNet | those are taken that the most layers lead to, of equal \
ones the first; a note says so, and `logits=1`, `logits="aux"` or `logits=[0, 3]` takes others |
| returns a tuple only while it trains | the logits of evaluation are taken; the others get no gradient |
| cannot be trained where it runs, as `flex_attention` on a CPU | it is inflated all the same, and a note says why not |
| has no classifier, or returns maps or tokens | with `num_classes` it gets a linear one on top |
| has a cosine classifier, or a parametrised one | the module itself is the head; another `num_classes` makes a linear \
one |
| makes its logits by a function | it stays; another `num_classes` puts a linear layer on top |
| reads settings of its layers | it reads those of the 2D layer; where it computes with a kernel a second time, the \
layer stays and a filter in time follows |
| flattens by `view` | it runs in torch's usual layout instead of channels_last |
| is compiled or wrapped | the network inside is taken |
| is scripted (TorchScript) | refused: its layers cannot be replaced |
| depends on the other images of its batch | refused: frames cannot be folded into the batch |
| sends its images through a layer in parts (micro-batches, experts for whole images) | the layer sees no other \
frames; where parts show only later, a clip is refused in one line |
| computes with nested tensors (NaViT) | `head`; its layers have no axis of images |
| fixes float32 | the proof is made in float32 and judged by the rounding that the network magnifies |

Files of self-supervised training (MoCo, DINO, BYOL, SimCLR, lightly) and timm's training checkpoints are taken as
`weights`; a projection head is left out, and a note says so. Weights that nobody trained are called RANDOM.

A model of your own network is saved as any other; `stvid.load_model(file, network=MyNet())` reads it. Tensors that are
in no file of weights (plain attributes, buffers that are not persistent) are those of the given network; a warning
names them if they differ from the saved one's. Several threads may share a model, with clips of different lengths, also
for `forward_intermediates`.

## Tried

The classifiers of timm and torchvision are in [inflation_coverage.md](inflation_coverage.md). The following are small
networks in the style of others, tried when this page was written. "exact" is the proof on a still video.

"""


def networks_of(file: str) -> Any:
    """Returns the module of the tests that builds networks."""
    path = ROOT / "tests" / "inflation" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(file, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table() -> dict[str, tuple[Callable[[], Any], tuple[str, ...]]]:
    """Returns how each network is built, and the modes in which it must be exact."""
    rows: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {}
    for file in FILES:
        module = networks_of(file)
        rows |= module.NETWORKS
        rows |= {name: (build, ()) for name, build in getattr(module, "REFUSED", {}).items()}
    return rows


def outcome(network: Any, mode: Any, side: int) -> str:
    """Inflates a network by a mode; returns what came out, in words."""
    import stvid
    from stvid.errors import StvidError

    try:
        model: Any = stvid.inflate(network, num_frames=4, img_size=side, temporal=mode)
    except StvidError as error:
        reason = str(error).split(": ", 2)[-1].split("; take")[0]
        name = type(network).__name__
        return f"no: it{reason.removeprefix(name)}" if reason.startswith(name) else f"no: {reason}"
    proof = model.inflation.proof
    untrained = any("cannot be trained here" in note for note in model.inflation.notes)
    found = "exact" if proof.exact else f"approximate: {'; '.join(proof.reasons)}"
    return f"{found}; cannot be trained on a CPU" if untrained else found


def short(result: str, reasons: list[str]) -> str:
    """Returns an outcome for a narrow cell; its reason goes to the notes below the table.

    Args:
        result: What `outcome` returned.
        reasons: The notes so far; a new one is added.
    """
    word, _, reason = result.partition(": ")
    if not reason:
        return word
    if reason not in reasons:
        reasons.append(reason)
    return f"{word} [{reasons.index(reason) + 1}]"


def page() -> str:
    """Returns the whole page."""
    reasons: list[str] = []
    lines = [f"| network | {' | '.join(MODES)} |", "|---" * (len(MODES) + 1) + "|"]
    for name, (build, _) in table().items():
        torch.manual_seed(0)
        network = build().eval()
        cells = [short(outcome(network, mode, SIDE), reasons) for mode in MODES]
        lines.append(f"| {STYLES.get(name, name)} | {' | '.join(cells)} |")
    notes = "  \n".join(f"[{number}] {reason}" for number, reason in enumerate(reasons, 1))
    return TOP + "\n".join(lines) + f"\n\n{notes}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the page")
    parser.add_argument("--check", type=Path, help="a page to compare with")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = page()
    if options.out is not None:
        options.out.write_text(found, encoding="utf-8")
    if options.check is not None and options.check.read_text(encoding="utf-8") != found:
        print(f"{options.check}: differs from what the networks do now; write it again with --out")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
