from __future__ import annotations

import math

import pytest
import torch

import stvid
from stvid.config import OptimConfig
from stvid.engine.optim import build_optimizer, learning_rate_curve, plan_parameters, scaled_learning_rate
from stvid.errors import ConfigError
from stvid.models.base import VideoModel


def tiny() -> VideoModel:
    return stvid.create_model("uniformer_xxs", num_classes=3, depth=(1, 1, 2, 1), embed_dim=(8, 8, 16, 16), head_dim=8)


def test_learning_rate_scales_with_the_clips_of_a_step() -> None:
    assert scaled_learning_rate(OptimConfig(lr=1e-3, base_batch=64), 256) == pytest.approx(4e-3)
    assert scaled_learning_rate(OptimConfig(lr=1e-3), 256) == 1e-3


def test_biases_and_norms_are_not_decayed() -> None:
    model = tiny()
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.05), lr=0.1)
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(groups) == {0.0, 0.05}
    assert all(parameter.ndim == 1 for parameter in groups[0.0])
    assert all(parameter.ndim > 1 for parameter in groups[0.05])
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))


def test_a_plan_outlives_the_shapes() -> None:
    """Sharded parameters are flat when the optimiser is made; the plan was made before."""
    model = tiny()
    config = OptimConfig(weight_decay=0.05)
    plan = plan_parameters(model, config)
    for parameter in model.parameters():
        parameter.data = parameter.data.flatten()
    optimizer = build_optimizer(model, config, lr=0.1, plan=plan)
    sizes = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert sizes == {
        0.05: sum(treatment.decayed for treatment in plan.values()),
        0.0: sum(not treatment.decayed for treatment in plan.values()),
    }


def test_layer_decay_falls_from_the_head_to_the_stem() -> None:
    model = tiny()
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5), lr=0.1)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rate[id(model.head.fc.weight)] == 0.1
    depths = [
        model.patch_embed1.proj.weight,
        model.blocks1[0].conv1.weight,
        model.blocks2[0].conv1.weight,
        model.blocks3[0].attn.qkv.weight,
        model.blocks3[1].attn.qkv.weight,
        model.blocks4[0].attn.qkv.weight,
        model.head.fc.weight,
    ]
    rates = [rate[id(parameter)] for parameter in depths]
    assert rates == sorted(rates) and len(set(rates)) == len(rates)


def test_the_last_block_is_one_group_before_the_head() -> None:
    options = {"num_frames": 2, "img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 4}
    for head in ({}, {"head": "attentive"}):
        model = stvid.create_model("timesformer_base", **options, **head)
        scales = {name: each.lr_scale for name, each in plan_parameters(model, OptimConfig(layer_decay=0.5)).items()}
        blocks = [scales[f"blocks.{number}.mlp.fc1.weight"] for number in range(3)]
        assert (scales["patch_embed.proj.weight"], *blocks, scales["head.fc.weight"]) == (0.0625, 0.125, 0.25, 0.5, 1.0)
        assert {scale for name, scale in scales.items() if name.startswith("head.")} == {1.0}


def test_layer_decay_of_a_model_without_groups() -> None:
    class Plain(VideoModel):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(2, 2)

    with pytest.raises(ConfigError, match=r"optim\.layer_decay: Plain"):
        build_optimizer(Plain(), OptimConfig(layer_decay=0.9), lr=0.1)


def test_rmsprop_is_tensorflow_s() -> None:
    """The mean square starts at one, epsilon stands under the root, and the rate is a part of the momentum."""
    model = tiny()
    config = OptimConfig(name="rmsprop", rho=0.9, epsilon=1.0, momentum=0.5, weight_decay=0.0)
    optimizer = build_optimizer(model, config, lr=0.1)
    weight = model.get_classifier().weight
    value, square, moment = weight.detach().double().clone(), torch.ones(()).double(), torch.zeros(()).double()
    for step in (1.0, 2.0):
        optimizer.zero_grad()
        weight.grad = torch.full_like(weight, step)
        optimizer.step()
        square = square + (step**2 - square) * 0.1
        moment = 0.5 * moment + 0.1 * step / (square + 1.0).sqrt()
        value = value - moment
    torch.testing.assert_close(weight.detach().double(), value, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"optim\.epsilon"):
        OptimConfig(name="rmsprop", epsilon=0.0)


def test_sgd() -> None:
    optimizer = build_optimizer(tiny(), OptimConfig(name="sgd", momentum=0.8), lr=0.1)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["nesterov"] and optimizer.param_groups[0]["momentum"] == 0.8


def test_momentum_without_nesterov() -> None:
    optimizer = build_optimizer(tiny(), OptimConfig(name="sgd", nesterov=False), lr=0.1)
    assert not optimizer.param_groups[0]["nesterov"] and optimizer.param_groups[0]["momentum"] == 0.9


def test_biases_and_norms_are_decayed_on_request() -> None:
    model = tiny()
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.05, decay_1d=True), lr=0.1)
    spared = {id(dict(model.named_parameters())[name]) for name in model.no_weight_decay()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.0 if id(parameter) in spared else 0.05)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_the_backbone_has_a_rate_of_its_own(layer_decay: float) -> None:
    model = tiny()
    plain = build_optimizer(model, OptimConfig(layer_decay=layer_decay), lr=0.1)
    scaled = build_optimizer(model, OptimConfig(layer_decay=layer_decay, backbone_scale=0.1), lr=0.1)

    def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
        return {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}

    head = {id(parameter) for parameter in model.head.parameters()}
    before, after = rates(plain), rates(scaled)
    assert set(before) == set(after)
    for parameter, rate in before.items():
        assert after[parameter] == pytest.approx(rate * (1.0 if parameter in head else 0.1))
    names = [group["name"] for group in scaled.param_groups]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_named_parameters_have_rates_of_their_own(layer_decay: float) -> None:
    model = tiny()
    plain = plan_parameters(model, OptimConfig(layer_decay=layer_decay))
    scales = {r"[.]norm1[.]": 10.0, r"^blocks4[.]": 2.0, r"^head[.]": 5.0}
    config = OptimConfig(layer_decay=layer_decay, lr_scales=scales, backbone_scale=0.5)
    found = plan_parameters(model, config)
    for name, treatment in found.items():
        factor = 5.0 if name.startswith("head.") else 0.5
        factor *= 10.0 if ".norm1." in name else 2.0 if name.startswith("blocks4.") else 1.0
        assert treatment.lr_scale == pytest.approx(plain[name].lr_scale * factor), name
    groups = build_optimizer(model, config, lr=0.1).param_groups
    assert len({group["name"] for group in groups}) == len(groups)
    close = OptimConfig(lr_scales={"norm": 0.333333, "^head[.]": 0.3333333})  # names tell even these apart
    groups = build_optimizer(model, close, lr=0.1).param_groups
    assert len({group["name"] for group in groups}) == len(groups)
    with pytest.raises(ConfigError, match=r"optim.lr_scales: 'nowhere' is found in no parameter's name"):
        plan_parameters(model, OptimConfig(lr_scales={"nowhere": 2.0}))


def test_frozen_parameters_are_not_optimised() -> None:
    model = tiny()
    model.patch_embed1.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(), lr=0.1)
    optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_cosine_with_warmup() -> None:
    config = OptimConfig(lr=1.0, warmup_epochs=2, warmup_lr=0.1, min_lr=0.01)
    curve = learning_rate_curve(config, steps_per_epoch=10, epochs=12, lr=1.0)
    assert curve(0) == pytest.approx(0.1)
    assert curve(10) == pytest.approx(0.55)
    assert curve(20) == pytest.approx(1.0)
    assert curve(70) == pytest.approx((1 + 0.01) / 2)
    assert curve(120) == pytest.approx(0.01)
    assert curve(500) == pytest.approx(0.01)
    rates = [curve(step) for step in range(20, 121)]
    assert rates == sorted(rates, reverse=True)


def test_cosine_that_begins_with_the_warmup() -> None:
    """SlowFast's schedule (slowfast/utils/lr_policy.py): a line to where the cosine is when the warm-up ends."""
    config = OptimConfig(lr=0.1, warmup_epochs=34, warmup_lr=0.01, cosine_over_warmup=True)
    curve = learning_rate_curve(config, steps_per_epoch=10, epochs=196, lr=0.1)

    def cosine(epoch: float) -> float:
        return (math.cos(math.pi * epoch / 196) + 1) / 2

    assert curve(0) == pytest.approx(0.1)
    assert curve(170) == pytest.approx((0.1 + cosine(34)) / 2)
    for step in (340, 341, 1000, 1959):
        assert curve(step) == pytest.approx(cosine(step / 10))
    assert curve(1960) == pytest.approx(0.0)


def test_steps_after_a_warmup() -> None:
    """torchvision's references/video_classification/train.py: milestones count from the first epoch."""
    config = OptimConfig(lr=1.0, warmup_epochs=10, warmup_lr=0.001, schedule="step", milestones=[20, 30.5], gamma=0.5)
    curve = learning_rate_curve(config, steps_per_epoch=10, epochs=45, lr=1.0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.001, total_iters=100)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[100, 205], gamma=0.5)
    reference = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, steps], milestones=[100])
    for step in range(450):
        assert curve(step) == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        reference.step()


def test_constant_schedule() -> None:
    curve = learning_rate_curve(OptimConfig(schedule="constant"), steps_per_epoch=10, epochs=3, lr=1e-4)
    assert {curve(step) for step in (0, 15, 29, 100)} == {1.0}
