"""X-CLIP: official outputs from its three layouts, texts as classes, the commands, and the model without texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch
from torch import Tensor

import stvid
from stvid.errors import CheckpointError, ConfigError, StvidError
from stvid.models.families.xclip import XCLIP
from stvid.models.transformers_configs import recipe_of
from stvid.models.weights import Weights
from stvid.protocol import Protocol
from stvid.sources import Source

transformers = pytest.importorskip("transformers")

GOLDENS = Path(__file__).parents[2] / "goldens" / "xclip"
BUILT: dict[str, dict[str, Any]] = {
    "xclip_b32_d3__4x96": {"name": "xclip_b32", "depth": 3, "text_depth": 2, "num_frames": 4, "img_size": 96},
    "xclip_b16_d4__8x64": {"name": "xclip_b16", "depth": 4, "text_depth": 3, "img_size": 64},
    "hf_xclip_b16_d4__8x64": {"name": "xclip_b16", "depth": 4, "text_depth": 3, "img_size": 64},
}
TINY: dict[str, Any] = {
    "num_frames": 4,
    "img_size": (32, 48),
    "depth": 2,
    "embed_dim": 48,
    "num_heads": 4,
    "joint_dim": 32,
    "text_depth": 2,
    "text_dim": 64,
    "vocab_size": 57,
    "context_length": 16,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a vocabulary of CLIP's kind: letters, three joined ones, and the two marks."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "op", "ope", "do", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\no p\nop e\nd o\n")
    return str(folder)


def tiny(num_classes: int = 0, **options: Any) -> XCLIP:
    torch.manual_seed(0)
    model = stvid.create_model("xclip_b16", num_classes=num_classes, **{**TINY, "text": True, **options}).eval()
    assert isinstance(model, XCLIP)
    return model


# --- official outputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case if case.startswith("xclip_b32") else pytest.param(case, marks=pytest.mark.slow) for case in BUILT]
)
def test_official_outputs(case: str) -> None:
    record = json.loads((GOLDENS / f"{case}.json").read_text())
    call = dict(BUILT[case])
    model = stvid.create_model(call.pop("name"), num_classes=0, text=True, vocab_size=1000, **call)
    assert isinstance(model, XCLIP)
    state = {key: np.asarray(value) for key, value in fill.fill_state(record["state"]).items()}
    report = stvid.load_checkpoint(model, {"model": state})
    assert report.format == ("transformers XCLIP" if case.startswith("hf") else "microsoft/VideoX")
    assert sum(parameter.numel() for parameter in model.parameters()) == record["params"]
    tokens = torch.zeros(len(record["text_tokens"]), 77, dtype=torch.long)
    tokens[:, :12] = torch.tensor(record["text_tokens"])
    model.double().eval().set_class_tokens(tokens)
    assert model.num_classes == record["num_classes"]
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double().transpose(1, 2)
    with torch.no_grad():
        features = model.forward_features(clip)
        logits = model(clip)[0].numpy()
    assert np.abs(logits - np.array(record["logits"])).max() < 1e-7 * record["logits_std"]
    if "video_features" in record:
        assert np.abs(features[0, 0, ::4].numpy() - np.array(record["video_features"])).max() < 1e-8
        texts = model.get_classifier().weight[:, ::32].flatten().numpy()  # type: ignore[operator, union-attr]
        assert np.abs(texts - np.array(record["text_features"])).max() < 1e-8


def small_of_transformers() -> tuple[Any, dict[str, Any]]:
    """A small model of transformers, and its config."""
    config = transformers.XCLIPConfig(
        text_config={"vocab_size": 57, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
        | {"num_attention_heads": 1, "max_position_embeddings": 16},
        vision_config={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
        | {"mit_hidden_size": 64, "mit_intermediate_size": 256, "mit_num_attention_heads": 1, "num_frames": 4}
        | {"image_size": 32, "patch_size": 16},
        projection_dim=64,
        prompt_num_attention_heads=1,
    )
    torch.manual_seed(1)
    return transformers.XCLIPModel(config).eval(), config.to_dict()


def test_a_folder_of_transformers_is_built_and_predicts_the_same(tokenizer: str, tmp_path: Path) -> None:
    library, _ = small_of_transformers()
    library.save_pretrained(tmp_path)
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_text((Path(tokenizer) / file).read_text())
    model = stvid.load_model(tmp_path, classes=["open door", "close"])
    assert isinstance(model, XCLIP) and model.default_protocol.class_names == ("open door", "close")
    assert model.default_protocol.frames == 4 and model.num_classes == 2
    clip = torch.randn(2, 3, 4, 32, 32)
    tokens = transformers.CLIPTokenizer.from_pretrained(tokenizer)(
        ["open door", "close"], padding="max_length", max_length=16, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        expected = library(
            input_ids=tokens.masked_fill(tokens == 56, 0).scatter(1, (tokens == 56).int().argmax(1, True), 56),
            pixel_values=clip.transpose(1, 2),
        )
        torch.testing.assert_close(model(clip), expected.logits_per_video, rtol=1e-4, atol=1e-5)


def test_what_a_config_asks_for_and_the_model_does_not_compute_is_an_error() -> None:
    _, config = small_of_transformers()
    assert recipe_of(config).recipe["hyperparameters"]["text"] is True
    with pytest.raises(CheckpointError, match="hidden_act is 'relu'"):
        recipe_of({**config, "vision_config": {**config["vision_config"], "hidden_act": "relu"}})
    with pytest.raises(CheckpointError, match="prompt_num_attention_heads is 8"):
        recipe_of({**config, "prompt_num_attention_heads": 8})


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_become_the_classes(tokenizer: str) -> None:
    model = tiny(tokenizer=tokenizer)
    clip = torch.randn(2, 3, 4, 32, 48)
    with torch.no_grad():
        assert torch.equal(model(clip), model.forward_features(clip)[:, 0])  # without classes the video's vector
        model.set_classes(["opening a door", "closing a door", "running"])
        three = model(clip)
        model.set_classes(["running", "opening_a_door"])
        two = model(clip)
    torch.testing.assert_close(two, three[:, [2, 0]])
    assert (model.num_classes, model.recipe["num_classes"]) == (2, 2)
    assert model.default_protocol.class_names == ("running", "opening_a_door")
    assert not any(parameter.requires_grad for parameter in model.text_encoder.parameters())  # type: ignore[union-attr]
    model.train()
    assert not model.text_encoder.training  # type: ignore[union-attr]


def test_a_saved_model_has_its_texts(tokenizer: str, tmp_path: Path) -> None:
    model = tiny(tokenizer=tokenizer)
    model.set_classes(["opening a door", "closing a door"])
    stvid.save_model(model, tmp_path / "texts.pt")
    again = stvid.load_model(tmp_path / "texts.pt")
    clip = torch.randn(1, 3, 4, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)
    assert again.default_protocol.class_names == ("opening a door", "closing a door")
    other = stvid.load_model(tmp_path / "texts.pt", classes=["running"])
    assert other.num_classes == 1 and other.default_protocol.class_names == ("running",)


def test_classes_can_be_learned_with_the_prompts() -> None:
    model = tiny(num_classes=3)
    model(torch.randn(2, 3, 4, 32, 48)).square().sum().backward()
    missing = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing
    model.reset_classifier(5)
    assert model(torch.randn(1, 3, 4, 32, 48)).shape == (1, 5)


@pytest.mark.parametrize(
    ("names", "words"), [([], "at least one"), (["a", " "], "none of them empty"), (["a b", "a  b"], "none twice")]
)
def test_texts_that_cannot_be_classes(names: list[str], words: str, tokenizer: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(tokenizer=tokenizer).set_classes(names)


def test_models_without_texts_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"xclip_b16 does not take texts as classes; .*text=True"):
        tiny(num_classes=4, text=False).set_classes(["running"])
    model = stvid.create_model("uniformer_xxs", num_classes=3, num_frames=4, img_size=32)
    with pytest.raises(ConfigError, match="uniformer_xxs does not take texts"):
        model.set_classes(["running"])
    with pytest.raises(StvidError, match=r"tokenizer .*nowhere: cannot be read or fetched"):
        tiny(tokenizer=str(tmp_path / "nowhere")).set_classes(["running"])


# --- without texts ----------------------------------------------------------------------------------------------------


def official_state() -> dict[str, Tensor]:
    """The state of the smallest golden's model, in the authors' keys."""
    record = json.loads((GOLDENS / "xclip_b32_d3__4x96.json").read_text())
    return {key: torch.zeros(shape) + 0.01 * number for number, (key, shape) in enumerate(record["state"].items())}


def test_the_encoder_takes_the_same_files_and_clip_s() -> None:
    call = {"num_frames": 4, "img_size": 96, "depth": 3}
    encoder = stvid.create_model("xclip_b32", num_classes=0, **call)
    state = official_state()
    assert stvid.load_checkpoint(encoder, state).format == "microsoft/VideoX"
    assert torch.equal(encoder.state_dict()["proj.weight"], state["visual.proj"].t())
    model = stvid.create_model("xclip_b32", num_classes=5, **call)
    with pytest.raises(CheckpointError, match=r"missing head\.fc"):
        stvid.load_checkpoint(model, state)
    report = stvid.load_checkpoint(model, state, reset_head=True)
    assert report.reset == ["head.fc.bias", "head.fc.weight"]

    clip = {
        key: value for key, value in state.items() if not key.startswith(("mit.", "prompts_")) and ".message" not in key
    }
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = stvid.load_checkpoint(model, clip, reset_head=True)
    assert report.format == "openai/CLIP"
    after = model.state_dict()
    assert torch.equal(after["mix.pos_embed"], before["mix.pos_embed"])
    assert torch.equal(after["blocks.1.message_fc.weight"], before["blocks.1.message_fc.weight"])


def test_tables_follow_frames_and_size() -> None:
    model = tiny(num_classes=4, text=False, num_frames=8, img_size=(64, 64))
    assert model.resize_table("mix.pos_embed", torch.zeros(1, 4, 32), {}).shape == (1, 8, 32)  # type: ignore[union-attr]
    assert model.resize_table("pos_embed", torch.zeros(1, 5, 48), {}).shape == (1, 17, 48)  # type: ignore[union-attr]
    assert model.resize_table("pos_embed", torch.zeros(1, 7, 48), {}) is None
    built = {"img_size": (32, 48)}
    assert model.resize_table("pos_embed", torch.zeros(1, 7, 48), built).shape == (1, 17, 48)  # type: ignore[union-attr]
    with torch.no_grad():
        assert model(torch.randn(1, 3, 5, 48, 80)).shape == (1, 4)


def test_published_weights_bring_the_texts_of_their_classes(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library, _ = small_of_transformers()
    torch.save(library.state_dict(), tmp_path / "published.pth")
    options = {**TINY, "text": True, "embed_dim": 64, "num_heads": 1, "joint_dim": 64, "tokenizer": tokenizer}
    del options["num_frames"], options["img_size"]
    protocol = Protocol(frames=4, short_side=32, crop=32)
    known: dict[str, Any] = {
        "url": "https://example.org/published.pth",
        "protocol": protocol,
        "classes": "ucf101",
        "options": options,
    }
    weights = Weights(model="xclip_b16", tag="toy", num_classes=101, licence="MIT", **known)
    located = Source("xclip_b16.toy", tmp_path / "published.pth", weights)
    monkeypatch.setattr("stvid.zoo.resolve_source", lambda source: located)
    monkeypatch.setattr("stvid.zoo.published_source", lambda source: located)
    monkeypatch.setattr("stvid.models.registry.find_weights", lambda name: weights if name == "xclip_b16.toy" else None)
    monkeypatch.setattr("stvid.models.registry.weights_of", lambda name: (weights,))
    model = stvid.load_model("xclip_b16.toy")
    assert model.default_protocol.class_names == weights.class_names and model.weights is weights
    other = stvid.load_model("xclip_b16.toy", classes=["open", "close"])
    assert other.default_protocol.class_names == ("open", "close") and other.weights is None
    learned = stvid.create_model("xclip_b16.toy", pretrained=True, num_classes=3)
    assert learned.weights is None and learned.default_protocol.class_names == ()
    assert "new classifier of 3 classes, not yet trained" in capsys.readouterr().err
