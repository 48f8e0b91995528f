"""Names of models, over stvid and the other libraries."""

from __future__ import annotations

import pytest

import stvid
from stvid.errors import UnknownNameError
from stvid.models.libraries import NATIVE


@pytest.mark.parametrize(
    ("name", "native"),
    [(f"{library}/{name}", native) for library, names in NATIVE.items() for name, native in names.items()],
)
def test_a_model_that_is_native_is_named(name: str, native: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"^{name}: is native here: {native}$"):
        stvid.create_model(name)
    assert native in stvid.list_models() and name not in stvid.list_models("*/*")


def test_list_models_separates_the_libraries() -> None:
    assert not [name for name in stvid.list_models() if "/" in name]
    assert stvid.list_models("torchvision/mvit_v*") == ["torchvision/mvit_v1_b", "torchvision/mvit_v2_s"]
    assert {"pytorchvideo/mvit_base_16x4", "torchvision/mvit_v2_s"} <= set(stvid.list_models("*/mvit_*"))
    assert stvid.list_models("nothing/*") == []


def test_unknown_names_show_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"torchvision has no 'mvit_v2s'; nearest: mvit_v2_s"):
        stvid.create_model("torchvision/mvit_v2s")
    with pytest.raises(UnknownNameError, match=r"no library 'torchvisoin'; there are .*torchvision"):
        stvid.create_model("torchvisoin/mvit_v2_s")
    with pytest.raises(UnknownNameError, match=r"'x3d_m': no such model; there is pytorchvideo/x3d_m"):
        stvid.create_model("x3d_m")
