"""The tables of published weights: each row is a model that can be built, with a protocol and class names that fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stvid
from stvid.errors import StvidError, UnknownNameError
from stvid.models.registry import family_of, find_weights, model_info, native_models, weights_of
from stvid.models.weights import COLUMNS, Weights, read_weights, write_weights
from stvid.protocol import Protocol

FAMILIES = Path(stvid.__file__).parent / "models" / "families"
TABLES = sorted(FAMILIES.glob("*.csv"))
ALL = [weights for model in native_models() for weights in weights_of(model)]


def test_every_row_belongs_to_a_model_of_its_file() -> None:
    for table in TABLES:
        for model in read_weights(table):
            assert weights_of(model) == read_weights(table)[model], f"{table.name}: {model} is not of this family"
    assert len(ALL) == sum(len(rows) for table in TABLES for rows in read_weights(table).values())


def listed_models() -> list[Any]:
    """The models with rows; all but the first of each family are slow."""
    listed = [name for name in native_models() if weights_of(name)]
    first = {family_of(name)[0].model: name for name in reversed(listed)}.values()
    return [name if name in first else pytest.param(name, marks=pytest.mark.slow) for name in listed]


@pytest.mark.parametrize("model", listed_models())
def test_every_row_names_a_model_that_can_be_built(model: str, outline: Callable[..., Any]) -> None:
    info, variant = model_info(model), family_of(model)[1]
    built: dict[str, stvid.models.base.VideoModel] = {}
    for weights in weights_of(model):
        call = f"{weights.options} {weights.num_classes} {weights.protocol.frames} {weights.protocol.crop}"
        if call not in built:
            with outline():
                built[call] = stvid.create_model(weights.name)
        network = built[call]
        assert network.num_classes == (400 if weights.num_classes is None else weights.num_classes), weights.name
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        if weights.params is not None:  # most sources round
            assert millions == pytest.approx(weights.params, rel=0.006, abs=0.006), weights.name
        default = (info.protocol.frames, info.protocol.crop, 400)
        if info.params and not weights.options and default == (*_size(weights.protocol), weights.num_classes):
            assert millions == pytest.approx(info.params, abs=max(variant.params_tolerance, 0.2)), weights.name


def _size(protocol: Protocol) -> tuple[int, int]:
    return protocol.frames, protocol.crop


@pytest.mark.parametrize("weights", ALL, ids=lambda weights: weights.name)
def test_every_row_is_complete(weights: Weights) -> None:
    assert weights.num_classes is None or len(weights.class_names) in (0, weights.num_classes)
    assert re.match(r"(https?://|hf:[\w.-]+/[\w.-]+|gdrive:[\w-]+|gdrive-folder:[\w-]+)", weights.url)
    assert re.fullmatch(r"([0-9a-f]{8,64}|gitblob-sha1:[0-9a-f]{40})?", weights.sha256)
    assert weights.views in ("", weights.protocol.views)
    assert weights.licence and weights.source
    assert weights.protocol.class_names == ()
    for accuracy in (weights.top1, weights.top5):
        assert accuracy is None or 10 < accuracy < 100
    assert weights.top1 is None or weights.top5 is None or weights.top1 < weights.top5
    dense = "ssv" not in weights.tag or weights.model.startswith("vjepa2")  # whose clips have a stride on SSv2, too
    assert weights.protocol.sampling == "segment" or dense


def test_what_the_sources_say_of_some_weights() -> None:
    uniformer = find_weights("uniformer_s.k400_16x4")
    assert uniformer is not None and weights_of("uniformer_s")[0] is uniformer
    assert (uniformer.top1, uniformer.views, uniformer.protocol.channels) == (80.8, "4x1", "rgb")
    assert uniformer.class_names[0] == "riding a bike"  # the authors' order is not alphabetical
    something = find_weights("uniformer_s.ssv2_16f_prek400")
    assert something is not None and something.protocol.channels == "bgr" and something.protocol.sampling == "segment"
    timesformer = find_weights("timesformer_base.ssv2")
    assert timesformer is not None and timesformer.protocol.channels == "bgr" and "NC" in timesformer.licence
    port = find_weights("uniformer_s.k400_16x4_mma")
    assert port is not None and port.class_names[0] == "abseiling"  # mmaction2 sorted the rows of the head


def test_names_mean_weights_or_something_else() -> None:
    assert find_weights("weights.pth") is None and find_weights("uniformer_s") is None
    with pytest.raises(UnknownNameError, match=r"uniformer_s has no weights 'k400_16x5'; nearest: .*k400_16x4"):
        find_weights("uniformer_s.k400_16x5")
    with pytest.raises(UnknownNameError, match="no weights of p3d_63 are published"):
        find_weights("p3d_63.k400")


def test_list_models_lists_weights() -> None:
    names = stvid.list_models(pretrained=True)
    assert names == [weights.name for weights in ALL]
    assert stvid.list_models("uniformer_s", pretrained=True)[0] == "uniformer_s.k400_16x4"
    assert set(stvid.list_models("*.ssv2*", pretrained=True)) == {name for name in names if ".ssv2" in name}
    assert stvid.list_models("uniformer_xxs", pretrained=True) == []


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    entry = Weights(
        model="toy",
        tag="k400",
        url="https://example.org/a,b.pth",
        protocol=Protocol(frames=4, fps=7.5, mean=(0.1, 0.25, 1 / 3), channels="bgr", sampling="segment"),
        num_classes=None,
        sha256="0123abcd",
        task="multilabel",
        top1=12.5,
        views="1x1",
        options={"depth": [1, 2], "shortcut": "A"},
        note='says "so", twice',
    )
    plain = Weights("toy", "other", "hf:org/toy", Protocol(), 3, classes="ucf101")
    write_weights(tmp_path / "toy.csv", [entry, plain])
    read = read_weights(tmp_path / "toy.csv")["toy"]
    assert read[1] == plain
    assert read[0].protocol.mean == pytest.approx(entry.protocol.mean)
    same = entry.protocol.replace(mean=read[0].protocol.mean)
    assert read[0] == Weights(**{**vars(entry), "protocol": same})
    assert read_weights(tmp_path / "missing.csv") == {}


def _line(**cells: str) -> str:
    return ",".join({"model": "toy", "tag": "a", "url": "https://x/y", **cells}.get(key, "") for key in COLUMNS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([_line(frames="4"), _line(frames="8")], r"line 3: toy\.a stands twice"),
        ([_line(num_classes="many")], r"line 2: invalid literal .*many"),
        ([_line(frames="0")], r"line 2: protocol\.frames: 0 is not a positive"),
        ([_line(options="{depth: 1}")], r"line 2: Expecting property name"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_line(lines: list[str], message: str, tmp_path: Path) -> None:
    table = tmp_path / "toy.csv"
    table.write_text("\n".join([",".join(COLUMNS), *lines]), encoding="utf-8")
    with pytest.raises(StvidError, match=message):
        read_weights(table)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.csv").write_text("model,tag\n", encoding="utf-8")
    with pytest.raises(StvidError, match="the columns are not model,tag,url"):
        read_weights(tmp_path / "toy.csv")
