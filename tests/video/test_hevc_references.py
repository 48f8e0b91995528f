"""The references that slice headers of HEVC name: in sound streams only frames that call themselves referenced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stvid.video.hevc_references import HevcReferences
from stvid.video.packets import PARSERS, nal_length_size

PARAMETERS = "keyint=20:min-keyint=20:pools=1:frame-threads=1:log-level=none"
STREAMS = {
    "plain": "bframes=3:b-adapt=0",
    "pyramid": "bframes=5:b-adapt=0:b-pyramid=1:ref=4:rc-lookahead=12",
    "open GOP": "bframes=3:b-adapt=0:open-gop=1",
    "layers": "bframes=3:b-adapt=0:temporal-layers=3",
    "scaling list": "bframes=3:b-adapt=0:scaling-list=default",
    "no B-frames": "bframes=0:ref=3",
    "slices": "bframes=3:b-adapt=0:slices=2",
}


def packets_of(path: Path) -> tuple[Any, int, list[bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        extradata = stream.codec_context.extradata
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    return extradata, nal_length_size("hevc", extradata), packets


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_named_are_those_that_call_themselves_referenced(
    stream: str, name: str, make_video: Callable[..., Path]
) -> None:
    options = {"preset": "ultrafast", "x265-params": f"{STREAMS[stream]}:{PARAMETERS}"}
    extradata, length_size, packets = packets_of(
        make_video(name, codec="libx265", width=64, height=64, frames=50, options=options)
    )
    references = HevcReferences(extradata, length_size)
    for packet in packets:
        references.note(packet)
    assert references.trusted and references.packets == len(packets) == 50
    units = [PARSERS["hevc"](packet, length_size) for packet in packets]
    called = {number for number, unit in enumerate(units) if unit is not None and not unit.skippable}
    top = max(unit.layer for unit in units if unit is not None)
    assert references.referred <= called | {
        number for number, unit in enumerate(units) if unit is not None and unit.layer < top
    }
    skippable = [number for number in range(50) if not references.must_stay(number)]
    assert skippable or stream == "no B-frames"
    assert len(references.referred) > 10


def test_what_cannot_be_read_must_stay(make_video: Callable[..., Path]) -> None:
    extradata, length_size, packets = packets_of(make_video("a.mp4", codec="libx265", frames=30))
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(200):
        references = HevcReferences(extradata, length_size)
        sound = HevcReferences(extradata, length_size)
        place = int(rng.integers(1, len(packets)))
        data = bytearray(packets[place])
        data[length_size + 2 + int(rng.integers(6))] ^= 1 << int(rng.integers(8))
        for number, packet in enumerate(packets):
            references.note(bytes(data) if number == place else packet)
            sound.note(packet)
        changed += not references.trusted or references.referred != sound.referred
    assert changed > 20
    for header in (b"", extradata[:30], bytes(len(extradata))):
        references = HevcReferences(header, length_size)
        for packet in packets:
            references.note(packet[:3] if not header else packet)
        assert all(references.must_stay(number) for number in range(len(packets)))
