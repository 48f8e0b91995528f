import importlib

import pytest

from stvid.video.stored_index import StoredIndex


def test_the_former_name_is_accepted_and_said_to_be_old() -> None:
    with pytest.warns(FutureWarning, match="import stvid.video.stored_index"):
        module = importlib.import_module("stvid.data.stored_index")
    assert module.StoredIndex is StoredIndex
