"""TSM on MobileNetV2: where the shifts stand, the width, and the authors' names."""

from __future__ import annotations

import re

import torch

import stvid
from stvid.models.families.tsm_mobilenet import STAGES
from stvid.models.segments import TemporalShift


def test_blocks_with_a_shortcut_shift() -> None:
    model = stvid.create_model("tsm_mobilenet_v2", width=0.25, num_classes=3)
    found = [name for name, module in model.named_modules() if isinstance(module, TemporalShift)]
    expected = [
        f"layer{stage}.{block}" for stage, (*_, blocks, _) in enumerate(STAGES, 1) for block in range(1, blocks)
    ]
    assert [name.removesuffix(".before") for name in found] == expected and len(found) == 10


def test_the_authors_names() -> None:
    """They count blocks through, and the layers of a block; shifted convolutions have a wrapper, `net`."""
    torch.manual_seed(0)
    model = stvid.create_model("tsm_mobilenet_v2", width=0.25, num_classes=3)
    own = dict(model.state_dict())
    places = [(stage, block) for stage, (*_, blocks, _) in enumerate(STAGES, 1) for block in range(blocks)]
    published = {}
    for key, value in own.items():
        if match := re.match(r"layer(\d)\.(\d)\.conv\.(\d)\.(\d)\.(.*)", key):
            stage, block, layer, part = (int(number) for number in match.groups()[:4])
            net = "net." if block and layer == part == 0 else ""
            number = places.index((stage, block)) + 1
            key = f"base_model.features.{number}.conv.{3 * layer + part}.{net}{match[5]}"
        key = key.replace("stem.", "base_model.features.0.").replace("tail.", "base_model.features.18.")
        published[key.replace("head.fc.", "new_fc.")] = value
    layout, found = model.convert_checkpoint(published)
    assert layout == "mit-han-lab/temporal-shift-module" and found.keys() == own.keys()
    assert all(torch.equal(found[key], value) for key, value in own.items())


def test_options_are_read_off_a_file() -> None:
    wide = stvid.create_model("tsm_mobilenet_v2", width=0.5, in_chans=2, num_classes=3)
    narrow = stvid.create_model("tsm_mobilenet_v2", width=0.25, num_classes=3)
    assert narrow.options_of(wide.state_dict()) == {"width": 0.5, "in_chans": 2}
