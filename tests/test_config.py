from __future__ import annotations

from pathlib import Path

import pytest

from stvid.config import TrainConfig, config_keys, dump_config, find_config, list_configs, load_config
from stvid.engine.train import _build_model
from stvid.errors import ConfigError
from stvid.protocol import Protocol


@pytest.mark.parametrize("name", list_configs())
def test_packaged_configs_are_complete_and_build(name: str) -> None:
    import torch
    import yaml

    values = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    given = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in values.items()
        for inner in (value if isinstance(value, dict) else [None])
    }
    assert given == set(config_keys())
    config = load_config(name)
    with torch.device("meta"):
        model = _build_model(config, 5)
    assert model.default_protocol.frames == config.protocol.frames
    assert load_config(None, ["--model.name", config.model.name]).model.name == config.model.name


def test_bare_names_are_found_here_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = find_config("uniformer_s_k400.yaml")
    assert packaged == find_config("uniformer_s_k400") and packaged.is_file()
    (tmp_path / "uniformer_s_k400.yaml").write_text("seed: 7")
    assert load_config("uniformer_s_k400.yaml").seed == 7
    with pytest.raises(ConfigError, match=r"uniformer_s_k40\.yaml: not found.*nearest: uniformer_s_k400\.yaml"):
        find_config("uniformer_s_k40.yaml")


def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 0.5, name: sgd}\nprotocol: {frames: 8}\n")
    config = load_config(path, ["--optim.lr=1e-3", "--data.train", "a.csv", "--augment.hflip_pairs", "[[a, b]]"])
    assert (config.optim.lr, config.optim.name, config.data.train) == (1e-3, "sgd", "a.csv")
    assert config.augment.hflip_pairs == [["a", "b"]]
    assert config.protocol == Protocol(frames=8)


def test_dump_goes_round() -> None:
    config = load_config(None, ["--protocol.class_names", "[a, 'b, c', ü]", "--optim.betas", "[0.8, 0.9]"])
    assert isinstance(config, TrainConfig)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config


@pytest.mark.parametrize(
    "text,message",
    [
        ("optim: {lrr: 1}", r"optim\.lrr: unknown key; nearest: optim\.lr"),
        ("optimizer: {}", r"optimizer: unknown key"),
        ("lr: 3", r"lr: unknown key; nearest: optim\.lr"),
        ("optim: {lr: fast}", r"optim\.lr: expected float, got 'fast'"),
        ("optim: 3", r"optim: expected keys and values, got 3"),
        ("data: {format: zip}", r"data\.format: expected .*'csv'.*, got 'zip'"),
        ("protocol: {crop: 500}", r"protocol\.crop: 500 is larger than protocol\.short_side"),
        ("protocol: {views: 4by3}", r"views '4by3'"),
        ("protocol: {frames: 0}", r"protocol\.frames"),
        ("[1, 2]", "expected keys and values"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_are_one_line_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options,message",
    [
        (["--optim.lrr", "1"], r"--optim\.lrr: unknown option; nearest: optim\.lr"),
        (["--optim.lr", "x"], r"optim\.lr: expected float"),
        (["--trainer.max_epochs"], r"trainer\.max_epochs"),
        (["stray"], "stray"),
    ],
)
def test_mistaken_options(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, options)
    assert "\n" not in str(caught.value)


def test_protocol_round_trip_and_checks() -> None:
    protocol = Protocol(frames=8, stride=2, fps=30, views="4x3", class_names=("a", "b"))
    assert Protocol.from_dict(protocol.to_dict()) == protocol
    assert (protocol.num_clips, protocol.num_crops) == (4, 3)
    with pytest.raises(ConfigError, match=r"frmes.*nearest: frames"):
        Protocol.from_dict({"frmes": 3})
    for wrong in ({"fps": -1}, {"std": (0, 1, 1)}, {"mean": (1, 2)}, {"sampling": "x"}, {"stride": 1.5}):
        with pytest.raises(ConfigError):
            Protocol(**wrong)  # type: ignore[arg-type]
