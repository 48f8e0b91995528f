"""The contract of stages: batches in, batches out, and no error that ends a run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from stvid.data.stage_base import Stage
from stvid.errors import VideoError


class Measure(Stage):
    """Has a field of each type, and fails in each way."""

    fields: ClassVar[Mapping[str, type]] = {"size": int, "half": float, "name": str, "parts": list}

    def work(self, path: str) -> Mapping[str, Any]:
        if path == "bad":
            raise VideoError(path, "is bad")
        if path == "gone":
            raise FileNotFoundError(2, "No such file or directory", path)
        if path == "defect":
            raise KeyError("oops\nin two lines")
        count = self.options["factor"] * len(path)
        return {"size": count, "half": count / 2, "name": path, "parts": [path, None, 1]}


def test_rows_come_back_with_the_columns_of_the_work() -> None:
    rows = {"path": np.array(["ab", "c"], object), "label": ["x", "y"]}
    found = Measure({"factor": 3})(rows)
    assert set(found) == {"path", "label", "error", "size", "half", "name", "parts"}
    assert found["size"].dtype == np.int64 and found["size"].tolist() == [6, 3]
    assert found["half"].dtype == np.float64 and found["half"].tolist() == [3, 1.5]
    assert found["name"] == ["ab", "c"] and found["label"] == ["x", "y"] and found["error"] == ["", ""]
    assert set(rows) == {"path", "label"}  # the caller's table stays as it was


def test_errors_are_one_line_in_their_rows() -> None:
    stage = Measure({"factor": 1})
    paths = ["a", "bad", "gone", "defect"]
    found = stage({"path": paths})
    errors = [
        "",
        "bad: is bad",
        "gone: No such file or directory",
        "defect: internal error: KeyError: 'oops\\nin two lines' (please report it)",
    ]
    assert found["error"] == errors and found["size"].tolist() == [1, 0, 0, 0] and found["name"] == ["a", "", "", ""]
    outcomes = stage.outcomes(found)
    assert outcomes[0] == ("a", {"size": 1, "half": 0.5, "name": "a", "parts": ["a", None, 1]}, "")
    assert outcomes[1:] == [(path, {}, error) for path, error in zip(paths[1:], errors[1:], strict=True)]
    assert [type(value) for value in outcomes[0][1].values()] == [int, float, str, list]


def test_a_row_with_an_error_is_passed_on_and_another_column_can_name_the_files() -> None:
    rows = {"path": ["p", "q"], "out": ["abc", ""], "error": ["", "is bad"]}
    found = Measure({"factor": 1}, column="out")(rows)
    assert found["name"] == ["abc", ""] and found["error"] == ["", "is bad"] and found["path"] == ["p", "q"]


def test_names_that_are_not_utf8_are_given_as_bytes() -> None:
    stage = Measure({"factor": 1})
    found = stage({"path": [b"a\xff"]})
    assert found["name"] == ["a\udcff"] and stage.outcomes(found)[0][0] == os.fsdecode(b"a\xff")


def test_a_stage_can_be_pickled() -> None:
    stage = pickle.loads(pickle.dumps(Measure({"factor": 4}, column="out")))
    assert stage({"out": ["x"]})["size"].tolist() == [4]


def test_a_base_has_no_work() -> None:
    with pytest.raises(NotImplementedError):
        Stage({}).work("a")
