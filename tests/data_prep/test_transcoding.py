import importlib

import pytest

from stvid.data import transcoding


def test_the_former_name_is_accepted_and_said_to_be_old() -> None:
    with pytest.warns(FutureWarning, match="import stvid.data.transcoding"):
        module = importlib.import_module("stvid.data_prep.transcoding")
    assert module.transcode is transcoding.transcode and module.DEFAULTS is transcoding.DEFAULTS
