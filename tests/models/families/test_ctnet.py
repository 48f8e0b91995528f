"""CT-Net: which blocks have the module, and the table of channels."""

from __future__ import annotations

import pytest
import torch

import stvid
from stvid.models.families.ctnet import ChannelTensorization


@pytest.mark.parametrize(
    ("replaced", "blocks"),
    [
        (7, ["1.1", "2.1", "2.3", "3.1", "3.3", "3.5", "4.1"]),
        (4, ["1.1", "2.1", "3.1", "4.1"]),
        (3, ["2.3", "3.3", "3.5"]),
        (5, ["1.2", "2.2", "3.2", "3.4", "4.2"]),
    ],
)
def test_replaced_blocks(replaced: int, blocks: list[str]) -> None:
    with torch.device("meta"):
        model = stvid.create_model("ctnet_r50", replaced=replaced)
    found = [name for name, module in model.named_modules() if isinstance(module, ChannelTensorization)]
    assert found == [f"layer{block}.conv2" for block in blocks]


def test_all_but_the_first_block() -> None:
    with torch.device("meta"):
        model = stvid.create_model("ctnet_r50", replaced=12)
    assert sum(isinstance(module, ChannelTensorization) for module in model.modules()) == 12
    with pytest.raises(ValueError, match="replaced 6: must be 3, 4, 5, 7 or 12"):
        stvid.create_model("ctnet_r50", replaced=6)
    with pytest.raises(ValueError, match="48 channels inside a block are no power of 2"):
        stvid.create_model("ctnet_r50", embed_dim=192)


def test_rows_and_columns_see_their_own_channels() -> None:
    assert ChannelTensorization(32).table == (4, 8)
    module = ChannelTensorization(32).eval()
    x = torch.rand(1, 2, 32, 4, 4)
    changed = x.clone()
    changed[:, :, 0] += 1.0
    with torch.no_grad():
        rows = (module.rows(x) - module.rows(changed)).abs().amax((0, 1, 3, 4)) > 0
        assert not rows[8:].any() and rows[:8].any()  # channels 0 to 7 are the first row
        columns = (module.columns(x) - module.columns(changed)).abs().amax((0, 1, 3, 4)) > 0
        assert not columns[4:].any() and columns[:4].any()
        module.rows, module.fusion, module.columns = (torch.nn.Identity() for _ in range(3))
        assert torch.equal(module(x), x)  # the table is turned, and turned back


def test_the_blocks_are_read_off_a_file() -> None:
    small = {"num_classes": 3, "depth": (2, 3, 2, 2), "embed_dim": 64}
    other = stvid.create_model("ctnet_r50", replaced=12, **small)
    assert stvid.create_model("ctnet_r50", **small).options_of(other.state_dict()) == {"replaced": 12}
