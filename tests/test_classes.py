from __future__ import annotations

import pytest

import stvid
from stvid.classes import class_list, class_lists

NUMBERS = {
    "kinetics400": 400,
    "kinetics400_uniformer": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "kinetics710_mmaction2": 710,
    "ssv1": 174,
    "ssv2": 174,
    "ucf101": 101,
    "hmdb51": 51,
    "sports1m": 487,
}


def test_lists_have_the_number_of_classes_of_their_data_set() -> None:
    assert {name: len(class_list(name)) for name in NUMBERS} == NUMBERS


@pytest.mark.parametrize("name", class_lists())
def test_names_are_words(name: str) -> None:
    assert all(label and label == label.strip() for label in class_list(name))


def test_orders_of_one_data_set_hold_the_same_names() -> None:
    assert class_list("kinetics400")[0] == "abseiling"
    assert class_list("kinetics400_uniformer")[:2] == ("riding a bike", "marching")
    assert sorted(class_list("kinetics400_uniformer")) == sorted(class_list("kinetics400"))
    assert sorted(class_list("ssv1")) == list(class_list("ssv1_sorted"))


def test_an_unknown_list_names_its_neighbours() -> None:
    with pytest.raises(stvid.StvidError, match="kinetics400"):
        class_list("kinetic400")
