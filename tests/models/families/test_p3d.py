"""P3D: the published files of its flow stream."""

from __future__ import annotations

import stvid

TINY = {"depth": (1, 1, 1, 1)}


def test_weights_of_the_flow_stream() -> None:
    state = stvid.create_model("p3d_63", in_chans=2, **TINY).state_dict()
    assert stvid.create_model("p3d_63", **TINY).options_of({"conv1_custom.weight": state["conv1.weight"]}) == {
        "in_chans": 2
    }
