"""Models of torchvision and PyTorchVideo behind stvid's API, against the libraries themselves and the goldens."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import stvid
from stvid.cli import main
from stvid.config import OptimConfig
from stvid.engine.optim import plan_parameters
from stvid.errors import CheckpointError, ConfigError
from stvid.models.external import LibraryModel
from stvid.models.kernels import channels_last
from stvid.models.libraries import library_models
from stvid.zoo import model_info

GOLDENS = Path(__file__).parent.parent / "goldens"
needs_pytorchvideo = pytest.mark.skipif(
    importlib.util.find_spec("pytorchvideo") is None, reason="pytorchvideo is not installed"
)


# Sizes that keep the tests quick; the published ones are built in test_published_size.
TINY_MVIT = {
    "depth": 3,
    "patch_embed_dim": 24,
    "embed_dim_mul": [[1, 2.0]],
    "atten_head_mul": [[1, 2.0]],
    "pool_q_stride_size": [[1, 1, 2, 2]],
}
SHRINK: dict[str, dict[str, Any]] = {
    "pytorchvideo/mvit": TINY_MVIT,
}
# One of each kind of network is enough in the default run.
QUICK = {
    "pytorchvideo/mvit_base_16",
    "pytorchvideo/mvit_base_16x4",
    "torchvision/mvit_v2_s",
}


def parameters(names: list[str], quick: set[str] = QUICK) -> list[Any]:
    """The names, the slow ones and those of a library that may be absent marked."""
    cases = []
    for name in names:
        marks = [needs_pytorchvideo] if name.startswith("pytorchvideo/") else []
        marks += [] if name in quick else [pytest.mark.slow]
        cases.append(pytest.param(name, marks=marks))
    return cases


NAMES = [f"{library}/{name}" for library in ("pytorchvideo", "torchvision") for name in library_models(library)]
MODELS = parameters(NAMES)


def small_call(name: str) -> dict[str, Any]:
    shrink = next((options for prefix, options in SHRINK.items() if name.startswith(prefix)), {})
    frames = 1 if name.endswith("mvit_base_16") else 8
    return {"num_classes": 7, "num_frames": frames, "img_size": (32, 48), **shrink}


@functools.cache
def _built(name: str) -> LibraryModel:
    torch.manual_seed(0)
    model = stvid.create_model(name, **small_call(name))
    for module in model.modules():  # residual branches and tables that start at zero pass no gradient on
        for parameter in module.parameters(recurse=False):
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.5 if isinstance(module, torch.nn.BatchNorm3d) else 0.02)
    return model.eval()  # type: ignore[return-value]


def small_model(name: str) -> tuple[LibraryModel, torch.Tensor]:
    model = copy.deepcopy(_built(name))
    torch.manual_seed(1)
    return model, torch.randn(2, 3, *model.clip_size)


# --- what there is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", parameters(NAMES, {"torchvision/mvit_v2_s", "pytorchvideo/mvit_base_16x4"}))
def test_published_size(name: str) -> None:
    info = model_info(name)
    with torch.device("meta"):
        model = stvid.create_model(name)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        if info.gflops is not None:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.eval()(torch.empty(1, 3, info.protocol.frames, info.protocol.crop, info.protocol.crop))
            assert counter.get_total_flops() / 2e9 == pytest.approx(info.gflops, rel=0.02)
    if info.params is not None:
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(info.params, abs=0.02)
    assert model.default_protocol == info.protocol


def test_an_absent_library_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pytorchvideo", None)
    monkeypatch.delitem(sys.modules, "pytorchvideo.models", raising=False)
    monkeypatch.delitem(sys.modules, "pytorchvideo.models.hub", raising=False)
    with pytest.raises(ConfigError, match=r"pytorchvideo is not installed: pip install 'stvid\[pytorchvideo\]'"):
        stvid.create_model("pytorchvideo/mvit_base_16x4")
    assert main(["models", "pytorchvideo/mvit_base_16x4"]) == 0
    out = capsys.readouterr().out
    assert "pytorchvideo/mvit_base_16x4" in out and "pip install 'stvid[pytorchvideo]'" in out


def test_a_library_that_does_not_import_is_not_called_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import stvid.models.external as external

    (tmp_path / "broken_library.py").write_text("import a_dependency_that_is_absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(external.MODULES, "torchvision", "broken_library")
    with pytest.raises(ConfigError, match=r"torchvision is installed but does not import: .*a_dependency"):
        stvid.create_model("torchvision/mvit_v2_s")


# --- the same function as the library's -------------------------------------------------------------------------------


def library_network(name: str, **options: Any) -> torch.nn.Module:
    """The library's own network, built by the library alone, with weights under which it is sensitive to its clip."""
    library, _, own_name = name.partition("/")
    module = importlib.import_module(
        {"torchvision": "torchvision.models.video"}.get(library, "pytorchvideo.models.hub")
    )
    network = getattr(module, own_name)(**options)
    return fill.fill_module(network).double().eval()


def mvit_options(size: tuple[int, int, int]) -> dict[str, Any]:
    return {"spatial_size": size[1:], "temporal_size": size[0], "head_num_classes": 7, **TINY_MVIT}


# Name, the size that the model is built for, the size of the clip, the library's arguments, the wrapper's.
SAME: list[tuple[str, tuple[int, int, int], tuple[int, int, int], dict[str, Any], dict[str, Any]]] = [
    ("torchvision/mvit_v1_b", (16, 224, 224), (16, 224, 224), {"num_classes": 7}, {}),
    ("pytorchvideo/mvit_base_16x4", (4, 32, 48), (4, 32, 48), mvit_options((4, 32, 48)), TINY_MVIT),
]
SLOW = ("torchvision/mvit_v1_b",)


@pytest.mark.parametrize(
    ("name", "built", "size", "theirs", "ours"),
    [
        pytest.param(
            *case,
            id=case[0],
            marks=[needs_pytorchvideo] * ("pytorchvideo" in case[0]) + [pytest.mark.slow] * (case[0] in SLOW),
        )
        for case in SAME
    ],
)
def test_logits_are_those_of_the_library(
    name: str, built: tuple[int, int, int], size: tuple[int, int, int], theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    network = library_network(name, **theirs)
    model = stvid.create_model(name, num_classes=7, num_frames=built[0], img_size=built[1:], **ours)
    report = stvid.load_checkpoint(model, {"model_state": network.state_dict()})
    assert report.format == name.partition("/")[0]
    clip = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = network(clip)
        assert not torch.allclose(expected, network(clip.flip(2)), rtol=1e-6)
        torch.testing.assert_close(model.double().eval()(clip), expected, rtol=1e-9, atol=1e-9)


@needs_pytorchvideo
def test_logits_are_not_probabilities() -> None:
    model, clip = small_model("pytorchvideo/mvit_base_16x4")
    with torch.no_grad():
        model.head.fc.bias.copy_(torch.arange(7.0) - 3)
        logits = model(clip)
    assert (logits < 0).any() and ((logits.exp().sum(1) - 1).abs() > 0.5).all()


# Official layout, and the wrapper that computes it. The quick ones come first.
CASES = [
    ("external/mvit_b_16x4__16x224", "torchvision/mvit_v1_b"),
    ("external/mvitv2_s_16x4__16x224", "torchvision/mvit_v2_s"),
    ("external/ptv_mvit_b_16x4__16x224", "pytorchvideo/mvit_base_16x4"),
    ("external/ptv_mvit_b_32x3__32x224", "pytorchvideo/mvit_base_32x3"),
    ("external/tv_mvit_v1_b__16x224", "torchvision/mvit_v1_b"),
    ("external/tv_mvit_v2_s__16x224", "torchvision/mvit_v2_s"),
]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(
            *case,
            id=case[0].rpartition("/")[2],
            marks=[needs_pytorchvideo] * case[1].startswith("pytorchvideo") + [pytest.mark.slow] * (index > 0),
        )
        for index, case in enumerate(CASES)
    ],
)
def test_golden_logits(case: str, name: str) -> None:
    golden = json.loads((GOLDENS / f"{case}.json").read_text())
    frames, height, width = golden["input_shape"][2:]
    model = stvid.create_model(name, num_classes=golden["num_classes"], num_frames=frames, img_size=(height, width))
    floats = {key: shape for key, shape in golden["state"].items() if key not in golden["int_keys"]}
    stvid.load_checkpoint(model, {"model_state": fill.fill_state(floats)})
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["params"]
    clip = torch.from_numpy(fill.make_input(golden["input_shape"])).double()
    with torch.no_grad():
        logits = model.double().eval()(clip).reshape(-1).numpy()
    assert np.abs(logits - np.array(golden["logits"])).max() < 1e-7 * golden["logits_std"]


# --- the API ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient_and_recomputing_changes_nothing(name: str) -> None:
    model, clip = small_model(name)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        (model(clip) * torch.arange(7.0)).sum().backward()
        return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}  # type: ignore[union-attr]

    plain = gradients()
    # MViTv2: of the last block the class token alone goes on, which neither these tables nor the pool of queries touch.
    untouched = r"network\.blocks\.15\.attn\.(rel_pos_[thw]|pool_q\.pool\.weight)"
    idle = [key for key, value in plain.items() if not value.any()]
    assert [key for key in idle if not (name == "torchvision/mvit_v2_s" and re.fullmatch(untouched, key))] == []
    model.set_grad_checkpointing()
    for key, value in gradients().items():
        torch.testing.assert_close(value, plain[key], rtol=1e-4, atol=1e-5 * float(plain[key].abs().max()))


@needs_pytorchvideo
def test_recomputing_frees_activations() -> None:
    model, clip = small_model("pytorchvideo/mvit_base_16x4")
    kept = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            model(clip)
        kept.append(sum(saved))
    assert kept[1] < 0.3 * kept[0]


@pytest.mark.parametrize("name", MODELS)
def test_methods_that_training_relies_on(name: str) -> None:
    model, clip = small_model(name)
    features = model.forward_features(clip)
    assert features.shape[0] == 2 and model.num_features in features.shape
    assert model.get_classifier().weight.shape == (7, model.head_features)
    plan = plan_parameters(model, OptimConfig(layer_decay=0.5))
    assert plan.keys() == dict(model.named_parameters()).keys()
    scales = sorted({treatment.lr_scale for treatment in plan.values()}, reverse=True)
    assert scales[0] == 1.0 and len(scales) > 4
    assert plan["head.fc.weight"].lr_scale == 1.0 and plan[next(iter(plan))].lr_scale == scales[-1]
    assert model.no_weight_decay() <= plan.keys()
    model.train()
    assert model(clip).shape == (2, 7)
    model.reset_classifier(3)
    assert model(clip).shape == (2, 3)
    model.reset_classifier(0)
    assert model(clip).shape == (2, model.head_features)


@pytest.mark.parametrize("name", MODELS)
def test_own_state_goes_round(name: str, tmp_path: Path) -> None:
    model, clip = small_model(name)
    stvid.save_model(model, tmp_path / "weights.safetensors")
    again = stvid.load_model(tmp_path / "weights.safetensors")
    assert again.default_protocol == model.default_protocol and again.recipe == model.recipe
    with torch.no_grad():
        torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", parameters(NAMES, {"torchvision/mvit_v2_s"}))
def test_export(name: str) -> None:
    model, clip = small_model(name)
    program = torch.export.export(model, (clip,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        for batch in (clip, torch.randn(3, *clip.shape[1:])):
            torch.testing.assert_close(program.module()(batch), model(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_bf16_autocast_and_channels_last(name: str) -> None:
    model, clip = small_model(name)
    with torch.no_grad():
        expected = model(clip)
        channels_last(model)
        last = model(clip.contiguous(memory_format=torch.channels_last_3d))
        scale = float(expected.abs().max())
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4 * scale)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(clip).float()
    assert (low - expected).abs().max() < 0.1 * scale + 0.05


@pytest.mark.parametrize("name", MODELS)
def test_wrong_clips_are_refused(name: str) -> None:
    model, clip = small_model(name)
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
        model(clip[:, :2])
    with pytest.raises(ValueError, match="pixels"):
        model(clip[..., :2, :2])


@pytest.mark.parametrize("name", parameters([name for name in NAMES if "pytorchvideo" in name]))
def test_other_channels(name: str) -> None:
    model = stvid.create_model(name, **small_call(name), in_chans=2).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 2, *model.clip_size)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("torchvision/mvit_v2_s", {"in_chans": 2}, ConfigError, "3 channels only"),
        ("torchvision/mvit_v2_s", {"widht": 2}, TypeError, "widht"),
        ("torchvision/mvit_v2_s", {"pretrained": True}, CheckpointError, "knows of no published weights of it"),
        ("torchvision/mvit_v2_s", {"stem": torch.nn.Identity}, TypeError, "'stem' is an object"),
        ("torchvision/mvit_v1_b", {"img_size": (32, 30)}, ConfigError, "32x30 pixels.*multiples of 2 frames and of 4"),
        pytest.param(
            "pytorchvideo/mvit_base_16x4", {"widht": 2}, TypeError, "widht", marks=needs_pytorchvideo, id="ptv-unknown"
        ),
        ("pytorchvideo/mvit_base_16x4", {"head_activation": None}, TypeError, "takes no 'head_activation'"),
        ("pytorchvideo/mvit_base_16", {"num_frames": 2}, ConfigError, "clips of 1 frame"),
    ],
)
def test_what_a_library_cannot_build_is_said(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stvid.create_model(name, **options)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@needs_pytorchvideo
def test_a_published_file_and_a_head_of_another_size(tmp_path: Path) -> None:
    size = {"spatial_size": (32, 48), "temporal_size": 8}
    network = library_network("pytorchvideo/mvit_base_16x4", head_num_classes=5, **size, **TINY_MVIT).float()
    torch.save({"model_state": network.state_dict(), "epoch": 3}, tmp_path / "MVIT.pyth")
    model, _ = small_model("pytorchvideo/mvit_base_16x4")
    before = model.head.fc.weight.clone()
    with pytest.raises(CheckpointError, match="its head has 5 classes, the model 7"):
        stvid.load_checkpoint(model, tmp_path / "MVIT.pyth")
    report = stvid.load_checkpoint(model, tmp_path / "MVIT.pyth", reset_head=True)
    assert report.reset == ["head.fc.bias", "head.fc.weight"] and torch.equal(model.head.fc.weight, before)
    key = "patch_embed.patch_model.weight"
    torch.testing.assert_close(model.network.state_dict()[key], network.state_dict()[key])


def test_torchvisions_file_tells_the_number_of_classes(tmp_path: Path) -> None:
    network = library_network("torchvision/mvit_v2_s", num_classes=5).float()
    torch.save(network.state_dict(), tmp_path / "mvit.pth")
    model = stvid.load_model(tmp_path / "mvit.pth", name="torchvision/mvit_v2_s")
    assert model.num_classes == 5 and model.recipe["name"] == "torchvision/mvit_v2_s"
    torch.testing.assert_close(model.head.fc.weight, network.head[1].weight)


@needs_pytorchvideo
def test_slowfasts_mvit_is_refused() -> None:
    model, _ = small_model("pytorchvideo/mvit_base_16x4")
    with pytest.raises(CheckpointError, match="another architecture than pytorchvideo/mvit_base_16x4"):
        stvid.load_checkpoint(model, {"patch_embed.proj.weight": torch.zeros(96, 3, 3, 7, 7)})


@pytest.mark.parametrize(
    "name", parameters(["pytorchvideo/mvit_base_16x4", "torchvision/mvit_v1_b"], {"pytorchvideo/mvit_base_16x4"})
)
def test_position_tables_are_resized(name: str, tmp_path: Path) -> None:
    model, _ = small_model(name)
    stvid.save_model(model, tmp_path / "small.pt")
    call = {**small_call(name), "num_frames": 12, "img_size": (64, 32)}
    other = stvid.create_model(name, **call)
    report = stvid.load_checkpoint(other, tmp_path / "small.pt")
    assert len(report.resized) == 2
    prefix = "cls_positional_encoding.pos_embed_{}" if "pytorchvideo" in name else "pos_encoding.{}_pos"
    for axis, old, new in (("temporal", (4,), (6,)), ("spatial", (8, 12), (16, 8))):
        key = f"network.{prefix.format(axis)}"
        before, after = (part.state_dict()[key].squeeze(0) for part in (model, other))
        mode = "linear" if axis == "temporal" else "bilinear"
        grid = before.T.reshape(1, -1, *old)
        expected = torch.nn.functional.interpolate(grid, new, mode=mode, align_corners=True).flatten(2)[0].T
        torch.testing.assert_close(after, expected)


def test_mvitv2_takes_another_size() -> None:
    model = stvid.create_model("torchvision/mvit_v2_s", num_classes=2, num_frames=4, img_size=(32, 64)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 4, 32, 64)).shape == (1, 2)
        with pytest.raises(ValueError, match="built for 4 frames of 32x64 pixels, not 4 frames of 32x32"):
            model(torch.randn(1, 3, 4, 32, 32))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_pytorchvideo
def test_training_evaluation_and_prediction(
    tmp_path: Path, make_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    videos = make_dataset(tmp_path / "videos", per_class=2)
    run = tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{name: pytorchvideo/mvit_base_16x4, hyperparameters: {json.dumps(TINY_MVIT)}}}\n"
        "optim: {layer_decay: 0.9}\n"
        "protocol: {frames: 4, stride: 2, short_side: 40, crop: 32, views: 2x1}\n"
        "data: {batch_size: 2, workers: 0}\n"
        "trainer: {max_epochs: 1, accelerator: cpu}\n"
    )
    sources = [f"--data.train={videos}", f"--data.val={videos}", f"--out={run}"]
    assert main(["train", "--config", str(config), *sources]) == 0
    assert main(["test", "--checkpoint", str(run), "--workers=0"]) == 0
    assert "top1@2x1" in capsys.readouterr().out
    video = next(videos.rglob("*.mp4"))
    prediction = stvid.predict(stvid.load_model(run), [video])[0]
    assert prediction.error is None and prediction.classes
