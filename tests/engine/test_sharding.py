"""Sharding finds the blocks of every family, and two processes with half of a model each train as one with all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stvid
from stvid.config import TrainConfig, load_config
from stvid.engine.sharding import precision_policy, shard, sharded_blocks, whole_weights
from stvid.engine.trainers import strategy_of
from stvid.errors import ConfigError
from stvid.models.registry import family_of, native_models

FAMILIES = sorted({family_of(name)[0].model: name for name in reversed(native_models())}.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_every_family_are_found(name: str, outline: Callable[..., Any]) -> None:
    with outline():
        model = stvid.create_model(name, num_classes=5)
    blocks = sharded_blocks(model)
    assert len(blocks) >= 4
    names = list(blocks)
    assert not [a for a in names for b in names if a.startswith(f"{b}.")]
    assert not any(isinstance(block, nn.ModuleList | nn.Sequential) for block in blocks.values())
    assert all(any(True for _ in block.parameters()) for block in blocks.values())


def test_last_stages_that_end_with_a_norm_are_found_whole(outline: Callable[..., Any]) -> None:
    for name, depth in (("uniformer_s", 16), ("swin3d_t", 12), ("mvit_b_16x4", 16), ("hiera_tiny", 12)):
        with outline():
            blocks = sharded_blocks(stvid.create_model(name, num_classes=5))
        kinds = [type(block).__name__ for block in blocks.values()]
        assert sum("Block" in kind for kind in kinds) >= depth, (name, kinds)


@pytest.mark.parametrize("name,rounded", [("videomae_vit_s", True), ("resnet3d_18", False)])
def test_weights_beside_batch_norms_are_not_rounded(name: str, rounded: bool, outline: Callable[..., Any]) -> None:
    with outline():
        model = stvid.create_model(name, num_classes=5)
    policy = precision_policy(model, "bf16-mixed")
    assert (policy.param_dtype == torch.bfloat16) is rounded and policy.reduce_dtype == torch.float32
    assert precision_policy(model, "32-true").param_dtype is None


def test_weights_that_cannot_be_shared_out(outline: Callable[..., Any]) -> None:
    with outline():
        model = stvid.create_model("movinet_a0", num_classes=5)
    with pytest.raises(ConfigError, match=r"^trainer\.strategy fsdp2: .*MoViNet has them \(.*\); take ddp$"):
        shard(model)


def test_nothing_is_gathered_where_nothing_is_sharded() -> None:
    model = nn.Linear(2, 2)
    with whole_weights(model):
        assert model(torch.ones(1, 2)).shape == (1, 2)


@pytest.mark.parametrize("accelerator", ["cpu", "auto", "gpu"])
def test_cpus_are_refused_in_one_line(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load_config(None, ["--trainer.strategy=fsdp2", f"--trainer.accelerator={accelerator}"])
    with pytest.raises(ConfigError, match=r"^trainer\.strategy fsdp2: .* there is none here; take ddp$"):
        strategy_of(config)


def test_the_strategy_writes_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    make: Callable[..., TrainConfig] = load_config
    strategy = strategy_of(make(None, ["--trainer.strategy=fsdp2"]))
    assert type(strategy).__name__ == "ModelParallelStrategy" and not strategy._save_distributed_checkpoint
    with pytest.raises(ConfigError, match=r"^trainer\.ema_decay: not with trainer\.strategy fsdp2"):
        strategy_of(make(None, ["--trainer.strategy=fsdp2", "--trainer.ema_decay=0.9"]))
    assert strategy_of(make(None, ["--trainer.strategy=ddp"])) == "ddp"


@pytest.mark.slow
def test_two_processes_with_half_of_the_weights_each_train_as_one() -> None:
    """20 steps, the losses equal to 1e-5: with and without recomputed activations; then bfloat16, about the same."""
    families = ["videomae_vit_s", "mvit_b_16x4", "hiera_tiny", "resnet3d_18"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = str(Path(__file__).with_name("sharded_training.py"))
    done = subprocess.run([sys.executable, *command, script, *families], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the same") == 2
