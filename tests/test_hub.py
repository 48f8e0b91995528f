from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import stvid
from stvid.checkpoints import load_checkpoint, read_checkpoint
from stvid.errors import CheckpointError, ConfigError, StvidError
from stvid.hub import ModelCard, fetch_repo, load_recipe, push_to_hub, read_config, save_pretrained
from stvid.models.base import VideoModel
from stvid.models.weights import Weights
from stvid.protocol import Protocol
from tests.loopback import Hub, as_json

NAMES = ("wave", "jump | run", "naïve <b>")
PROTOCOL = Protocol(
    frames=4, stride=3, fps=12.5, short_side=40, crop=32, channels="bgr", views="2x3", class_names=NAMES
)


@pytest.fixture
def model(tiny_model: Callable[[Protocol], VideoModel]) -> VideoModel:
    made = tiny_model(PROTOCOL)
    made.task = "multilabel"
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as running:
        running.token = "secret"
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield running


def build(folder: Path) -> VideoModel:
    """Builds the model of a folder by what `load_recipe` says."""
    stored = load_recipe(folder)
    recipe = dict(stored.recipe)
    made = stvid.create_model(recipe.pop("name"), **recipe.pop("hyperparameters"), **recipe)
    state = {key: value for path in stored.weights for key, value in read_checkpoint(path).items() if key != "stvid"}
    load_checkpoint(made, state)
    made.default_protocol, made.task = stored.protocol, stored.task
    return made.eval()


def assert_same(one: VideoModel, other: VideoModel) -> None:
    state = other.state_dict()
    assert one.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())
    assert (one.default_protocol, one.task) == (other.default_protocol, other.task)
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(one(clip), other(clip))


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def result_file(folder: Path, **changes: Any) -> Path:
    record = {
        "metrics": {"top1@2x3": 0.8125, "top5@2x3": 0.975, "mean_class@1x1": 0.5, "top1@1x1": 0.75},
        "protocol": PROTOCOL.to_dict(),
        "videos": {"counted": 160, "failed": []},
        "classes": list(NAMES),
        "command": "stvid test --checkpoint runs/a",
        "versions": {"stvid": "1"},
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(record))
    return folder / "result.json"


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_saved_folder_gives_the_model_back(model: VideoModel, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path / "new" / "net")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert {path.stat().st_mode & 0o044 for path in folder.iterdir()} == {0o044}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["library_name"] == "stvid" and config["version"] == stvid.__version__
    assert config["model"]["name"] == "uniformer_xxs" and config["protocol"]["class_names"] == list(NAMES)
    assert read_config(folder).kind == "stvid"
    assert_same(build(folder), model)
    assert_same(stvid.load_model(folder / "model.safetensors"), model)  # the file alone tells all, too


def test_large_weights_are_split(model: VideoModel, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path / "net", max_shard_size=20_000)
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2 and not (folder / "model.safetensors").exists()
    assert list(load_recipe(folder).weights) == shards
    assert_same(build(folder), model)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[1].name}, which is missing"):
        load_recipe(folder)


def test_saving_again_replaces_the_model_and_keeps_the_rest(model: VideoModel, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path, max_shard_size=20_000)  # a folder that exists
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("my card")
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)
    save_pretrained(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert (folder / "README.md").read_text() == "my card"
    assert_same(build(folder), model)
    save_pretrained(model, folder, card=ModelCard(title="New"))
    assert "# New" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_failure_leaves_no_half_folder(model: VideoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = save_pretrained(model, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(huggingface_hub, "save_torch_state_dict", full)
    for target in (tmp_path / "new", folder):
        with pytest.raises(CheckpointError, match=r"cannot be written .No space left"):
            save_pretrained(model, target, card=ModelCard())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_model_for_inference_only_is_not_saved(model: VideoModel, tmp_path: Path) -> None:
    model.inference_only = "its layers are fused"
    with pytest.raises(CheckpointError, match="its layers are fused; save the model it was made from"):
        save_pretrained(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_tied_weights_are_all_written(model: VideoModel, tmp_path: Path) -> None:
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert norms[0].weight.shape == norms[1].weight.shape
    norms[1].weight = norms[0].weight
    assert_same(build(save_pretrained(model, tmp_path / "net")), model)


def test_an_inflated_model_is_saved(tmp_path: Path) -> None:
    model = stvid.inflate("timm:resnet18", num_frames=2, num_classes=3, img_size=32)
    folder = save_pretrained(model, tmp_path / "net")
    assert load_recipe(folder).recipe["name"] == "timm/resnet18"
    assert "timm/resnet18" in (folder / "README.md").read_text(encoding="utf-8")
    clip = torch.randn(1, 3, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(build(folder)(clip), model(clip))


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_tells_what_is_known(model: VideoModel, tmp_path: Path) -> None:
    card = ModelCard(
        title="Gestures",
        description="Made for *tests*.",
        licence="CC-BY-NC-4.0 (repository)",
        dataset="Ten Gestures",
        training_command="stvid train --config gestures.yaml",
        base_model="org/base",
        tags=("gestures",),
        result=result_file(tmp_path / "test"),
    )
    folder = save_pretrained(model, tmp_path / "net", card=card)
    text = (folder / "README.md").read_text(encoding="utf-8")
    facts = front_matter(text)
    assert facts["library_name"] == "stvid" and facts["pipeline_tag"] == "video-classification"
    assert facts["license"] == "cc-by-nc-4.0" and facts["base_model"] == "org/base"
    assert facts["tags"] == ["video-classification", "stvid", "uniformer_xxs", "gestures"]
    (entry,) = facts["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "Gestures" and result["dataset"] == {"name": "Ten Gestures", "type": "ten-gestures"}
    metrics = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert metrics["top-1 accuracy, views 2x3"] == 0.8125 and metrics["mean class, views 1x1"] == 0.5
    for words in (
        "# Gestures",
        "Made for *tests*.",
        "| frames | 4, 3 apart in the video at 12.5 frames a second |",
        "| size | short side scaled to 40, crop of 32 pixels |",
        "| colour channels | BGR |",
        "| views | 2x3: 2 clips x 3 crops |",
        r"| classes | 3: wave, jump \| run, naïve &lt;b> (all in config.json) |",
        "On 160 videos of Ten Gestures, with 4 frames, stride 3 at 12.5 fps; short side 40, crop 32; "
        "channels bgr (blue, green, red).",
        "| top-1 accuracy | 2x3 | 81.25% |",
        "stvid train --config gestures.yaml",
        "stvid test --checkpoint runs/a",
        f'model = stvid.load_model("{folder}")',
        "CC-BY-NC-4.0 (repository)",
        "tells which of 3 classes a video has, any number of them at once.",
    ):
        assert words in text, words
    assert load_recipe(folder).measured["metrics"]["top1@2x3"] == 0.8125


def test_the_card_without_facts_claims_nothing(tiny_model: Callable[[Protocol], VideoModel], tmp_path: Path) -> None:
    model = tiny_model(PROTOCOL)
    model.default_protocol = PROTOCOL.replace(class_names=(), sampling="segment", fps=None)
    text = (save_pretrained(model, tmp_path / "net") / "README.md").read_text(encoding="utf-8")
    facts = front_matter(text)
    assert not {"license", "model-index", "base_model"} & set(facts)
    assert "# net" in text and "Not stated." in text and "3, without names" in text
    assert "Measured" not in text and "Training" not in text
    assert load_recipe(tmp_path / "net").measured == {}


def test_licences_that_the_hub_does_not_know(model: VideoModel, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path / "net", card=ModelCard(licence="My Own Licence 2"))
    facts = front_matter((folder / "README.md").read_text(encoding="utf-8"))
    assert (facts["license"], facts["license_name"]) == ("other", "my-own-licence-2")


def test_what_a_model_carries_is_told(model: VideoModel, tmp_path: Path) -> None:
    model.weights = Weights("uniformer_xxs", "toy", "https://example.org/toy.pth", PROTOCOL, 3, licence="MIT")
    model.measured = {"metrics": {"top1@2x3": 0.5, "mean_class@2x3": float("nan")}}
    text = (save_pretrained(model, tmp_path / "net") / "README.md").read_text(encoding="utf-8")
    assert front_matter(text)["license"] == "mit" and "| top-1 accuracy | 2x3 | 50.00% |" in text
    assert load_recipe(tmp_path / "net").measured == {"metrics": {"top1@2x3": 0.5}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["a"]}, "is of 1 classes, but the model has 3"),
        ({"metrics": None}, "is no result.json of stvid test"),
        ({"protocol": {"frame": 3}}, "is no result.json of stvid test"),
    ],
)
def test_the_result_of_another_model_is_refused(
    model: VideoModel, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    result_file(tmp_path / "test", **changes)
    with pytest.raises(ConfigError, match=words):
        save_pretrained(model, tmp_path / "net", card=ModelCard(result=tmp_path / "test"))
    with pytest.raises(ConfigError, match=r"no.json is no result.json"):
        save_pretrained(model, tmp_path / "net", card=ModelCard(result=tmp_path / "no.json"))


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_pushed_model_comes_back_as_it_was(hub: Hub, model: VideoModel, tmp_path: Path) -> None:
    card = ModelCard(result=result_file(tmp_path / "test"))
    address = push_to_hub(model, "org/gestures", private=True, card=card)
    assert address.startswith(f"{hub.url}/org/gestures/commit/") and hub.private == {"org/gestures"}
    assert set(hub.repos["org/gestures"]["main"]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    folder = fetch_repo("hf-hub:org/gestures")
    assert_same(build(folder), model)
    text = hub.repos["org/gestures"]["main"]["README.md"].decode()
    assert 'stvid.load_model("hf-hub:org/gestures")' in text
    assert "stvid predict video.mp4 --checkpoint hf-hub:org/gestures\n" in text
    assert "# gestures" in text and "top-1 accuracy" in text


def test_revisions(hub: Hub, model: VideoModel, capsys: pytest.CaptureFixture[str]) -> None:
    push_to_hub(model, "mine", commit_message="First")
    hub.repos["somebody/mine"]["main"] |= {"README.md": b"edited", "model-00001-of-00002.safetensors": b"old"}
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)
    push_to_hub(model, "somebody/mine", revision="v2")
    assert "somebody/mine: its model card is kept" in capsys.readouterr().err
    second = hub.repos["somebody/mine"]["v2"]
    assert second["README.md"] == b"edited" and "model-00001-of-00002.safetensors" not in second
    assert_same(build(fetch_repo("hf-hub:somebody/mine@v2")), model)
    with torch.no_grad():
        next(iter(model.parameters())).sub_(1)
    first = build(fetch_repo("hf-hub:somebody/mine"))
    difference = next(iter(first.parameters())) - next(iter(model.parameters()))
    assert difference.abs().max() < 1e-6
    push_to_hub(model, "somebody/mine", revision="v2", card=ModelCard(title="New"))
    assert "# New" in second["README.md"].decode()
    assert "hf-hub:somebody/mine@v2" in second["README.md"].decode()


def test_a_refused_upload_is_one_line(hub: Hub, model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StvidError, match=r"org/net: cannot be uploaded to the hub: .*401.*HF_TOKEN") as error:
        push_to_hub(model, "org/net", token="wrong")
    assert "\n" not in str(error.value)
    with pytest.raises(StvidError, match=r"a/b/c: cannot be uploaded"):
        push_to_hub(model, "a/b/c")
    model.inference_only = "its layers are fused"
    count = len(hub.requests)
    with pytest.raises(CheckpointError, match="its layers are fused"):
        push_to_hub(model, "org/net")
    assert len(hub.requests) == count


# --- folders of others ------------------------------------------------------------------------------------------------


def test_a_folder_of_transformers(hub: Hub) -> None:
    config = {"model_type": "timesformer", "num_frames": 8, "image_size": 224, "id2label": {"0": "a", "1": "b"}}
    preprocessor = {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2], "size": 224, "crop_size": 224}
    files = {"config.json": as_json(config), "preprocessor_config.json": as_json(preprocessor)}
    hub.put("org/times", files | {"pytorch_model.bin": b"weights"})
    folder = fetch_repo("hf-hub:org/times")
    assert read_config(folder).kind == "transformers"
    stored = load_recipe(folder)
    assert stored.recipe["name"] == "timesformer_base" and stored.recipe["num_classes"] == 2
    assert stored.protocol.class_names == ("a", "b") and stored.protocol.mean == (0.4, 0.4, 0.4)
    assert stored.weights == (folder / "pytorch_model.bin",)


def test_an_image_model_is_for_inflation(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    assert read_config(tmp_path).kind == "timm"
    with pytest.raises(CheckpointError, match="stvid inflate makes a video model of it"):
        load_recipe(tmp_path)


STORED = {"library_name": "stvid", "task": "multiclass", "protocol": {}}
RECIPE = {"name": "x", "num_classes": 1, "num_frames": 1, "img_size": [1, 1], "hyperparameters": {}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "is missing"),
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        ({"a": 1}, "is no config of stvid, of a video model of transformers, or of timm"),
        ({"model_type": "bert"}, "model_type 'bert' is no video model that stvid has.*timesformer, videomae, vivit"),
        (STORED, "does not say how to build the model"),
        ({**STORED, "model": {"name": "x"}}, "does not say how to build the model"),
        ({**STORED, "model": RECIPE, "protocol": {"frame": 3}}, "its protocol cannot be used"),
        ({**STORED, "model": RECIPE, "protocol": None}, "its protocol cannot be used"),
        ({**STORED, "model": RECIPE, "task": "regression"}, "its task 'regression' is not one of"),
    ],
)
def test_a_config_that_cannot_be_used_is_said(tmp_path: Path, config: Any, words: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(CheckpointError, match=words) as error:
        load_recipe(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: ") and "\n" not in str(error.value)


def test_weights_are_looked_for_in_the_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**STORED, "model": RECIPE}))
    with pytest.raises(CheckpointError, match=r"has a config.json, but no weights"):
        load_recipe(tmp_path)
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="does not list the shards of this folder"):
        load_recipe(tmp_path)
