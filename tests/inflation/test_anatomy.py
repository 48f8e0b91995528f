"""Networks of many styles are understood by watching them run, and inflate with proof."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stvid
from stvid.errors import ConfigError
from stvid.inflation.anatomy import examine
from stvid.inflation.blocks import find_blocks
from stvid.inflation.temporal import TemporalConv


def load(name: str) -> Any:
    """Returns a module beside this one, which is no test."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


own_networks, author_networks = load("own_networks"), load("author_networks")
further_networks = load("further_networks")
NETWORKS = {**own_networks.NETWORKS, **author_networks.NETWORKS, **further_networks.NETWORKS}
SIDE = own_networks.SIDE


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[name][0]().eval()


def logits_of(output: Any) -> Tensor:
    """Returns the logits, wherever the networks of the tables have them."""
    if isinstance(output, dict):
        return output["logits"]
    return output if isinstance(output, Tensor) else output[0]


def add_noise(model: Any) -> None:
    """Gives what was added weights that do something."""
    generator = torch.Generator().manual_seed(1)
    for part in model.modules():
        if isinstance(part, TemporalConv):
            part.weight.add_(torch.randn(part.weight.shape, generator=generator) * part.weight.std())
    for parameter in model.temporal.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, (_, modes) in NETWORKS.items() for mode in modes])
@torch.no_grad()
def test_inflates_with_proof_and_sees_the_order(name: str, mode: str) -> None:
    network = build(name, seed=len(name))
    model: Any = stvid.inflate(network, num_frames=4, img_size=SIDE, temporal=mode)
    assert model.inflation.proof.exact
    images, clips = torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 3, 4, SIDE, SIDE)
    expected = logits_of(network(images))
    scale = (expected[0] - expected[1]).abs().max()
    found = model(images[:, :, None].repeat(1, 1, 4, 1, 1))
    assert (found - expected).abs().max() < 1e-3 * scale
    add_noise(model)
    both, backwards = model(clips), model(clips.flip(2))
    scale = (both[0] - both[1]).abs().max()
    assert (both - backwards).abs().max() > 1e-3 * scale
    assert (both[:1] - model(clips[:1])).abs().max() < 1e-3 * scale  # clips of a batch do not see each other


@pytest.mark.parametrize("name", list(author_networks.REFUSED))
@pytest.mark.parametrize("mode", ["conv", "shift"])
def test_networks_whose_images_depend_on_each_other_are_refused(name: str, mode: str) -> None:
    torch.manual_seed(0)
    network = author_networks.REFUSED[name]().eval()
    with pytest.raises(ConfigError, match="depend on the other images in its batch"):
        stvid.inflate(network, num_frames=2, img_size=SIDE, temporal=mode)


@pytest.mark.parametrize("mode", ["conv", "shift", "attention"])
def test_layers_that_see_learned_queries_are_left_alone(mode: str) -> None:
    model: Any = stvid.inflate(build("perceiver"), num_frames=4, img_size=SIDE, temporal=mode)
    sites = model.anatomy.sites
    assert not sites["layers.0.0.to_q"].sees_frames and sites["layers.0.0.to_k"].sees_frames
    assert sites["layers.1.0.to_q"].sees_frames  # what the latents have read by then
    assert not {"layers.0.0", "layers.0.0.to_q"} & set(model.inflated)


def test_attention_is_put_on_the_input_that_a_layer_uses() -> None:
    model: Any = stvid.inflate(build("lookvit"), num_frames=4, img_size=SIDE, temporal="attention")
    answer = model.anatomy.sites["layers.0.2"]
    assert (answer.argument, answer.shape) == (1, (2, 4, 16))  # the few tokens, not its first input
    model.train()(torch.randn(1, 3, 4, SIDE, SIDE)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.temporal.parameters())


def test_windows_are_told_from_each_other_and_from_images() -> None:
    network = build("windows with registers")
    model: Any = stvid.inflate(network, num_frames=4, img_size=SIDE, temporal="attention")
    assert model.inflated == ["layers.0.1", "layers.1.1"] and model.anatomy.sites["layers.0.1"].windows == 4
    larger, clip = torch.randn(2, 3, 3, 2 * SIDE, 2 * SIDE), torch.randn(1, 3, 4, SIDE, SIDE)
    with torch.no_grad():
        add_noise(model)
        both = model(larger)
        assert torch.allclose(both[1:], model(larger[1:]), atol=1e-5)
    model.train()(clip).sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    logits = model(clip)
    model(larger)  # before the blocks run again
    logits.sum().backward()
    assert all(torch.allclose(parameter.grad, expected[name]) for name, parameter in model.named_parameters())


def test_windows_that_are_not_side_by_side_are_refused() -> None:
    network = further_networks.WindowsWithRegisters(windows_first=True).eval()
    with pytest.raises(ConfigError, match="no transformer block in which attention sees whole frames"):
        stvid.inflate(network, num_frames=4, img_size=SIDE, temporal="attention")


def test_a_network_that_cannot_be_trained_here_says_so() -> None:
    model: Any = stvid.inflate(build("flex attention"), num_frames=2, img_size=SIDE, temporal="attention")
    assert any("cannot be trained here" in note and "backward" in note for note in model.inflation.notes)


@pytest.mark.parametrize("name", ["hornet", "vig", "coc", "lenet", "odconv", "sknet"])
def test_networks_without_attention_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no transformer block in which attention was seen.*; take conv or head"):
        stvid.inflate(build(name), num_frames=2, img_size=SIDE, temporal="attention")


def test_the_axis_of_the_images_is_the_one_that_changes() -> None:
    anatomy = examine(build("clip"), (SIDE, SIDE))
    blocks = {block.name: block for block in anatomy.blocks}
    assert list(blocks) == ["resblocks.0", "resblocks.1"]
    assert all(block.batch_axis == 1 and block.shape == (2, 16, 16) for block in blocks.values())
    assert [site.heads for site in anatomy.attention] == [4, 4]
    windows = examine(build("cswin"), (SIDE, SIDE))
    assert all(block.batch_axis == 0 for block in windows.blocks)


def test_two_tokens_are_not_taken_for_two_images() -> None:
    network = own_networks.SequenceFirst()
    network.patches = nn.Conv2d(3, own_networks.DIM, (32, 16), stride=(32, 16))
    anatomy = examine(network.eval(), (SIDE, SIDE))
    assert all(block.batch_axis == 1 for block in anatomy.blocks)
    for mode in ("conv", "shift", "attention"):
        assert stvid.inflate(network, num_frames=4, img_size=SIDE, temporal=mode).inflation.proof.exact


class Nested(nn.Module):
    """Puts the tokens of all images into one nested tensor, as NaViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.fc = nn.Conv2d(3, 8, 16, stride=16), nn.Linear(8, 5)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = list(self.patches(x).flatten(2).transpose(1, 2))
        nested = torch.nested.as_nested_tensor(tokens, layout=torch.jagged)
        for layer in self.layers:
            nested = nested + layer(nested)
        return self.fc(torch.stack([tokens.mean(0) for tokens in nested.unbind()]))


def test_nested_tensors_have_no_axis_of_images() -> None:
    for mode, others in (("shift", "no layer with two channels"), ("attention", "no transformer block")):
        with pytest.raises(ConfigError, match=f"Nested has {others}.*; take .*head"):
            stvid.inflate(Nested().eval(), num_frames=2, img_size=SIDE, temporal=mode)
    assert stvid.inflate(Nested().eval(), num_frames=2, img_size=SIDE, temporal="head").inflation.proof.exact


class Beside(nn.Module):
    """Takes something from another image of the batch."""

    def __init__(self, beside: str) -> None:
        super().__init__()
        self.beside, self.first, self.fc = beside, nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x.relu())
        return self.fc(self.others(x).mean((2, 3)))

    def others(self, x: Tensor) -> Tensor:
        if self.beside == "four or more":
            return x - x.mean(0, keepdim=True) if len(x) > 3 else x
        if self.beside == "not a number":
            return x * x.std(0, keepdim=True).mean()
        other = {
            "first": x[:1],
            "last": x[-1:].relu(),
            "before": x.roll(1, 0),
            "behind": x.roll(-1, 0),
            "all before": x.cumsum(0),
            "all behind": x.flip(0).cumsum(0).flip(0),
        }
        return x - other[self.beside] / 2


@pytest.mark.parametrize(
    "beside",
    ["first", "last", "before", "behind", "all before", "all behind", "four or more", "not a number"],
)
def test_whatever_an_image_takes_from_others_is_refused(beside: str) -> None:
    network = Beside(beside).eval()
    four = "does not compute what the image network computes"
    expected = four if beside == "four or more" else "depend on the other images in its batch"
    for mode in ("conv", "shift"):
        with pytest.raises(ConfigError, match=expected):
            stvid.inflate(network, num_frames=4, img_size=SIDE, temporal=mode)


class Parts(nn.Module):
    """Sends the images through its second layer by threes, or all that are bright through its third."""

    def __init__(self, *, routes: bool) -> None:
        super().__init__()
        self.routes, self.first, self.fc = routes, nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)
        self.second, self.third = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(x)
        if not self.routes:
            return self.fc(torch.cat([self.second(part) for part in maps.split(3)]).mean((2, 3)))
        bright = x.mean((1, 2, 3)) > 0.5
        parts = torch.empty_like(maps)
        parts[~bright] = self.second(maps[~bright])
        parts[bright] = self.third(maps[bright])
        return self.fc(parts.mean((2, 3)))


def test_frames_of_two_clips_are_not_taken_for_one() -> None:
    message = r"gets {} images, not the {} of {} clips: the network sends its images through in parts"
    model = stvid.inflate(Parts(routes=True).eval(), num_frames=4, img_size=SIDE, layers="^second")
    assert model.inflated == ["second.0"]
    clips = torch.rand(3, 3, 4, SIDE, SIDE)
    clips[1, :, 2:], clips[2, :, 2:] = 1, 1  # eight frames are left, which would make two clips
    clips[0], clips[1, :, :2], clips[2, :, :2] = 0, 0, 0
    with pytest.raises(ConfigError, match=message.format(8, 12, 3)):
        model(clips)
    assert model(torch.zeros(3, 3, 4, SIDE, SIDE)).shape == (3, 5)
    with pytest.raises(ConfigError, match=message.format(3, 6, 2)):
        stvid.inflate(Parts(routes=False).eval(), num_frames=4, img_size=SIDE, layers="^second")


def test_windows_are_told_behind_norms() -> None:
    class Windows(nn.Module):
        def __init__(self, *, images_first: bool) -> None:
            super().__init__()
            self.images_first, self.first, self.fc = images_first, nn.Conv2d(3, 16, 8, stride=8), nn.Linear(16, 5)
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
            self.blocks = nn.ModuleList(nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            halves = x.unflatten(2, (2, -1)).permute((0, 2, 3, 4, 1) if self.images_first else (2, 0, 3, 4, 1))
            tokens = halves.flatten(2, 3).flatten(0, 1)
            for norm, block in zip(self.norms, self.blocks, strict=True):
                normed = norm(tokens)
                tokens = tokens + block(normed, normed, normed)[0]
            halves = tokens.unflatten(0, halves.shape[:2])
            return self.fc(halves.mean((1, 2) if self.images_first else (0, 2)))

    model: Any = stvid.inflate(Windows(images_first=True).eval(), num_frames=4, img_size=SIDE, temporal="attention")
    assert model.anatomy.sites["blocks.0"].windows == 2
    with pytest.raises(ConfigError, match="no transformer block in which attention sees whole frames"):
        stvid.inflate(Windows(images_first=False).eval(), num_frames=4, img_size=SIDE, temporal="attention")


def test_pairs_are_blocks_and_branches_are_none() -> None:
    pairs = examine(build("vit-pytorch"), (SIDE, SIDE))
    assert [(block.name, block.block) for block in pairs.blocks] == [
        (f"layers.{index}.0", f"layers.{index}") for index in range(3)
    ]
    assert [site.name for site in pairs.attention] == [f"layers.{index}.0" for index in range(3)]
    assert len(find_blocks(build("convmixer"))) == 4
    branches = examine(build("unireplknet"), (SIDE, SIDE))
    assert [block.name for block in branches.blocks] == ["blocks.0", "blocks.1", "blocks.2"]


def test_stages_of_one_block_each_are_no_block() -> None:
    layer = own_networks.Layer
    stages = nn.ModuleList(nn.ModuleList([layer(own_networks.SelfAttention())]) for _ in range(3))

    class Staged(own_networks.Tokens):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            for (block,) in self.blocks[0]:
                x = block(x)
            return self.fc(x.mean(1))

    model = stvid.inflate(Staged(stages).eval(), num_frames=2, img_size=SIDE, temporal="attention")
    assert model.inflated == [f"blocks.0.{stage}.0" for stage in range(3)]


def test_pairs_are_recomputed_and_have_groups_of_their_own() -> None:
    model = stvid.inflate(build("vit-pytorch"), num_frames=2, img_size=SIDE, temporal="attention").train()
    clip = torch.randn(2, 3, 2, SIDE, SIDE)
    kept = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            model(clip)
        kept.append(sum(saved))
    assert kept[1] < 0.7 * kept[0]
    model.set_grad_checkpointing(False)
    assert len(model.group_matcher()["blocks"]) >= 3


def test_what_never_reaches_the_logits_is_left_alone() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.fc = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.aux(x).detach()
            return self.fc(self.second(self.first(x).relu()).mean((2, 3)))

    model = stvid.inflate(Auxiliary().eval(), num_frames=2, img_size=16, temporal="shift")
    assert model.inflated == ["second"]
    assert stvid.inflate(Auxiliary().eval(), num_frames=2, img_size=16, temporal="conv").inflated == ["first"]


def test_attention_that_never_reaches_the_logits_is_left_alone() -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.probe = (
                nn.MultiheadAttention(16, 2, batch_first=True),
                nn.Parameter(torch.randn(1, 1, 16)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(self.probe.expand(len(x), -1, -1), x, x)[0]

    class Beside(nn.Module):
        """Returns a pooling by attention beside its logits, which are of the mean (SigLIP's classifier)."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 5)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
            self.head = Pool()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embed(x).flatten(2).transpose(1, 2)
            for layer in self.layers:
                x = layer(x)
            return self.fc(x.mean(1)), self.head(x)

    model = stvid.inflate(Beside().eval(), num_frames=2, img_size=16, temporal="attention")
    assert model.inflated == ["layers.0", "layers.1"]


def test_a_pooling_layer_is_no_classifier() -> None:
    class Encoder(nn.Module):
        """Returns a mapping with a pooled output, as the encoders of transformers do."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Conv2d(3, 16, 4, stride=4), nn.Conv2d(16, 16, 3, padding=1)
            self.pooler = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.body(self.embed(x)).flatten(2).transpose(1, 2)
            return {"last_hidden_state": x, "pooler_output": self.pooler(x.mean(1)).tanh()}

    model: Any = stvid.inflate(Encoder().eval(), num_frames=2, img_size=16, num_classes=5)
    assert isinstance(model.network.pooler, nn.Linear) and model.head.fc.out_features == 5
    assert (model(torch.randn(1, 3, 2, 16, 16)).shape, model.head.fc.in_features) == ((1, 5), 16)
    model.train()(torch.randn(2, 3, 2, 16, 16)).sum().backward()
    assert model.network.pooler.weight.grad is not None


class Reading(nn.Module):
    """Reads what it likes of its layers."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.stem, self.body = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "settings":
            assert self.stem.kernel_size == (3, 3) and isinstance(self.stem, nn.Conv2d)
            x = self.stem(x) * self.stem.stride[0]
        elif self.what == "kernel":
            x = self.stem(x)
            x = x - 0.1 * F.conv2d(x, self.body.weight, padding=1)
        elif self.what == "shape":
            x = self.stem(x) / self.stem.weight.shape[2]
        else:
            x = self.stem(x)
        x = self.body(x).relu().mean((2, 3))
        if self.what == "classifier":
            return F.linear(F.normalize(x), F.normalize(self.fc.weight)) + self.fc(x)
        return self.fc(x.to(self.fc.weight.dtype) / self.fc.in_features)


@pytest.mark.parametrize("what", ["settings", "kernel", "shape", "classifier", "type"])
@pytest.mark.parametrize("mode", ["none", "conv", "shift"])
def test_layers_answer_what_is_read_of_them(what: str, mode: str) -> None:
    torch.manual_seed(0)
    model = stvid.inflate(Reading(what).eval(), num_frames=4, img_size=16, temporal=mode, layers=None)
    assert model.inflation.proof.exact
    if mode == "conv":
        assert isinstance(model.network.stem, TemporalConv) == (what != "shape")


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(x), F.normalize(self.weight), self.bias)


class Prototypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x) @ F.normalize(self.table).t()


def with_classifier(classifier: nn.Module) -> nn.Module:
    layers = (nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, classifier).eval()


CLASSIFIERS = {
    "cosine": lambda: Cosine(16, 5),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 5)),
    "old weight norm": lambda: torch.nn.utils.weight_norm(nn.Linear(16, 5)),
    "prototypes": Prototypes,
}


@pytest.mark.parametrize("kind", list(CLASSIFIERS))
@pytest.mark.parametrize("mode", ["none", "conv", "shift", "head"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_classifier_stays_what_it_is(kind: str, mode: str) -> None:
    torch.manual_seed(0)
    network = with_classifier(CLASSIFIERS[kind]())
    model = stvid.inflate(network, num_frames=2, img_size=16, temporal=mode)
    assert type(model.get_classifier()) is type(network[-1]) and model.inflation.proof.exact
    model.reset_classifier(7)
    assert type(model.get_classifier()) is nn.Linear and model(torch.randn(2, 3, 2, 16, 16)).shape == (2, 7)


def test_logits_that_no_layer_makes(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = with_classifier(nn.Identity())
            self.text = nn.Parameter(torch.randn(5, 16))

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.body(x)) @ self.text.t()

    network = Net().eval()
    model = stvid.inflate(network, num_frames=2, img_size=16)
    clip = torch.randn(2, 3, 2, 16, 16)
    stvid.save_model(model, tmp_path / "x.safetensors")
    again = stvid.inflate(Net().eval(), num_frames=2, img_size=16)
    stvid.load_checkpoint(again, tmp_path / "x.safetensors")
    assert torch.equal(again(clip), model(clip))
    seven = stvid.inflate(network, num_frames=2, img_size=16, num_classes=7)
    assert seven(clip).shape == (2, 7) and seven.num_classes == 7
    assert any("on top of the network" in rule.rule for rule in seven.inflation.rules)


def test_hooks_and_attributes_of_replaced_layers_stay() -> None:
    network = build("hornet")
    network.stem.note = "mine"
    network.stem.register_forward_hook(lambda module, inputs, output: output * 2)
    model = stvid.inflate(network, num_frames=2, img_size=SIDE)
    assert isinstance(model.network.stem, TemporalConv) and model.network.stem.note == "mine"
    assert model.inflation.proof.exact
