from __future__ import annotations

from stvid.weight_files.placeholders import Placeholder, as_mapping, is_module, shown_name


def test_what_counts_as_a_mapping() -> None:
    assert as_mapping({"a": 1}) == {"a": 1}
    assert as_mapping([1]) is None
    foreign = Placeholder("frame.Config", ({"x": 1},))
    foreign.state, foreign.entries = (None, {"slot": 2}), {"x": 1}
    assert as_mapping(foreign) == {"slot": 2, "x": 1} and not is_module(foreign)


def test_networks_give_their_parts() -> None:
    inner, outer = Placeholder("torch.nn.Linear"), Placeholder("my.Net")
    inner.state = {"_parameters": {"weight": 1, "bias": None}, "_buffers": {}, "_modules": {}, "training": True}
    outer.state = {"_parameters": {}, "_buffers": {"mean": 2}, "_modules": {"fc": inner}}
    assert is_module(outer) and as_mapping(outer) == {"mean": 2, "fc": inner} and as_mapping(inner) == {"weight": 1}


def test_names_are_made_printable() -> None:
    assert shown_name("a.B\x1b[2J\n") == "a.B??2J?" and len(shown_name("x" * 1000)) == 80
