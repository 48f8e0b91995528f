from __future__ import annotations

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import stvid
from stvid.errors import StvidError, UnknownNameError
from stvid.models.base import VideoModel
from stvid.models.family import Family, Variant, read_family
from stvid.models.registry import register_family
from stvid.protocol import Protocol

FAMILIES = Path(stvid.__file__).parent / "models" / "families"


def test_list_models_is_sorted_and_filters() -> None:
    names = stvid.list_models()
    assert names == sorted(names) and {"uniformer_s", "uniformer_b", "uniformer_xxs"} <= set(names)
    assert stvid.list_models("uniformer_?") == ["uniformer_b", "uniformer_s"]


def test_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unifromer_s.*nearest: uniformer_s"):
        stvid.create_model("unifromer_s")


def test_unknown_hyperparameter_is_named() -> None:
    with pytest.raises(TypeError, match="drop_pth_rate"):
        stvid.create_model("uniformer_xxs", drop_pth_rate=0.1)


def test_protocol_follows_frames_and_size() -> None:
    model = stvid.create_model("uniformer_xxs", num_frames=8, img_size=(96, 128), num_classes=3)
    assert (model.default_protocol.frames, model.default_protocol.crop) == (8, 96)
    assert model.recipe["img_size"] == [96, 128]
    assert model(torch.randn(1, 3, 8, 96, 128)).shape == (1, 3)


def test_names_are_registered_once() -> None:
    module = types.ModuleType("another")
    module.UniFormer = nn.Identity  # type: ignore[attr-defined]
    variant = Variant("uniformer_s", "Another.", Protocol())
    module.FAMILY = Family("UniFormer", "", (variant,), small_clip=(1, 32, 32))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"uniformer_s exists already, in stvid\.models\.families\.uniformer"):
        register_family(module)
    module.FAMILY = None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="another: needs FAMILY"):
        register_family(module)


@pytest.mark.parametrize("path", sorted(FAMILIES.glob("*.py")), ids=lambda path: path.stem)
def test_a_family_is_read_without_importing_its_file(path: Path) -> None:
    family = read_family(path)
    if path.stem == "__init__":
        assert family is None
        return
    module = importlib.import_module(f"stvid.models.families.{path.stem}")
    assert family == module.FAMILY
    assert issubclass(getattr(module, family.model), VideoModel)


def test_listing_models_imports_no_torch() -> None:
    code = (
        "import sys, stvid.zoo; assert 'uniformer_s' in stvid.zoo.list_models(); stvid.zoo.model_info('uniformer_s');"
        "print([name for name in ('torch', 'timm', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_family_that_needs_to_be_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import os\nFAMILY = os.getcwd()\n")
    with pytest.raises(StvidError, match=r"own\.py: FAMILY cannot be read without running the file"):
        read_family(tmp_path / "own.py")
    (tmp_path / "own.py").write_text("FAMILY = 3\n")
    with pytest.raises(StvidError, match="FAMILY is a int, not a Family"):
        read_family(tmp_path / "own.py")


def test_a_negative_number_of_classes() -> None:
    with pytest.raises(ValueError, match="num_classes is -5"):
        stvid.create_model("r3d_18", num_classes=-5)
    with pytest.raises(TypeError, match="num_classes is '5'"):
        stvid.create_model("r3d_18", num_classes="5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in_chans is 0"):
        stvid.create_model("r3d_18", in_chans=0)
