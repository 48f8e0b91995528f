"""The page "Add a model": the family that its blocks make must pass what every native model passes."""

from __future__ import annotations

import importlib.util
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stvid
from stvid.errors import CheckpointError
from stvid.models import registry
from stvid.models.family import Family, Variant, read_family
from stvid.models.registry import native_models, register_family
from tests.models import test_models as checks

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "add_a_model.md"
MODELS = ("toynet_s", "toynet_l")
GOLDEN = "toynet_s__8x64"


def blocks(language: str) -> list[str]:
    """The blocks of the page whose fence says this and nothing else."""
    return re.findall(rf"```{re.escape(language)}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("families") / "toynet.py"
    parts = blocks("python")
    joined = [parts[0], *(f"\n{part}" if part.startswith(" ") else f"\n\n{part}" for part in parts[1:])]
    path.write_text("".join(joined), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def module(source: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("toynet", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toynet(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Registers the family for one test."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_family(module)
    return module


def checks_of_a_model() -> list[Callable[..., None]]:
    """The tests that `test_models` runs for each model by its name."""
    found = []
    for name, test in vars(checks).items():
        marks = getattr(test, "pytestmark", []) if name.startswith("test_") else []
        if any(mark.name == "parametrize" and mark.args[0] == "name" for mark in marks):
            found.append(test)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("check", checks_of_a_model(), ids=lambda check: check.__name__)
def test_what_every_native_model_passes(
    check: Callable[..., None], name: str, toynet: ModuleType, request: pytest.FixtureRequest
) -> None:
    others = [parameter for parameter in inspect.signature(check).parameters if parameter != "name"]
    check(name=name, **{other: request.getfixturevalue(other) for other in others})


def test_all_checks_are_found() -> None:
    names = {check.__name__ for check in checks_of_a_model()}
    assert {"test_published_size", "test_export", "test_intermediate_results", "test_own_state_goes_round"} <= names
    assert len(names) >= 12


def test_the_family_is_read_without_running_the_file(source: Path, module: ModuleType) -> None:
    assert read_family(source) == module.FAMILY
    assert tuple(variant.name for variant in module.FAMILY.variants) == MODELS


def test_the_family_passes_the_lint(source: Path) -> None:
    for arguments in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--config", str(ROOT / "pyproject.toml"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class OfficialBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).reshape(batch, tokens, 3, 4, dim // 4).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (dim // 4) ** 0.5).softmax(-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.mlp(self.norm2(x))


class OfficialNet(nn.Module):
    """Stands for the authors' code, which shares nothing with the page but the function."""

    def __init__(self, num_classes: int, dim: int = 64) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.stem = nn.Conv3d(3, dim, (2, 8, 8), stride=(2, 8, 8))
        self.net.convs = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv3d(dim, dim, 3, padding=1, bias=False), "bn": nn.BatchNorm3d(dim, eps=1e-3)})
            for _ in range(2)
        )
        self.net.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.net.pos_embed = nn.Parameter(torch.zeros(1, 4 * 8 * 8, dim))
        self.net.layers = nn.ModuleList([OfficialBlock(dim)])
        self.net.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc_cls = nn.Linear(dim, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.net.stem(clip)
        for layer in self.net.convs:
            x = x + layer["bn"](layer["conv"](x)).relu()
        x = x.flatten(2).transpose(1, 2) + self.net.pos_embed
        x = torch.cat((self.net.cls_token.repeat(x.shape[0], 1, 1), x), 1)
        return self.fc_cls(self.net.norm(self.net.layers[0](x))[:, 0])


def test_the_recorded_golden_is_reproduced(
    toynet: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outline: Callable[..., Any]
) -> None:
    """Runs the page's script on the official network above, and the tests of goldens on what it writes."""
    official = ModuleType("model")
    official.Network = OfficialNet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "model", official)
    monkeypatch.chdir(tmp_path)
    (script,) = blocks("python title=record_golden.py")
    Path("record_golden.py").write_text(script, encoding="utf-8")
    runpy.run_path("record_golden.py")
    monkeypatch.setattr(checks, "GOLDENS", tmp_path)
    assert [case for case in checks.golden_cases() if isinstance(case, str)] == [GOLDEN]
    checks.test_golden_logits(GOLDEN, outline)
    checks.test_golden_multiply_adds(GOLDEN, outline)

    shifted = checks.golden(GOLDEN)
    shifted["logits"][0] += 1e-6
    monkeypatch.setattr(checks, "golden", lambda case: shifted)
    with pytest.raises(AssertionError):
        checks.test_golden_logits(GOLDEN, outline)


def test_positions_follow_the_size(toynet: ModuleType, tmp_path: Path) -> None:
    small = stvid.create_model("toynet_s", num_classes=3, num_frames=4, img_size=(32, 48))
    stvid.save_model(small, tmp_path / "small.safetensors")
    large = stvid.create_model("toynet_s", num_classes=3)
    report = stvid.load_checkpoint(large, tmp_path / "small.safetensors")
    assert report.resized == {"pos_embed": ((1, 2 * 4 * 6, 64), (1, 4 * 8 * 8, 64))}
    clip = torch.randn(1, 3, 4, 32, 48)
    with torch.no_grad():
        assert large.eval()(clip).isfinite().all()  # another grid than the model's own
        official = stvid.create_model("toynet_s", checkpoint=OfficialNet(400).state_dict(), num_frames=4, img_size=32)
    assert official.get_parameter("pos_embed").shape == (1, 2 * 4 * 4, 64)
    wrong = {**OfficialNet(400).state_dict(), "net.pos_embed": torch.zeros(1, 7, 64)}
    with pytest.raises(CheckpointError, match=r"shapes differ from toynet_s: pos_embed \(1, 7, 64\)"):
        stvid.load_checkpoint(official, wrong)


def test_the_tools_that_the_checklist_names(toynet: ModuleType, make_video: Callable[..., Path]) -> None:
    model, clip = checks.small_model("toynet_s", num_classes=3)
    model.eval()
    fused = stvid.fuse(model)
    assert fused.fused is not None and len(fused.fused.fused) == 2 and not fused.fused.kept
    with torch.no_grad():
        torch.testing.assert_close(fused(clip), model(clip), rtol=1e-4, atol=1e-5)
    nn.init.normal_(model.get_parameter("cls_token"))  # from zero it would look at all cells alike
    model.default_protocol = model.default_protocol.replace(class_names=("a", "b", "c"), stride=1)
    found = stvid.explain(model, str(make_video(frames=8)), method="rollout")
    assert found.heat.shape == (4, 16, 16) and found.heat.max() == 1


def test_an_own_module_is_registered_as_the_page_says(
    module: ModuleType, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not set(MODELS) & set(native_models())
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setitem(sys.modules, "toynet", module)
    (script,) = blocks("python title=own_project.py")
    names: dict[str, Any] = {}
    exec(compile(script, "own_project.py", "exec"), names)
    assert names["model"](torch.randn(1, 3, 8, 64, 64)).shape == (1, 10)
    assert set(MODELS) <= set(stvid.list_models("toynet_*"))


def test_the_tables_name_every_field() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for kind in (Family, Variant):
        table = text.partition(f"| field of `{kind.__name__}` |")[2].partition("\n\n")[0]
        named = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))
        assert sorted(named) == sorted(kind.__dataclass_fields__)


def test_the_commands_and_files_are_real() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = [shlex.split(line, comments=True) for line in "".join(blocks("sh")).splitlines()]
    assert len(lines) == 3
    for program, *words in lines:
        assert program == ".venv/bin/python"
        assert all((ROOT / word).exists() for word in words if "/" in word)
    paths = re.findall(r"`((?:stvid|tests|tools|configs|docs)/[\w./]*)`", text)
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []
