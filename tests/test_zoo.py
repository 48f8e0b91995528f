"""Names of models, over stvid and the other libraries."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

import stvid
import stvid.sources
from stvid.classes import class_list
from stvid.errors import StvidError, UnknownNameError
from stvid.models import registry
from stvid.models.families.uniformer import UniFormer
from stvid.models.family import Family, Variant
from stvid.models.libraries import NATIVE
from stvid.models.weights import Weights, write_weights
from stvid.protocol import Protocol


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
    assert stvid.list_models("torchvision/resnet1?") == ["torchvision/resnet18"]
    assert {"timm/resnet18", "torchvision/resnet18"} <= set(stvid.list_models("*/resnet*"))
    assert stvid.list_models("pytorchvideo/*") == []
    assert stvid.list_models("nothing/*") == []


def test_unknown_names_show_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"torchvision has no 'mvit_v2s'; nearest: mvit_v2_s"):
        stvid.create_model("torchvision/mvit_v2s")
    with pytest.raises(UnknownNameError, match=r"no library 'torchvisoin'; there are .*torchvision"):
        stvid.create_model("torchvisoin/resnet18")
    with pytest.raises(UnknownNameError, match=r"pytorchvideo are native here, but none .*nearest: mvit_base_16x4"):
        stvid.create_model("pytorchvideo/mvit_base_16x")
    with pytest.raises(UnknownNameError, match=r"^mvit_v2_s: is native here: mvitv2_s_16x4$"):
        stvid.create_model("mvit_v2_s")
    with pytest.raises(
        UnknownNameError, match=r"'resnet18': no such model; there is timm/resnet18, torchvision/resnet18"
    ):
        stvid.create_model("resnet18")


# --- published weights ------------------------------------------------------------------------------------------------


TAGGED = Protocol(
    frames=4, stride=3, fps=12.5, short_side=40, crop=32, mean=(0.1, 0.2, 0.3), channels="bgr", views="2x3"
)
SIZES = {"depth": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "head_dim": 8}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Registers a tiny UniFormer with published weights of 101 classes; returns the weights.

    The files are not fetched here: `stvid.downloads` has tests of its own.
    """
    module = types.ModuleType("toyformer")
    module.__file__ = str(tmp_path / "toyformer.py")
    module.UniFormer = UniFormer  # type: ignore[attr-defined]
    variant = Variant("toyformer", "A tiny UniFormer.", Protocol(frames=8, crop=64, short_side=64), SIZES)
    module.FAMILY = Family("UniFormer", "", (variant,), small_clip=(4, 32, 32))  # type: ignore[attr-defined]
    torch.manual_seed(0)
    state = UniFormer(num_classes=101, **SIZES, qkv_bias=False).state_dict()
    torch.save(state, tmp_path / "toy.pth")
    url, licence = "https://example.org/toy.pth", "CC-BY-NC-4.0"
    rows = [
        Weights("toyformer", "ucf", url, TAGGED, 101, classes="ucf101", top1=90.0, options={"qkv_bias": False}),
        Weights("toyformer", "own", url, TAGGED, None, task="multilabel", options={"qkv_bias": False}, licence=licence),
    ]
    write_weights(tmp_path / "toyformer.csv", rows)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register_family(module)
    monkeypatch.setattr(stvid.sources, "fetch_weights", lambda weights: tmp_path / "toy.pth")
    return state


def same_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], *, without: str = "-") -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith(without))


def test_pretrained_weights_bring_their_own_protocol(published: dict[str, torch.Tensor]) -> None:
    model = stvid.create_model("toyformer.ucf", pretrained=True)
    assert same_weights(model, published) and model.training
    assert model.default_protocol == TAGGED.replace(class_names=class_list("ucf101"))
    assert model.weights is not None and model.weights.top1 == 90.0
    assert model.recipe["name"] == "toyformer"  # a checkpoint saved from it needs no table
    loaded = stvid.load_model("toyformer.ucf")
    assert same_weights(loaded, published) and not loaded.training
    assert loaded.default_protocol == model.default_protocol and loaded.weights == model.weights


def test_a_file_of_the_same_name_is_not_taken_for_the_published_one(
    published: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("toyformer.ucf").write_bytes(b"something else")
    assert same_weights(stvid.create_model("toyformer.ucf", pretrained=True), published)


def test_the_first_weights_are_the_default(published: dict[str, torch.Tensor]) -> None:
    assert stvid.create_model("toyformer", pretrained=True).weights == registry.weights_of("toyformer")[0]


def test_a_tag_without_weights_builds_the_model_they_are_for(published: dict[str, torch.Tensor]) -> None:
    model = stvid.create_model("toyformer.ucf")
    assert model.num_classes == 101 and model.default_protocol == TAGGED and model.weights is None
    assert not same_weights(model, published)
    assert stvid.create_model("toyformer").num_classes == 400


def test_other_classes_make_a_new_head_and_say_so(
    published: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    model = stvid.create_model("toyformer.ucf", pretrained=True, num_classes=7)
    assert model.num_classes == 7 and same_weights(model, published, without="head.")
    assert model.default_protocol == TAGGED and model.weights is None
    assert "new classifier of 7 classes" in capsys.readouterr().err


def test_features_need_no_head(published: dict[str, torch.Tensor]) -> None:
    model = stvid.create_model("toyformer.ucf", pretrained=True, num_classes=0)
    assert same_weights(model, published, without="head.")
    assert model(torch.randn(2, 3, 4, 32, 32)).shape == (2, 16)


def test_the_file_counts_its_classes_if_nothing_else_does(published: dict[str, torch.Tensor]) -> None:
    model = stvid.create_model("toyformer.own", pretrained=True)
    assert (model.num_classes, model.task, model.default_protocol.class_names) == (101, "multilabel", ())
    assert stvid.load_model("toyformer.own").num_classes == 101


def test_another_size_and_options_of_ones_own(published: dict[str, torch.Tensor]) -> None:
    model = stvid.create_model("toyformer.ucf", pretrained=True, num_frames=8, img_size=64, drop_path_rate=0.3)
    assert (model.default_protocol.frames, model.default_protocol.crop, model.default_protocol.short_side) == (
        8,
        64,
        80,
    )
    assert model.recipe["hyperparameters"] == {"qkv_bias": False, "drop_path_rate": 0.3}


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_the_stem_is_adapted_to_other_channels(channels: int, published: dict[str, torch.Tensor]) -> None:
    model = stvid.create_model("toyformer.ucf", pretrained=True, in_chans=channels).eval()
    gray = torch.randn(1, 1, 4, 32, 32)
    plain = stvid.create_model("toyformer.ucf", pretrained=True).eval()
    with torch.no_grad():
        logits = model(gray.expand(-1, channels, -1, -1, -1))
        wanted = plain(gray.expand(-1, 3, -1, -1, -1))
    if channels == 1:  # the sum over the colours: a grey picture gives the same
        torch.testing.assert_close(logits, wanted)
    first = model.state_dict()["patch_embed1.proj.weight"]
    assert first.shape[1] == channels
    if channels > 1:  # repeated, and scaled so that the sum over as many channels is kept where they divide
        torch.testing.assert_close(first[:, 0], published["patch_embed1.proj.weight"][:, 0] * 3 / channels)


def test_weights_that_do_not_exist(published: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UnknownNameError, match="toyformer has no weights 'ufc'; nearest: ucf"):
        stvid.create_model("toyformer.ufc", pretrained=True)
    with pytest.raises(StvidError, match=r"uniformer_xxs: stvid knows of no published weights"):
        stvid.create_model("uniformer_xxs", pretrained=True)
    with pytest.raises(StvidError, match="pretrained and checkpoint both name weights"):
        stvid.create_model("toyformer.ucf", pretrained=True, checkpoint="weights.pth")
    with pytest.raises(StvidError, match=r"toyformer: is a model, not weights; name its weights, too: toyformer\.ucf"):
        stvid.load_model("toyformer")
    with pytest.raises(StvidError, match=r"toyformer\.ucf: is weights of toyformer, not of uniformer_s"):
        stvid.load_model("toyformer.ucf", name="uniformer_s")


def test_weights_load_into_a_model_by_name(published: dict[str, torch.Tensor]) -> None:
    model = stvid.create_model("toyformer", num_classes=101, num_frames=4, img_size=32, qkv_bias=False)
    report = stvid.load_checkpoint(model, "toyformer.ucf")
    assert same_weights(model, published) and report.source == "toyformer.ucf"
    assert model.default_protocol == TAGGED.replace(class_names=class_list("ucf101"))
    other = stvid.create_model("toyformer", num_classes=3, qkv_bias=False)
    stvid.load_checkpoint(other, "toyformer.ucf", reset_head=True)
    assert (
        other.default_protocol.class_names == () and other.default_protocol.channels == "bgr" and other.weights is None
    )


def test_a_head_of_another_kind_is_new(published: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    model = stvid.create_model("toyformer.ucf", pretrained=True, head="attentive")
    assert same_weights(model, published, without="head.") and model.num_classes == 101
    assert model.weights is None and model.default_protocol == TAGGED
    assert "new classifier of 101 classes" in capsys.readouterr().err
    model(torch.randn(1, 3, 4, 32, 32)).sum().backward()


def test_a_folder_says_itself_what_it_holds(tmp_path: Path) -> None:
    model = stvid.create_model("uniformer_xxs", num_classes=3, **SIZES).eval()
    model.default_protocol = model.default_protocol.replace(class_names=("a", "b", "c"), channels="bgr")
    stvid.save_pretrained(model, tmp_path / "own")
    loaded = stvid.load_model(tmp_path / "own")
    assert same_weights(loaded, model.state_dict()) and loaded.default_protocol == model.default_protocol
    with pytest.raises(StvidError, match=r"is a checkpoint of uniformer_xxs, not of r3d_18"):
        stvid.load_model(tmp_path / "own", name="r3d_18")


def test_saved_weights_remember_where_they_are_from(published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = stvid.load_model("toyformer.ucf")
    model.measured = {"metrics": {"top1@2x3": 0.5}, "videos": 4, "dataset": "val.csv"}
    stvid.save_model(model, tmp_path / "w.safetensors")
    loaded = stvid.load_model(tmp_path / "w.safetensors")
    assert loaded.weights == model.weights and loaded.measured == model.measured
    other = stvid.create_model("toyformer", num_classes=2, qkv_bias=False)
    stvid.load_checkpoint(other, tmp_path / "w.safetensors", reset_head=True)
    assert other.weights is None and other.measured == {}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_huge_model_is_built_of_the_tensors_of_its_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_frames": 2, "img_size": 28, "depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 3}
    model = stvid.create_model("internvideo2_s", **options).eval()
    stvid.save_model(model, tmp_path / f"weights.{suffix}")
    monkeypatch.setattr("stvid.zoo.HUGE", 0)
    drawn: list[str] = []
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: drawn.append(str(tensor.device)))
    again = stvid.load_model(tmp_path / f"weights.{suffix}")
    assert set(drawn) == {"meta"}  # no weights were drawn in memory
    clip = torch.randn(1, 3, 2, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)
    again.train()(clip).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


def test_what_a_file_has_not_is_made_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"num_frames": 2, "img_size": 32, "num_classes": 3, "depth": (1, 1, 1, 1)}
    model = stvid.create_model("r3d_18", **options).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save({"stvid": stvid.checkpoints.describe(model), "state_dict": state}, tmp_path / "weights.pt")
    monkeypatch.setattr("stvid.zoo.HUGE", 0)
    again = stvid.load_model(tmp_path / "weights.pt")
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    clip = torch.randn(1, 3, 2, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)
