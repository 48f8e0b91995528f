from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stvid
from stvid.checkpoints import candidates, describe, load_checkpoint, read_checkpoint, save_model
from stvid.errors import CheckpointError
from stvid.models.base import VideoModel
from stvid.sources import newest_checkpoint
from stvid.zoo import load_model


def tiny(num_classes: int = 5, **options: Any) -> VideoModel:
    torch.manual_seed(num_classes)
    shape = {"depth": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "head_dim": 8, **options}
    return stvid.create_model("uniformer_xxs", num_classes=num_classes, img_size=32, num_frames=4, **shape).eval()


def same(a: VideoModel, b: VideoModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"epoch": 3, "model_state": state, "cfg": "text"},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"model._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {key: value.numpy() for key, value in state.items()},
    ],
)
def test_wrappers_are_taken_off(wrap: Any) -> None:
    source, target = tiny(), tiny()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    report = load_checkpoint(target, wrap(source.state_dict()))
    assert same(source, target) and report.loaded == len(source.state_dict())


@pytest.mark.parametrize("suffix", ["pth", "pyth", "pt", "ckpt", "npz"])
def test_files_are_read_by_content(suffix: str, tmp_path: Path) -> None:
    source, path = tiny(), tmp_path / f"weights.{suffix}"
    if suffix == "npz":
        np.savez(path, **{key: value.numpy() for key, value in source.state_dict().items()})
    else:
        torch.save({"model_state": source.state_dict()}, path)
    target = tiny()
    load_checkpoint(target, path)
    assert same(source, target)


def test_head_of_another_size() -> None:
    model = tiny(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"head has 5 classes, the model 3.*reset_head"):
        load_checkpoint(model, tiny(5).state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    report = load_checkpoint(model, tiny(5).state_dict(), reset_head=True)
    assert report.reset == ["head.fc.bias", "head.fc.weight"]
    assert torch.equal(model.head.fc.weight, before["head.fc.weight"])
    assert torch.equal(model.norm.weight, tiny(5).norm.weight)


def test_another_architecture_lists_the_keys() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"does not fit uniformer_xxs.*missing patch_embed1\.norm.*, and \d+ more; left over conv1",
    ):
        load_checkpoint(tiny(), {"conv1.weight": torch.zeros(3, 3)})
    state = tiny().state_dict()
    state["extra.weight"] = torch.zeros(2)
    del state["norm.weight"]
    with pytest.raises(CheckpointError, match=r"missing norm\.weight; left over extra\.weight"):
        load_checkpoint(tiny(), state)


def test_other_shapes_are_listed() -> None:
    with pytest.raises(CheckpointError, match=r"shapes differ.*blocks3\.0.* instead of "):
        load_checkpoint(tiny(), tiny(embed_dim=(8, 8, 24, 16)).state_dict())


@pytest.mark.parametrize(
    "content,reason",
    [(None, "no such checkpoint"), (b"", "empty"), (b"not a checkpoint at all", "not a checkpoint"), ("dir", "folder")],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
def test_unreadable_files(content: Any, reason: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    if content == "dir":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason if suffix == "pth" or "not" not in reason else "damaged") as error:
        read_checkpoint(path)
    assert str(error.value).count(str(path)) == 1


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    save_model(tiny(), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path)


class Payload:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


def test_objects_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tiny(), tiny()
    torch.save({"state_dict": source.state_dict(), "object": Payload()}, tmp_path / "evil.pth")
    report = load_checkpoint(target, tmp_path / "evil.pth")
    assert same(source, target) and "objects of builtins.print" in report.left_out
    assert "must not run" not in capsys.readouterr().out


def test_load_model_needs_a_description_or_a_name(tmp_path: Path) -> None:
    torch.save({"model_state": stvid.create_model("uniformer_xxs", num_classes=6).state_dict()}, tmp_path / "w.pyth")
    with pytest.raises(CheckpointError, match="--model"):
        load_model(tmp_path / "w.pyth")
    assert load_model(tmp_path / "w.pyth", name="uniformer_xxs").num_classes == 6


def test_load_model_keeps_the_protocol(tmp_path: Path) -> None:
    model = tiny()
    model.default_protocol = model.default_protocol.replace(stride=3, class_names=("a", "b", "c", "d", "e"))
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.default_protocol == model.default_protocol and not again.training and same(model, again)
    with pytest.raises(CheckpointError, match="of uniformer_xxs, not of uniformer_s"):
        load_model(tmp_path / "m.safetensors", name="uniformer_s")


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_the_task_is_kept(name: str, tmp_path: Path) -> None:
    model = tiny()
    assert model.task == "multiclass"
    model.task = "multilabel"
    save_model(model, tmp_path / name)
    assert load_model(tmp_path / name).task == "multilabel"
    other = tiny()
    load_checkpoint(other, tmp_path / name)
    assert other.task == "multilabel"
    new_head = tiny(3)
    load_checkpoint(new_head, tmp_path / name, reset_head=True)
    assert new_head.task == "multiclass", "it belongs to the head, as the protocol does"


def test_a_checkpoint_without_a_task_leaves_it() -> None:
    model = tiny()
    model.task = "multilabel"
    old = {key: value for key, value in describe(model).items() if key != "task"}
    load_checkpoint(model, {"state_dict": tiny().state_dict(), "stvid": old})
    assert model.task == "multilabel"
    load_checkpoint(model, tiny().state_dict())
    assert model.task == "multilabel"
    with pytest.raises(CheckpointError, match="task 'ranking' is not one of multiclass, multilabel"):
        load_checkpoint(model, {"state_dict": tiny().state_dict(), "stvid": {**old, "task": "ranking"}})


def test_load_model_of_a_run(tmp_path: Path) -> None:
    run, best, last = tmp_path / "run", tiny(), tiny()
    with torch.no_grad():
        best.head.fc.bias.fill_(1.0)
    folder = run / "checkpoints"
    save_model(last, folder / "last.ckpt")
    assert newest_checkpoint(run, prefer="best.ckpt") == folder / "last.ckpt"
    assert same(load_model(run), last)
    save_model(best, folder / "best.ckpt")
    for source in (run, folder, str(run), folder / "best.ckpt"):
        assert same(load_model(source), best)
    assert newest_checkpoint(run) == folder / "last.ckpt"
    (folder / "best.ckpt").write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match=r"best\.ckpt: not a checkpoint"):
        load_model(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: holds no checkpoint"):
        load_model(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"nothing: no such checkpoint or run folder"):
        load_model(tmp_path / "nothing")


def test_save_to_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_model(tiny(), tmp_path / "file" / "m.pt")
    with pytest.raises(CheckpointError, match="suffix"):
        save_model(tiny(), tmp_path / "m.bin")


TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("timesformer_base", {}),
    ("timesformer_base", {"attention_type": "joint_space_time"}),
    ("timesformer_base", {"attention_type": "space_only"}),
    ("vivit_b16x2", {}),
    ("vivit_b16x2_fe", {"temporal_depth": 1}),
    ("vivit_b16x2_fsa", {"attention_order": "time_space"}),
    ("vivit_b16x2_fdp", {}),
    ("vivit_b16x2_avgpool", {"tubelet_init": "average"}),
]


def randomise(model: VideoModel) -> VideoModel:
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("name,options", CASES)
def test_a_loaded_table_is_the_one_resized_at_run_time(name: str, options: dict[str, Any], tmp_path: Any) -> None:
    options = {**TINY, **options}
    source = randomise(stvid.create_model(name, num_frames=8, img_size=(48, 64), **options))
    clip = torch.randn(1, 3, 12, 80, 33)
    stvid.save_model(source, tmp_path / "weights.safetensors")
    target = stvid.create_model(name, num_frames=12, img_size=(80, 33), **options).eval()
    report = stvid.load_checkpoint(target, tmp_path / "weights.safetensors")
    assert report.resized and all(key.endswith("_embed") for key in report.resized)
    with torch.no_grad():
        expected = source(clip)
        torch.testing.assert_close(target(clip), expected, rtol=1e-4, atol=1e-4)
    if any(old[1] in (13, 97, 12, 48, 96) for old, _ in report.resized.values()):  # 3 x 4 cells, frames aside
        with pytest.raises(CheckpointError, match="shapes differ"):  # nothing says that the grid was 3 x 4
            stvid.load_checkpoint(target, source.state_dict())


@pytest.mark.parametrize("name,options", CASES)
def test_a_published_table_is_taken_for_a_square(name: str, options: dict[str, Any]) -> None:
    options = {**TINY, **options}
    source = randomise(stvid.create_model(name, num_frames=8, img_size=64, **options))
    target = stvid.create_model(name, num_frames=8, img_size=(48, 80), **options).eval()
    assert stvid.load_checkpoint(target, source.state_dict()).resized
    clip = torch.randn(1, 3, 8, 48, 80)
    with torch.no_grad():
        torch.testing.assert_close(target(clip), source(clip), rtol=1e-4, atol=1e-4)


# --- finding the network ----------------------------------------------------------------------------------------------


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def other() -> dict[str, Any]:
    """Returns a state with the keys of `tiny` and other numbers."""
    return {key: value + 1 for key, value in tiny().state_dict().items()}


EXTRA = {"criterion.weight": torch.ones(5), "val_acc.tp": torch.ones(3), "val_acc.fp": torch.ones(3)}


@pytest.mark.parametrize(
    "wrap,found",
    [
        (lambda state: {"state_dict": under("net.", state)}, "state_dict: net."),
        (lambda state: {"state_dict": under("recognizer.0.", state)}, "state_dict: recognizer.0."),
        (lambda state: {"state_dict": under("_forward_module.model.", state)}, "state_dict: model."),
        (lambda state: {"state_dict": {**under("model.", state), **EXTRA}}, "state_dict: model."),
        (
            lambda state: {"state_dict": {**under("net.model.", state), **under("net.", EXTRA)}},
            "state_dict: net.model.",
        ),
        (lambda state: {"state_dict": {**state, **EXTRA}}, "state_dict"),
        (lambda state: {"my_network": state, "optimizer": {"state": {}, "param_groups": []}}, "my_network/"),
        (lambda state: {"ema": other(), "net": state}, "net"),
        (lambda state: {"teacher": under("module.", other()), "student": under("module.", state)}, "student: module."),
        (
            lambda state: {"state_dict": {**under("ema.module.", other()), **under("model.", state)}},
            "state_dict: model.",
        ),
        (lambda state: {"ema_state_dict": {"module": state}}, "ema_state_dict/module"),
        (lambda state: {key.replace("blocks3.", "blocks3._fsdp_wrapped_module."): state[key] for key in state}, ""),
        (lambda state: {key.replace("blocks3.", "blocks3.module."): state[key] for key in state}, ""),
    ],
)
def test_the_network_is_found_under_any_name(wrap: Any, found: str) -> None:
    source, target = tiny(), tiny()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    report = load_checkpoint(target, wrap(source.state_dict()))
    assert same(source, target) and report.found == found
    assert report.loaded == len(source.state_dict())


def test_the_report_lists_what_was_left_out() -> None:
    content = {
        "state_dict": {**under("model.", tiny().state_dict()), **under("ema.module.", other()), **EXTRA},
        "state_dict_ema": other(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
    }
    report = load_checkpoint(tiny(), content)
    number = len(tiny().state_dict())
    assert report.left_out == [
        f"ema. ({number} tensors)",
        "criterion. (1 tensor)",
        "val_acc. (2 tensors)",
        f"state_dict_ema ({number} tensors)",
    ]
    assert report.others == ["state_dict: ema.module.", "state_dict_ema"]
    assert "(of state_dict: model.), left out ema." in str(report)
    assert "state_dict: ema.module., state_dict_ema fits too and was not taken" in str(report)


def test_an_averaged_copy_is_taken_if_it_alone_fits() -> None:
    source, target = tiny(), tiny()
    content = {"student": {"other.weight": torch.ones(2)}, "teacher": under("backbone.", source.state_dict())}
    report = load_checkpoint(target, content)
    assert report.found.startswith("teacher") and report.others == []


def test_a_part_with_other_shapes_is_not_preferred() -> None:
    larger = tiny(embed_dim=(8, 8, 24, 16)).state_dict()
    source, target = tiny(), tiny()
    report = load_checkpoint(
        target, {"state_dict": {**under("teach.", larger), **under("learn.", source.state_dict())}}
    )
    assert report.found == "state_dict: learn." and same(source, target)


def test_a_misfit_names_the_nearest_part_and_blames_no_architecture() -> None:
    state = tiny().state_dict()
    lacking = {key: value for key, value in state.items() if key != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"nearest: state_dict: net\.\): missing norm\.weight$"):
        load_checkpoint(tiny(), {"state_dict": {**under("net.", lacking), "loss.a": torch.ones(1)}})
    mixed = {f"part{place % 7}x.{key}": value for place, (key, value) in enumerate(state.items())}
    with pytest.raises(CheckpointError, match="keys end like those of the model") as error:
        load_checkpoint(tiny(), mixed)
    assert "another architecture" not in str(error.value)


def test_a_module_of_ones_own_that_is_left_over_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"left over aux_head\.weight"):
        load_checkpoint(tiny(), {**tiny().state_dict(), "aux_head.weight": torch.ones(2)})


def test_candidates_are_public() -> None:
    found = candidates({"state_dict": under("module.encoder_q.", tiny().state_dict())})
    assert ("state_dict: module.encoder_q.", set(tiny().state_dict())) in [(name, set(state)) for name, state in found]


# --- classifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset_head", [False, True])
def test_a_model_without_classes_leaves_the_classifier_out(reset_head: bool, tmp_path: Path) -> None:
    source, target = tiny(), tiny(0)
    source.default_protocol = source.default_protocol.replace(class_names=tuple("abcde"), stride=7)
    save_model(source, tmp_path / "m.pt")
    for weights in (tmp_path / "m.pt", source.state_dict()):
        report = load_checkpoint(target, weights, reset_head=reset_head)
        assert report.left_out == ["its classifier (head.fc.bias, head.fc.weight)"] and report.reset == []
        assert "left out its classifier" in str(report)
    load_checkpoint(target, tmp_path / "m.pt")
    assert target.default_protocol.stride == 7 and target.default_protocol.class_names == ()
    source.reset_classifier(0)
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(source(clip), target(clip))


def test_load_model_of_a_backbone_gives_features(tmp_path: Path) -> None:
    state = stvid.create_model("uniformer_xxs", num_classes=6).state_dict()
    backbone = {key: value for key, value in state.items() if not key.startswith("head.")}
    torch.save({"state_dict": under("encoder.", backbone)}, tmp_path / "w.pth")
    model = load_model(tmp_path / "w.pth", name="uniformer_xxs")
    assert model.num_classes == 0 and torch.equal(model.norm.weight, state["norm.weight"])
    with pytest.raises(CheckpointError, match=r"missing head\.fc\.weight"):
        stvid.create_model("uniformer_xxs", num_classes=6, checkpoint=tmp_path / "w.pth")


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_resized_table_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    source = stvid.create_model("timesformer_base", num_frames=4, img_size=32, **TINY)
    target = stvid.create_model("timesformer_base", num_frames=8, img_size=64, **TINY)
    load_checkpoint(source, source.state_dict())
    assert capsys.readouterr().err == ""
    load_checkpoint(target, {"state_dict": source.state_dict()})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stvid: mapping: resized ") and "num_frames" in line and "img_size" in line
    assert "(1, 5, 32) to (1, 17, 32)" in line and "(1, 4, 32) to (1, 8, 32)" in line


# --- folders ----------------------------------------------------------------------------------------------------------


def transformers_folder(folder: Path, labels: list[str], **pixels: Any) -> VideoModel:
    model = tiny(len(labels))
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config = {"id2label": {str(place): label for place, label in enumerate(labels)}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return model


def test_a_folder_of_transformers_brings_its_classes_and_pixels(tmp_path: Path) -> None:
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.25], "size": {"shortest_edge": 40}}
    source = transformers_folder(tmp_path / "hf", ["run", "sit"], **pixels)
    target = tiny(2)
    report = load_checkpoint(target, tmp_path / "hf")
    protocol = target.default_protocol
    assert same(source, target) and report.protocol == protocol
    assert protocol.class_names == ("run", "sit") and protocol.mean == (0.5, 0.4, 0.3)
    assert protocol.std == (0.2, 0.2, 0.25) and (protocol.short_side, protocol.crop) == (40, 32)
    new_head = tiny(3)
    load_checkpoint(new_head, tmp_path / "hf", reset_head=True)
    assert new_head.default_protocol == tiny(3).default_protocol
    assert newest_checkpoint(tmp_path / "hf") == tmp_path / "hf"


@pytest.mark.parametrize(
    ("pixels", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "offset": True, "rescale_factor": 1 / 127.5}, 0.75, 0.25),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"image_mean": 0.5, "image_std": 0.25, "do_rescale": False}, 0.5 / 255, 0.25 / 255),
    ],
)
def test_the_pixels_of_transformers_are_brought_to_our_scale(
    pixels: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    transformers_folder(tmp_path / "hf", ["run", "sit"], **pixels)
    model = tiny(2)
    load_checkpoint(model, tmp_path / "hf")
    assert model.default_protocol.mean == pytest.approx((mean,) * 3, abs=1e-6)
    assert model.default_protocol.std == pytest.approx((std,) * 3, abs=1e-6)


def test_labels_without_words_are_no_class_names(tmp_path: Path) -> None:
    transformers_folder(tmp_path / "hf", ["LABEL_0", "LABEL_1"])
    model = tiny(2)
    report = load_checkpoint(model, tmp_path / "hf")
    assert model.default_protocol.class_names == () and report.protocol is None


def test_the_folder_of_a_run_comes_first(tmp_path: Path) -> None:
    transformers_folder(tmp_path / "run", ["a", "b"])
    save_model(tiny(4), tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert read_checkpoint(tmp_path / "run")["stvid"]["model"]["num_classes"] == 4


def test_the_content_of_a_file_names_it(tmp_path: Path) -> None:
    torch.save({"state_dict": tiny().state_dict()}, tmp_path / "w.pth")
    content = read_checkpoint(tmp_path / "w.pth")
    assert load_checkpoint(tiny(), content).source == str(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: its head has 5 classes"):
        load_checkpoint(tiny(3), content)


def test_weights_are_saved_with_the_protocol_of_their_training(tmp_path: Path) -> None:
    model = stvid.create_model("resnet3d_18", num_classes=2, num_frames=4, img_size=32)
    protocol = stvid.Protocol(frames=4, stride=3, crop=32, short_side=40, channels="bgr", class_names=("a", "b"))
    for name in ("w.pt", "w.safetensors"):
        stvid.save_model(model, tmp_path / name, protocol=protocol)
        assert stvid.load_model(tmp_path / name).default_protocol == protocol
    assert model.default_protocol != protocol  # the model is as it was
    with pytest.raises(CheckpointError, match=r"not written: the model has 2 logits, but the protocol names 1$"):
        stvid.save_model(model, tmp_path / "w.pt", protocol=protocol.replace(class_names=("a",)))


def prefixed(prefix: str) -> Any:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def cast(dtype: torch.dtype) -> Any:
    return lambda state: {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def adam_of(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    parameters = [torch.nn.Parameter(value.clone()) for value in state.values() if value.is_floating_point()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


# Files of a network as programs leave them; all of them hold the same weights, up to the precision that is named.
ODD_STATES: dict[str, tuple[Any, float]] = {
    "compiled": (prefixed("_orig_mod."), 0),
    "data parallel": (prefixed("module."), 0),
    "data parallel, compiled": (prefixed("module._orig_mod."), 0),
    "compiled, data parallel": (prefixed("_orig_mod.module."), 0),
    "one compiled part": (lambda state: {key.replace(".", "._orig_mod.", 1): value for key, value in state.items()}, 0),
    "lightning": (lambda state: {"state_dict": prefixed("model.")(state), "epoch": 3, "loops": {}}, 0),
    "beside an optimizer": (lambda state: {"model": state, "optimizer": adam_of(state)}, 0),
    "beside its mean": (lambda state: {"model": state, "model_ema": cast(torch.float16)(state)}, 0),
    "far down": (lambda state: {"a": {"b": {"c": {"d": state}}}}, 0),
    "arrays": (lambda state: {key: value.numpy() for key, value in state.items()}, 0),
    "parameters": (
        lambda state: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()},
        0,
    ),
    "half precision": (cast(torch.float16), 1e-3),
    "bfloat16": (cast(torch.bfloat16), 1e-2),
    "double precision": (cast(torch.float64), 0),
}


@pytest.mark.parametrize("case", ODD_STATES)
def test_odd_files_of_a_network_are_read(case: str, tmp_path: Path) -> None:
    wrap, tolerance = ODD_STATES[case]
    source, target = tiny(), tiny()
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    for parameter in target.parameters():
        torch.nn.init.zeros_(parameter)
    load_checkpoint(target, tmp_path / "w.pth")
    for own, loaded in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert own.dtype == loaded.dtype
        assert torch.allclose(own.double(), loaded.double(), rtol=tolerance, atol=tolerance / 1e4)


ODD_STATES_REFUSED: dict[str, tuple[Any, str]] = {
    "an optimizer": (adam_of, "holds no tensors of a network, only the state of an optimizer"),
    "an optimizer of a run": (
        lambda state: {"optimizer": adam_of(state), "epoch": 3},
        "only the state of an optimizer",
    ),
    "nothing": (lambda state: {}, "holds no tensors$"),
    "lists": (lambda state: {key: value.tolist() for key, value in state.items()}, "holds no tensors$"),
    "numbers as keys": (lambda state: dict(enumerate(state.values())), "another architecture than uniformer_xxs"),
    "other shapes": (
        lambda state: {k: torch.zeros(7, *v.shape[1:]) if v.ndim > 1 else v for k, v in state.items()},
        r"shapes differ from uniformer_xxs: patch_embed1\.proj\.weight \(7, 3, 3, 4, 4\) instead of",
    ),
    "a tensor less": (lambda state: dict(list(state.items())[1:]), r"missing patch_embed1\.norm\.weight$"),
    "a tensor more": (lambda state: {**state, "extra.weight": torch.ones(2)}, r"left over extra\.weight$"),
    "without a head": (
        lambda state: {key: value for key, value in state.items() if not key.startswith("head")},
        r"missing head\.fc\.weight, head\.fc\.bias",
    ),
    "whole numbers": (cast(torch.int8), r"is int8, where torch\.float32 is needed; save the weights before"),
    "complex numbers": (cast(torch.complex64), r"is complex64, where torch\.float32 is needed"),
    "shapes only": (lambda state: {k: v.to("meta") for k, v in state.items()}, "its tensors have shapes only"),
}


@pytest.mark.parametrize("case", ODD_STATES_REFUSED)
def test_odd_files_of_a_network_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    wrap, message = ODD_STATES_REFUSED[case]
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(wrap(model.state_dict()), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(model, tmp_path / "w.pth")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "w.pth"))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_numbers_that_are_not_finite_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tiny().state_dict()
    state["head.fc.bias"][0], state["patch_embed1.proj.weight"][0] = float("nan"), float("-inf")
    torch.save(state, tmp_path / "w.pth")
    load_checkpoint(tiny(), tmp_path / "w.pth")
    said = "2 of its tensors hold numbers that are not finite: patch_embed1.proj.weight, head.fc.bias"
    assert capsys.readouterr().err == f"stvid: {tmp_path / 'w.pth'}: {said}\n"


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "ckpt"])
def test_a_flipped_bit_is_found_or_harmless(suffix: str, tmp_path: Path) -> None:
    good, path = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    save_model(tiny(), good)
    content, expected, described = good.read_bytes(), tiny().state_dict(), json.dumps(describe(tiny()))
    rng = np.random.default_rng(0)
    found = 0
    for at, bit in zip(rng.integers(len(content), size=240), rng.integers(8, size=240), strict=True):
        data = bytearray(content)
        data[at] ^= 1 << int(bit)
        path.write_bytes(data)
        try:
            read = read_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            found += 1
            continue
        state = {key: value for key, value in read.get("state_dict", read).items() if key != "stvid"}
        assert state.keys() == expected.keys()  # the bit was in a field that nobody reads, or between two tensors
        assert all(torch.equal(state[key], value) for key, value in expected.items()), (at, bit)
        assert json.dumps(read["stvid"]) == described
    assert found >= 150


def test_a_damaged_copy_says_what_to_do(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        save_model(tiny(), tmp_path / name)
        data = bytearray((tmp_path / name).read_bytes())
        data[data.index(tiny().norm.weight.detach().numpy().tobytes())] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=r"not those that were written.*fetch or save it again"):
            load_model(tmp_path / name)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = tiny().state_dict()
    metadata = {"format": "pt", "stvid": json.dumps(describe(tiny()))}
    save_file(state, tmp_path / "earlier.safetensors", metadata)
    save_file(state, tmp_path / "foreign.safetensors")
    assert same(load_model(tmp_path / "earlier.safetensors"), tiny())
    assert load_checkpoint(tiny(), tmp_path / "foreign.safetensors").loaded == len(state)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": state, "stvid": describe(tiny())}, tmp_path / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(load_model(tmp_path / "unchecked.pt"), tiny())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": 3}, "its protocol cannot be used"),
        ({"protocol": {"frames": "x"}}, "protocol.frames"),
        ({"protocol": {"class_names": 7}}, "protocol.class_names"),
        ({"model": [1]}, "model is"),
        ({"measured": "x"}, "measured is"),
        ({"model": {"name": {}}}, "name is"),
        ({"model": {"num_classes": 10**11}}, "num_classes is"),
        ({"model": {"num_frames": True}}, "num_frames is"),
        ({"model": {"img_size": [10**9, 1]}}, "img_size is"),
        ({"model": {"hyperparameters": {"depth": 10**9}}}, "hyperparameters is"),
        ({"model": {"hyperparameters": {"embed_dim": [10**9]}}}, "hyperparameters is"),
    ],
)
def test_descriptions_are_checked(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"state_dict": tiny().state_dict(), "stvid": {**describe(tiny()), **change}}, path)
    with pytest.raises(CheckpointError, match=words) as error:
        load_model(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_model_that_the_memory_cannot_hold_is_not_built(tmp_path: Path) -> None:
    path, described = tmp_path / "m.pt", describe(tiny())
    described["model"]["hyperparameters"] |= {"embed_dim": (2**16,) * 4}
    torch.save({"state_dict": tiny().state_dict(), "stvid": described}, path)
    with pytest.raises(CheckpointError, match=r"its weights would take \d+ GB"):
        load_model(path)


def test_a_huge_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1,000,000 classes"):
        stvid.create_model("uniformer_xxs", num_classes=10**11)


def test_a_zip_bomb_of_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    from stvid.weight_files import archives

    monkeypatch.setattr(archives, "MAX_UNPACKED", 2**16)
    torch.save({"state_dict": {"a": torch.zeros(5_000_000)}}, tmp_path / "plain.pt")
    bomb = zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="would unpack to") as error:
        load_checkpoint(tiny(), tmp_path / "bomb.pt")
    assert "\n" not in str(error.value)
