from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stvid.config import (
    JOB_OPTIONS,
    DataConfig,
    OptimConfig,
    TrainConfig,
    TrainerConfig,
    config_keys,
    dump_config,
    find_config,
    list_configs,
    load_config,
    one_line,
    train_parser,
)
from stvid.data.mixing import Mixer
from stvid.data.transforms import TrainTransform
from stvid.data.views import ViewPlan
from stvid.engine.model import build_model
from stvid.engine.optim import build_optimizer, learning_rate_curve
from stvid.errors import ConfigError
from stvid.models.registry import model_info
from stvid.protocol import Protocol, parse_views


def _resolved(config: TrainConfig) -> dict[str, Any]:
    """Returns the value of every dotted key, as JSON has it."""
    values = {key: functools.reduce(getattr, key.split("."), config) for key in config_keys()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _recorded() -> dict[str, dict[str, Any]]:
    """Returns every dotted key of every recipe, as `recipes.json` beside this file records it.

    The file holds one set of values for all recipes (``otherwise``), and for each recipe the values that differ. A key
    that is younger than the record has its default, unless the recipe's record names it.
    """
    record = json.loads(Path(__file__).with_name("recipes.json").read_text(encoding="utf-8"))

    def flat(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {
            key if section == "run" else f"{section}.{key}": value
            for section, values in sections.items()
            for key, value in values.items()
        }

    otherwise = {**_resolved(TrainConfig()), **flat(record["otherwise"])}
    return {name: {**otherwise, **flat(sections)} for name, sections in record["recipes"].items()}


def test_recipes_mean_what_is_recorded() -> None:
    recorded = _recorded()
    assert sorted(recorded) == list_configs()
    for name, expected in recorded.items():
        found = _resolved(load_config(name))
        assert found.keys() == expected.keys()
        differing = {key: (found[key], expected[key]) for key in found if found[key] != expected[key]}
        assert not differing, f"{name}: (found, recorded) {differing}"


STARTERS = {
    "movinet_xxs_motion.yaml",
    "tsm_r18_motion.yaml",
    "uniformer_xxs_folder.yaml",
    "uniformer_xxs_motion.yaml",
    "videomae_vit_s_motion_pretrain.yaml",
    "x3d_xxs_motion.yaml",
}
# How a machine is used: it changes neither the weights nor the accuracy, and no paper says it.
OF_THE_MACHINE = {
    *("data.backend", "data.workers", "data.val_batch_size", "data.decode_threads", "data.max_failures"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.compile"),
    *("trainer.channels_last", "trainer.save_every", "trainer.keep", "trainer.log_every_n_steps", "trainer.progress"),
    *("init", "resume", "output"),
}


@pytest.mark.parametrize("name", list_configs())
def test_recipes_state_what_their_source_sets_and_nothing_else(name: str) -> None:
    text = find_config(name).read_text(encoding="utf-8")
    default, found = _resolved(TrainConfig()), _resolved(load_config(name))
    stated = {}  # the comment beside each key
    section = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"(  )?([a-z_0-9]+):(?: [^#]*)?(?:# (.+))?", line):
            if match[1] is None and match[3] is None and line.endswith(":"):
                section = f"{match[2]}."
            else:
                stated[(section if match[1] else "") + match[2]] = match[3]
    values = yaml.safe_load(text)
    given = {f"{key}.{inner}" for key, value in values.items() if isinstance(value, dict) for inner in value}
    assert set(stated) == given | {key for key, value in values.items() if not isinstance(value, dict)}
    assert {"model.name", "optim.lr", "trainer.max_epochs", "protocol.crop"} <= set(stated)
    repeated = {key for key, comment in stated.items() if found[key] == default[key] and not comment}
    assert not repeated - {"model.name"}, "a value that is the default stands only with its source"
    if name not in STARTERS:
        assert not OF_THE_MACHINE & set(stated)


@pytest.mark.parametrize("name", list_configs())
def test_packaged_configs_build(name: str, outline: Callable[..., Any]) -> None:
    config = load_config(name)
    assert config.model.name in name and name.startswith(f"{config.model.name}_")
    with outline():
        model = build_model(config, 5)
    assert model.default_protocol.frames == config.protocol.frames
    assert model.default_protocol.crop == config.protocol.crop
    optimizer = build_optimizer(model, config.optim, lr=0.1)
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)
    optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.get_classifier().parameters()} <= optimised

    augment = config.augment
    names = [*(label for pair in augment.hflip_pairs for label in pair), *augment.hflip_keep]
    TrainTransform(augment.clip_protocol(config.protocol), augment, names)
    Mixer(5, augment)
    epochs = config.optim.schedule_epochs or config.trainer.max_epochs
    assert [*config.optim.milestones, epochs] == sorted([*config.optim.milestones, epochs])
    curve = learning_rate_curve(config.optim, steps_per_epoch=100, epochs=epochs, lr=config.optim.lr)
    rates = [curve(step) for step in range(0, 100 * epochs, 50)]
    assert min(rates) >= 0
    assert 0.9 < max(rates) <= 1
    assert rates[-1] < 0.3
    if "ssv2" in name:
        assert augment.hflip == 0 or augment.hflip_pairs
        assert config.data.class_names == (None if config.task == "pretrain" else "ssv2/labels.json")


# c3d: its own protocol is that of weights from Sports-1M; the recipe of Kinetics is GluonCV's.
OTHER_INPUT = {"c3d_k400.yaml"}
# VTN trains on 16 frames, and is measured on 250 of the whole video at once.
WHOLE_VIDEO = {"vtn_vit_b_k400.yaml"}
# VMZ trains on videos that are stored at 30 frames a second; its tests take the files' own rate.
OTHER_RATE = {"ip_csn_152_k400.yaml", "ir_csn_152_k400.yaml", "r2plus1d_34_k400.yaml"}


@pytest.mark.parametrize("name", [name for name in list_configs() if name.endswith("_k400.yaml")])
def test_recipes_of_kinetics_are_tested_as_the_published_weights_are(name: str) -> None:
    config = load_config(name)
    recipe, published = config.protocol, model_info(config.model.name).protocol
    assert (recipe.sampling, recipe.crop, recipe.views) == (published.sampling, published.crop, published.views)
    if name in WHOLE_VIDEO:
        return
    # X-ViT was published with 16 frames at rate 16 and 8 at rate 32, over the same time
    assert recipe.frames * recipe.stride == published.frames * published.stride or name in OTHER_INPUT
    assert recipe.fps == published.fps or name in OTHER_RATE
    if name not in OTHER_INPUT:
        assert recipe.short_side == published.short_side
        assert recipe.mean == pytest.approx(published.mean, abs=1e-4)
        assert recipe.std == pytest.approx(published.std, abs=1e-4)


def test_recipes_name_their_source() -> None:
    for name in list_configs():
        header = find_config(name).read_text(encoding="utf-8").partition("\n\n")[0]
        assert all(line.startswith("#") for line in header.splitlines())
        if name not in STARTERS:
            assert "Source: " in header or "Nearest source: " in header, name


def test_training_clips_may_be_smaller_and_shorter_than_those_of_the_test() -> None:
    config = load_config(None, ["--augment.crop", "112", "--augment.frames", "4", "--protocol.frames", "8"])
    clips = config.augment.clip_protocol(config.protocol)
    assert (clips.crop, clips.frames) == (112, 4)
    assert (config.protocol.crop, config.protocol.frames) == (224, 8)
    assert clips.replace(crop=224, frames=8) == config.protocol
    with pytest.raises(ConfigError, match=r"^augment\.crop: 300 is larger than protocol\.short_side \(256\)$"):
        load_config(None, ["--augment.crop", "300"]).augment.clip_protocol(config.protocol)


def test_frozen_modules(outline: Callable[..., Any]) -> None:
    def trained(*frozen: str) -> set[str]:
        config = load_config(None, ["--model.name", "uniformer_xxs", "--model.frozen", str(list(frozen))])
        with outline():
            model = build_model(config, 5)
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    everything = trained()
    some = trained("patch_embed1", "blocks1.0")
    assert some < everything
    assert {name.split(".")[0] for name in everything - some} == {"patch_embed1", "blocks1"}
    assert any(name.startswith("blocks1.1.") for name in some)  # not as the beginning of another name
    with pytest.raises(ConfigError, match=r"^model\.frozen: 'block1' is not a module of UniFormer; nearest: .*blocks1"):
        trained("block1")
    with pytest.raises(ConfigError, match=r"^model\.frozen: nothing is left to train$"):
        trained(*{name.split(".")[0] for name in everything})


def test_bare_names_are_found_here_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = find_config("uniformer_s_k400.yaml")
    assert packaged == find_config("uniformer_s_k400") and packaged.is_file()
    (tmp_path / "uniformer_s_k400.yaml").write_text("seed: 7")
    assert load_config("uniformer_s_k400.yaml").seed == 7
    with pytest.raises(ConfigError, match=r"uniformer_s_k40\.yaml: not found.*nearest: uniformer_s_k400"):
        find_config("uniformer_s_k40.yaml")
    (tmp_path / "uniformer_b_k400").mkdir()  # a folder of that name is not in the way
    assert find_config("uniformer_b_k400").name == "uniformer_b_k400.yaml"
    for folder in (".", "..", "/", tmp_path):
        with pytest.raises(ConfigError, match="is a folder, not a file"):
            find_config(folder)
    with pytest.raises(ConfigError, match=r"^config '': not found"):
        find_config("")


def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 0.5, name: sgd}\nprotocol: {frames: 8}\n")
    config = load_config(path, ["--optim.lr=1e-3", "--data.train", "a.csv", "--augment.hflip_pairs", "[[a, b]]"])
    assert (config.optim.lr, config.optim.name, config.data.train) == (1e-3, "sgd", "a.csv")
    assert config.augment.hflip_pairs == [["a", "b"]]
    assert config.protocol == Protocol(frames=8)


def test_dump_goes_round(tmp_path: Path) -> None:
    config = load_config(None, ["--protocol.class_names", "[a, 'b, c', ü]", "--optim.betas", "[0.8, 0.9]"])
    assert isinstance(config, TrainConfig)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    "text,message",
    [
        ("optim: {lrr: 1}", r"optim\.lrr: unknown key; nearest: optim\.lr"),
        ("optimizer: {}", r"optimizer: unknown key"),
        ("lr: 3", r"lr: unknown key; nearest: optim\.lr"),
        ("trianer: {}", r"trianer: unknown key; nearest: trainer$"),
        ("optim: {learning_rate: 1}", r"optim\.learning_rate: unknown key; nearest: optim\.lr$"),
        ("model: {pretrained: true}", r"model\.pretrained: unknown key; nearest: init$"),
        ("num_workers: 2", r"num_workers: unknown key; nearest: data\.workers$"),
        ("optim: {lr: fast}", r"optim\.lr: expected float, got 'fast'"),
        ("optim: 3", r"optim: expected keys and values, got 3"),
        ("data: {format: zip}", r"data\.format: expected .*'csv'.*, got 'zip'"),
        ("protocol: {crop: 500}", r"protocol\.crop: 500 is larger than protocol\.short_side"),
        ("protocol: {views: 4by3}", r"protocol\.views: '4by3'"),
        ("protocol: {frames: 0}", r"protocol\.frames"),
        ("[1, 2]", "expected keys and values"),
        ("a: [", r"c\.yaml, line 1: not valid YAML: "),
        ("optim:\n\tlr: 3", r"c\.yaml, line 2: not valid YAML: found character '.t'"),
        ("seed: 1\nseed: 2", r"c\.yaml, line 2: not valid YAML: the key 'seed' stands twice"),
        ("optim: {lr: 1, momentum: 0, lr: 2}", r"line 1: not valid YAML: the key 'lr' stands twice"),
        ("? [seed]\n: 1", r"not valid YAML: found unhashable key"),
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
        (["--data", "videos"], r"^--data: not an option but a section.*--data\.train$"),
        (["--model=uniformer_s"], r"^--model: not an option but a section.*--model\.name$"),
        (["--protocol.fps", "inf"], r"^protocol\.fps: expected float or null, got 'inf'$"),
        (["--protocol.fps", ".inf"], r"^protocol\.fps: inf is not"),
        (["--protocol.views", "4x2"], r"^protocol\.views: '4x2' has 2 spatial crops; there are 1, 3, 5 or 10"),
        (["--optim.schedule", "step"], r"^optim\.milestones: \[\] leaves optim\.schedule step without a step"),
        (["--optim.lr", "-1"], r"^optim\.lr: -1 is not a positive number$"),
        (["--seed", "-1"], r"^seed: -1 is not a whole number from 0 to 4294967295$"),
        (["--optim.lr="], r"^optim\.lr: expected float, got ''$"),
        (["--data.workers="], r"^data\.workers: expected int or null, got ''$"),
        (["--optim.betas", "0.9"], r"^optim\.betas: expected a list such as \[1, 2\], got '0\.9'$"),
        (["--model.frozen", "stem"], r"^model\.frozen: expected a list such as \[a, b\], got 'stem'$"),
        (
            ["--model.hyperparameters", "depth"],
            r"^model\.hyperparameters: expected keys such as \{a: 1\}, got 'depth'$",
        ),
        (["--data.val_views"], r"^--data\.val_views: expected one argument$"),
        (["--data.format=zip"], r"^data\.format: expected one of 'auto', .*, got 'zip'$"),
    ],
)
def test_mistaken_options(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, options)
    assert "\n" not in str(caught.value)


OUT_OF_RANGE: dict[str, tuple[str, ...]] = {
    "seed": ("-1", "4294967296"),
    "model.drop_path_rate": ("-0.1", "1", ".nan"),
    "data.batch_size": ("0",),
    "data.val_batch_size": ("0",),
    "data.workers": ("-1",),
    "data.decode_threads": ("0",),
    "data.repeats": ("0",),
    "data.val_fraction": ("-0.1", "1", ".nan"),
    "data.max_failures": ("-0.1", "1.1", ".inf"),
    "data.limit_train": ("0",),
    "data.limit_val": ("-3",),
    "data.val_views": ("1x2", "3", "0x1"),
    "augment.crop": ("0",),
    "augment.frames": ("0",),
    "augment.color_jitter": ("[-0.1, 0, 0, 0]", "[0, 0, 0, 0.6]", "[.inf, 0, 0, 0]"),
    "augment.color_jitter_prob": ("-0.1", "1.1"),
    "augment.grayscale": ("-0.1", "1.1"),
    "protocol.views": ("4x2", "x"),
    "protocol.fps": ("0", ".inf", ".nan"),
    "protocol.mean": ("[0, .nan, 0]",),
    "protocol.std": ("[1, .inf, 1]", "[1, 0, 1]"),
    "optim.lr": ("-1", "0", ".inf", ".nan"),
    "optim.base_batch": ("0",),
    "optim.weight_decay": ("-0.1", ".inf"),
    "optim.betas": ("[0.9, 1]", "[-0.1, 0.9]", "[.nan, 0.9]"),
    "optim.momentum": ("1", "-0.1"),
    "optim.layer_decay": ("0", "1.1"),
    "optim.backbone_scale": ("0", "-1", ".inf"),
    "optim.lr_scales": ("{a: 0}", "{a: -1}", "{a: .nan}", "{'(': 2}", "{1: 2}", "{'a{99999999999}': 1}", "[2]"),
    "optim.milestones": ("[0]", "[2, 1]", "[1, 1]", "[.nan]"),
    "optim.gamma": ("0", "1.1"),
    "optim.warmup_epochs": ("-1", ".inf"),
    "optim.warmup_lr": ("-1",),
    "optim.min_lr": ("-1",),
    "optim.schedule_epochs": ("0", ".inf"),
    "trainer.max_epochs": ("0",),
    "trainer.max_steps": ("0", "-1"),
    "trainer.num_nodes": ("0",),
    "trainer.accumulate_grad_batches": ("0",),
    "trainer.gradient_clip_val": ("0", ".inf"),
    "trainer.ema_decay": ("0", "1"),
    "trainer.val_every": ("0",),
    "trainer.save_every": ("0",),
    "trainer.keep": ("0",),
    "trainer.min_delta": ("-1", ".inf"),
    "trainer.log_every_n_steps": ("0",),
}


@pytest.mark.parametrize("key,value", [(key, value) for key, values in OUT_OF_RANGE.items() for value in values])
@pytest.mark.parametrize("in_file", [False, True])
def test_values_out_of_range_are_one_line_that_starts_with_the_key(
    tmp_path: Path, key: str, value: str, in_file: bool
) -> None:
    path = tmp_path / "c.yaml"
    section, _, name = key.rpartition(".")
    path.write_text((f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}") if in_file else "")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [] if in_file else [f"--{key}={value}"])
    assert str(caught.value).startswith(f"{key}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        *("seed=0", "seed=4294967295", "optim.lr=1e-30", "optim.lr=1e30", "optim.betas=[0, 0.5]", "optim.momentum=0"),
        *("data.workers=0", "data.workers=null", "data.max_failures=1", "data.val_views=10x10", "protocol.views=4x5"),
        *("data.limit_train=1", "optim.layer_decay=1", "optim.schedule_epochs=0.5", "trainer.max_steps=1"),
        *("augment.crop=1", "augment.color_jitter=[2, 1, 1, 0.5]", "optim.milestones=[0.5, 3]", "optim.gamma=1"),
        *("trainer.ema_decay=0.5", "trainer.gradient_clip_val=null", "model.drop_path_rate=0", "protocol.fps=29.97"),
    ],
)
def test_values_at_the_edge_of_the_range(option: str) -> None:
    load_config(None, [f"--{option}"])


def test_ranges_hold_in_python_too() -> None:
    with pytest.raises(ConfigError, match=r"^optim\.lr: '1' is not a finite number$"):
        OptimConfig(lr="1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^data\.batch_size: True is not a whole number from 1 up$"):
        DataConfig(batch_size=True)
    with pytest.raises(ConfigError, match=r"^trainer\.max_steps: 1\.5 is not a whole number from 1 up, nor null$"):
        TrainerConfig(max_steps=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^optim\.betas: \(0\.9,\) is not two numbers$"):
        OptimConfig(betas=(0.9,))  # type: ignore[arg-type]


def test_views_are_those_of_the_evaluation() -> None:
    for crops in range(1, 100):
        try:
            assert parse_views(f"2x{crops}") == (2, crops)
            allowed = True
        except ConfigError:
            allowed = False
        try:
            ViewPlan(2, crops)
            assert allowed
        except ConfigError:
            assert not allowed


def test_help_lists_only_options_that_exist() -> None:
    text = train_parser().format_help()
    assert text.startswith("usage: stvid train --config NAME.yaml [--any.key value]\n")
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    keys = ["out" if key == "output" else key for key in config_keys()]
    jobs = [name for name, *_ in JOB_OPTIONS]
    other = ["config", "print_config", "find_lr", *jobs]
    assert sorted(listed) == sorted(f"--{key}" for key in [*other, *keys])


@pytest.mark.parametrize(
    "text,expected",
    [
        ("Parser key \"topk\":\n  Expected a <class 'int'>. Got value: x", "--topk: expected int, got 'x'"),
        ("argument --topk: expected one argument", "--topk: expected one argument"),
        ('Parser key "topk": something else', "--topk: something else"),
        ("something\n  else", "something else"),
    ],
)
def test_one_line(text: str, expected: str) -> None:
    assert one_line(ValueError(text), prefix="--") == expected


def test_protocol_round_trip_and_checks() -> None:
    protocol = Protocol(frames=8, stride=2, fps=30, views="4x3", class_names=("a", "b"))
    assert Protocol.from_dict(protocol.to_dict()) == protocol
    assert (protocol.num_clips, protocol.num_crops) == (4, 3)
    with pytest.raises(ConfigError, match=r"frmes.*nearest: frames"):
        Protocol.from_dict({"frmes": 3})
    for wrong in ({"fps": -1}, {"std": (0, 1, 1)}, {"mean": (1, 2)}, {"sampling": "x"}, {"stride": 1.5}):
        with pytest.raises(ConfigError):
            Protocol(**wrong)


# Files as editors, other programs and accidents leave them: the keys that they set, or the one line that refuses them.
ODD_FILES: dict[str, tuple[str | bytes, dict[str, Any]]] = {
    "empty": ("", {}),
    "comments only": ("# nothing\n\n", {}),
    "null": ("null\n", {}),
    "mark of byte order": ("\ufeffoptim:\n  lr: 0.1\n", {"optim.lr": 0.1}),
    "windows": ("optim:\r\n  lr: 0.1\r\n", {"optim.lr": 0.1}),
    "old mac": ("optim:\r  lr: 0.1\r", {"optim.lr": 0.1}),
    "JSON": ('{"optim": {"lr": 0.1}}', {"optim.lr": 0.1}),
    "dotted keys": ("optim.lr: 0.1\n", {"optim.lr": 0.1}),
    "anchor": ("optim: &a\n  lr: 0.1\n", {"optim.lr": 0.1}),
    "merged keys": ("optim:\n  <<: {lr: 0.1, momentum: 0.5}\n  lr: 0.2\n", {"optim.lr": 0.2, "optim.momentum": 0.5}),
    "on": ("trainer: {progress: on}\nmodel: {grad_checkpointing: Yes}\n", {"model.grad_checkpointing": True}),
    "truth as a text": ('model: {grad_checkpointing: "true"}\n', {"model.grad_checkpointing": True}),
    "exponent without a point": ("optim: {lr: 1e-3}\n", {"optim.lr": 0.001}),
    "number as a text": ('optim: {lr: "1e-3"}\ntrainer: {max_epochs: "3"}\n', {"optim.lr": 0.001}),
    "underscores": ("trainer: {max_epochs: 1_000}\n", {"trainer.max_epochs": 1000}),
    "number in quotes": ('data: {train: "010"}\n', {"data.train": "010"}),
    "views": ("data: {val_views: 4x3}\n", {"data.val_views": "4x3"}),
    "tilde alone is null": ("data: {train: ~}\n", {"data.train": None}),
    "words in quotes": ('protocol: {class_names: ["yes", "no"]}\n', {"protocol.class_names": ("yes", "no")}),
}
ODD_FILES_REFUSED: dict[str, tuple[str | bytes, str]] = {
    "UTF-16": ("optim: {}\n".encode("utf-16"), "line 1: is not UTF-8 text"),
    "Latin-1": (b"seed: 1\ndata: {train: caf\xe9}\n", "line 2: is not UTF-8 text .*; save it as UTF-8"),
    "zero byte": ("seed: 1\0\n", "not valid YAML: unacceptable character"),
    "list": ("- optim: {lr: 1}\n", "expected keys and values, got list"),
    "text": ("optim = dict(lr=0.1)\n", "expected keys and values, got str"),
    "number": ("3\n", "expected keys and values, got int"),
    "TOML": ("[optim]\nlr = 0.1\n", "line 2: not valid YAML"),
    "page of a server": ("<!DOCTYPE html>\n<p>a: b</p>", "line 2: not valid YAML"),
    "pointer of git-lfs": ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "got str"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "line 2: not valid YAML: but found another document"),
    "wrong indent": ("optim:\n lr: 1\n  name: sgd\n", "line 3: not valid YAML"),
    "no space behind the colon": ("optim:\n  lr:0.1\n", "optim: expected keys and values, got 'lr:0.1'"),
    "section without keys": ("optim:\nseed: 1\n", "optim: expected keys and values, got None"),
    "key of another kind": ("3: x\n", "3: unknown key"),
    "truth as a key": ("on: x\n", "True: unknown key"),
    "null as a key": ("optim: {~: 1}\n", r"optim\.None: unknown key"),
    "keys in a helper": ("defaults: &a {lr: 1}\noptim: *a\n", "defaults: unknown key"),
    "value within itself": ("optim: &a\n  lr: *a\n", r"optim\.lr: expected float"),
    "python": ("optim: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    "own tag": ("optim: !x {lr: 1}\n", "could not determine a constructor for the tag '!x'"),
    "date": ("data: {train: 2020-01-01}\n", r"data\.train: expected str .* put quotes around it"),
    "date that does not exist": ("data: {train: 2020-99-99}\n", "not valid YAML: month must be"),
    "bytes": ('data: {train: !!binary "aGVsbG8="}\n', r"data\.train: expected str or null"),
    "set": ("data: {train: !!set {a}}\n", r"data\.train: expected str or null"),
    "truth for a word": ("model: {name: no}\n", r"model\.name: expected str, got 'False'; yes, no, on and off"),
    "truth for a class": (
        "protocol: {class_names: [yes, no]}\n",
        r"protocol\.class_names: .*put quotes around the word",
    ),
    "number for a class": ("protocol: {class_names: [1, 2]}\n", r"protocol\.class_names: .*'1'; put quotes around it"),
    "truth for a number": ("optim: {lr: on}\n", r"optim\.lr: expected float, got 'True'$"),
    "null for a number": ("optim: {lr: null}\n", r"optim\.lr: None is not a finite number"),
    "fraction for a whole number": ("trainer: {max_epochs: 3.0}\n", r"trainer\.max_epochs: expected int, got '3.0'"),
    "base 8": ("trainer: {max_epochs: 010}\n", "line 1: .*010 is a number of base 8 in YAML"),
    "base 60": ("seed: 0\ntrainer: {max_epochs: 1:30}\n", "line 2: .*1:30 is a number of base 60 in YAML"),
    "base 60 with a point": ("optim: {lr: 1:30.5}\n", "1:30.5 is a number of base 60 in YAML"),
    "list for a text": ("data: {train: [a, b]}\n", r"data\.train: expected str or null, got"),
    "nothing for a list": ("optim: {milestones: }\n", r"optim\.milestones: null is no list; leave the key out"),
    "text for a list": ("protocol: {class_names: abc}\n", r"protocol\.class_names: expected a list"),
    "short list": ("protocol: {mean: [0.5, 0.5]}\n", r"protocol\.mean: expected tuple with 3 elements"),
    "deep": ("a: " + "[" * 3000, "not valid YAML: maximum recursion depth"),
}


@pytest.mark.parametrize("case", ODD_FILES)
def test_odd_files_are_read(case: str, tmp_path: Path) -> None:
    content, expected = ODD_FILES[case]
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = load_config(path)
    for key, value in expected.items():
        assert functools.reduce(getattr, key.split("."), config) == value
    if not expected:
        assert config == TrainConfig()


@pytest.mark.parametrize("case", ODD_FILES_REFUSED)
def test_odd_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = ODD_FILES_REFUSED[case]
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_home_folders_are_those_of_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("output: ~/run\ninit: ~/w.pt\ndata: {train: ~/videos, class_names: ~/n.txt}\n")
    config = load_config(tmp_path / "c.yaml", ["--data.val=~/val"])
    found = (config.output, config.init, config.data.train, config.data.class_names, config.data.val)
    assert found == tuple(str(tmp_path / name) for name in ("run", "w.pt", "videos", "n.txt", "val"))
