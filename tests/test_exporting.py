"""Exported files compute what the model computes, for any batch, and carry the protocol."""

from __future__ import annotations

import builtins
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import stvid
from stvid import exporting
from stvid.errors import CheckpointError, ConfigError, StvidError
from stvid.exporting import ExportedModel, export_model, load_exported
from stvid.files import claimed

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def _model_tests() -> ModuleType:
    """The sizes at which tests/models/test_models.py builds every family."""
    path = Path(__file__).parent / "models" / "test_models.py"
    spec = importlib.util.spec_from_file_location("stvid_model_sizes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(name: str, **options: Any) -> tuple[Any, torch.Tensor]:
    """A small model with logits of about 1, so that an absolute difference means something."""
    model, clip = _model_tests().small_model(name, **options)
    model.eval()
    with torch.no_grad():
        weight = model.get_classifier().weight
        torch.nn.init.normal_(weight)
        weight /= model(clip).std()
    model.default_protocol = model.default_protocol.replace(class_names=NAMES)
    return model, clip


def agree(exported: ExportedModel, model: torch.nn.Module, clip: torch.Tensor) -> None:
    for batch in (clip[:1], clip, torch.randn(5, *clip.shape[1:])):
        with torch.no_grad():
            expected = model(batch)
        assert expected.abs().max() > 0
        assert (exported(batch) - expected).abs().max() < 1e-3 * min(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.slow
@pytest.mark.parametrize("name", stvid.list_models())
def test_every_model(name: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    model, clip = small(name)
    report = export_model(model, tmp_path / f"model{suffix}")
    assert report.largest_difference < 1e-3 * min(1.0, report.largest_logit)
    agree(load_exported(report.path), model, clip)


@pytest.mark.parametrize("name", ["swin3d_t", "c3d"])
def test_what_onnx_has_no_operator_for(name: str, tmp_path: Path) -> None:
    """Masked windows, and adaptive pooling, which shrunk and unequal maps need."""
    pytest.importorskip("onnxruntime")
    if name == "c3d":
        model, clip = small(name)
    else:
        model, clip = small(name, depth=(1, 2, 1, 1))
    agree(load_exported(export_model(model, tmp_path / "m.onnx").path), model, clip)


def test_adaptive_pooling_is_torchs() -> None:
    x = torch.randn(2, 3, 5, 7, 4)
    for size in ((1, 4, 4), (2, 3, 4), (6, 8, 5)):
        expected = torch.nn.functional.adaptive_avg_pool3d(x, size)
        torch.testing.assert_close(exporting._adaptive_average(x, size), expected)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, torch.Tensor, dict[str, Path]]:
    model, clip = small("uniformer_xxs")
    folder = tmp_path_factory.mktemp("exported")
    files = {"pt2": export_model(model, folder / "m.pt2").path}
    if importlib.util.find_spec("onnxruntime"):
        files["onnx"] = export_model(model, folder / "m.onnx").path
    return model, clip, files


def test_logits_of_any_batch(exported: tuple[Any, torch.Tensor, dict[str, Path]]) -> None:
    model, clip, files = exported
    for file in files.values():
        agree(load_exported(file), model, clip)


def test_metadata(exported: tuple[Any, torch.Tensor, dict[str, Path]]) -> None:
    model, _, files = exported
    for file in files.values():
        loaded = load_exported(file)
        assert loaded.default_protocol == model.default_protocol and loaded.default_protocol.class_names == NAMES
        assert loaded.task == "multiclass" and loaded.num_classes == 7
        assert loaded.metadata["input"]["shape"] == ["batch", 3, 4, 64, 64]
        assert loaded.metadata["model"]["name"] == "uniformer_xxs"
        assert "0.45" in " ".join(loaded.metadata["preprocessing"])


def test_metadata_of_onnx_is_read_without_stvid(exported: tuple[Any, torch.Tensor, dict[str, Path]]) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported[2]["onnx"])
    onnx.checker.check_model(graph)
    held = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(held["stvid"])["protocol"]["class_names"] == list(NAMES)
    (given,) = graph.graph.input
    assert given.name == "clip" and given.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.opset_import[0].version == 18


def test_an_exported_model_predicts_like_the_model(
    exported: tuple[Any, torch.Tensor, dict[str, Path]], make_video: Callable[..., Path]
) -> None:
    model, _, files = exported
    video = str(make_video("some.mp4"))
    expected = stvid.predict(model, video, views="2x3")[0]
    for file in files.values():
        found = stvid.predict(load_exported(file), video, views="2x3")[0]
        assert found.classes == expected.classes
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    model, clip = small("uniformer_xxs")
    model.train()
    backend = stvid.models.attention.get_attention_backend()
    export_model(model, tmp_path / "m.pt2")
    assert all(module.training for module in model.modules())
    assert stvid.models.attention.get_attention_backend() == backend
    agree(load_exported(tmp_path / "m.pt2"), model.eval(), clip)


def test_wrong_clips_are_refused(exported: tuple[Any, torch.Tensor, dict[str, Path]]) -> None:
    for file in exported[2].values():
        with pytest.raises(ValueError, match=r"\(B, 3, 4, 64, 64\)"):
            load_exported(file)(torch.zeros(1, 3, 8, 64, 64))


def test_large_weights_lie_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(exporting, "EXTERNAL_BYTES", 1000)
    model, clip = small("uniformer_xxs")
    report = export_model(model, tmp_path / "m.onnx")
    assert {file.name for file in report.files} == {"m.onnx", "m.onnx.data"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert report.num_bytes == sum(file.stat().st_size for file in report.files)
    agree(load_exported(report.path), model, clip)


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = small("c3d")
    (tmp_path / "m.pt2").write_bytes(b"earlier")
    read = exporting._read_program

    def off(path: Path) -> Any:
        run, text = read(path)
        return (lambda clip: run(clip) + 0.01), text

    monkeypatch.setattr(exporting, "_read_program", off)
    with pytest.raises(StvidError, match="differ"):
        export_model(model, tmp_path / "m.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
    assert (tmp_path / "m.pt2").read_bytes() == b"earlier"


def test_logits_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model, _ = small("c3d")
    with torch.no_grad():
        model.get_classifier().bias.fill_(float("nan"))
    with pytest.raises(StvidError, match="differ"):
        export_model(model, tmp_path / "m.pt2")


def test_bad_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = small("uniformer_xxs")
    with pytest.raises(ConfigError, match=r"\.pt2 nor \.onnx"):
        export_model(model, tmp_path / "m.bin")
    with pytest.raises(ConfigError, match="format"):
        export_model(model, tmp_path / "m.pt2", format="tflite")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no such"):
        load_exported(tmp_path / "m.onnx")
    (tmp_path / "bad.pt2").write_bytes(b"no program")
    with pytest.raises(CheckpointError, match="damaged"):
        load_exported(tmp_path / "bad.pt2")
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "other.pt2")
    with pytest.raises(CheckpointError, match="not written by stvid"):
        load_exported(tmp_path / "other.pt2")
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(exporting.importlib, "import_module", lambda name: without(name))
    with pytest.raises(StvidError, match=r"pip install 'stvid\[export\]'"):
        export_model(model, tmp_path / "m.onnx")


def test_opset_is_checked(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="opset"):
        export_model(small("uniformer_xxs")[0], tmp_path / "m.onnx", opset=9)


def test_two_exports_to_one_file(tmp_path: Path) -> None:
    model, _ = small("uniformer_xxs")
    path = tmp_path / "m.pt2"
    with claimed(path), pytest.raises(StvidError, match=r"m\.pt2: another process writes it now"):
        export_model(model, path)
    assert list(tmp_path.iterdir()) == []
