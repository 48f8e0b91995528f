from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F

from stvid.config import AugmentConfig
from stvid.data import transforms
from stvid.data.transforms import RANDAUGMENT_OPS, CropBox, TrainTransform, normalize
from stvid.errors import ConfigError
from stvid.protocol import Protocol

NAMES = ("left", "right", "clap", "read")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def noise(frames: int = 4, height: int = 48, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


def ramp(frames: int, height: int, width: int) -> torch.Tensor:
    """Red is the column, green the row, blue the number of the frame."""
    video = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    video[..., 0] = torch.arange(width, dtype=torch.uint8)
    video[..., 1] = torch.arange(height, dtype=torch.uint8)[:, None]
    video[..., 2] = torch.arange(frames, dtype=torch.uint8)[:, None, None]
    return video


def plain(**changes: object) -> AugmentConfig:
    return AugmentConfig(**{"resize": "none", "hflip": 0.0, **changes})  # type: ignore[arg-type]


def make(augment: AugmentConfig, *, short_side: int = 48, crop: int = 32) -> TrainTransform:
    return TrainTransform(Protocol(frames=4, short_side=short_side, crop=crop), augment, NAMES)


def labels(*names: str) -> np.ndarray:
    return np.array([NAMES.index(name) for name in names], dtype=np.int64)


class TestTrainTransform:
    @pytest.mark.parametrize("resize", ["random_resized_crop", "short_side_jitter", "none"])
    @pytest.mark.parametrize("size", [(48, 64), (64, 48), (17, 23), (300, 40), (1, 1), (1, 500)])
    def test_shape_type_and_box_for_any_frame_size(self, resize: str, size: tuple[int, int]) -> None:
        transform = make(AugmentConfig(resize=resize, jitter=(32, 60)))  # type: ignore[arg-type]
        for seed in range(10):
            clip, ids, box, _ = transform(noise(3, *size), labels("clap"), rng(seed))
            assert clip.shape == (3, 3, 32, 32)
            assert clip.dtype == torch.uint8
            assert ids.tolist() == [2]
            assert box.top >= 0 and box.left >= 0 and box.height >= 1 and box.width >= 1
            assert box.top + box.height <= size[0] and box.left + box.width <= size[1]

    def test_is_a_pure_function_of_the_generator(self) -> None:
        augment = AugmentConfig(randaugment_magnitude=9, randaugment_layers=3, erasing=0.5, hflip=0.5)
        frames, transform = noise(), make(augment)
        first = [transform(frames, labels("clap"), rng(seed)) for seed in range(12)]
        torch.rand(7), np.random.default_rng().random(3)  # whatever else runs in between
        again = [transform(frames, labels("clap"), rng(seed)) for seed in range(12)]
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one[0], other[0])
            assert one[2:] == other[2:]
        assert len({one[2] for one in first}) > 8, "different seeds must give different crops"

    def test_either_memory_order_gives_the_same_clip(self) -> None:
        frames, transform = noise(), make(AugmentConfig(randaugment_magnitude=5))
        for seed in range(5):
            one = transform(frames, labels("clap"), rng(seed))[0]
            other = transform(frames.permute(0, 3, 1, 2).contiguous(), labels("clap"), rng(seed))[0]
            assert torch.equal(one, other)

    @pytest.mark.parametrize("bad", [torch.zeros(4, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8)])
    def test_other_tensors_are_refused(self, bad: torch.Tensor) -> None:
        with pytest.raises(ValueError, match="uint8"):
            make(plain())(bad, labels("clap"), rng())

    def test_source_frames_are_never_changed(self) -> None:
        frames = noise(4, 32, 32)
        before = frames.clone()
        transform = make(plain(erasing=1.0, randaugment_magnitude=10.0, randaugment_layers=6), short_side=32)
        for seed in range(20):
            clip = transform(frames, labels("clap"), rng(seed))[0]
            assert not torch.equal(clip, before.permute(3, 0, 1, 2))
        assert torch.equal(frames, before)

    def test_equal_size_passes_untouched(self) -> None:
        frames = noise(4, 32, 32)
        clip, _, box, flipped = make(plain(), short_side=32)(frames, labels("clap"), rng())
        assert torch.equal(clip, frames.permute(3, 0, 1, 2))
        assert clip.data_ptr() == frames.data_ptr(), "no copy where nothing is to be done"
        assert box == CropBox(0, 0, 32, 32)
        assert not flipped

    def test_box_says_which_source_pixels_are_shown(self) -> None:
        frames = ramp(4, 48, 64)
        transform = make(plain())  # the short side has the right size: cut only
        tops, lefts = set(), set()
        for seed in range(200):
            clip, _, box, _ = transform(frames, labels("clap"), rng(seed))
            assert clip[0, 0, 0].tolist() == list(range(int(box.left), int(box.left) + 32))
            assert clip[1, 0, :, 0].tolist() == list(range(int(box.top), int(box.top) + 32))
            assert clip[2, :, 5, 5].tolist() == [0, 1, 2, 3]
            tops.add(box.top)
            lefts.add(box.left)
        assert tops == set(range(17)), "every position is possible, the last included"
        assert lefts == set(range(33))

    def test_box_of_a_scaled_clip(self) -> None:
        frames = ramp(2, 96, 120)
        transform = make(plain(), short_side=48, crop=32)  # half the size
        for seed in range(10):
            clip, _, box, _ = transform(frames, labels("clap"), rng(seed))
            assert (box.height, box.width) == (64, 64)
            assert abs(clip[0, 0, 0].float().mean() - (box.left + 31.5)) < 0.6
            assert abs(clip[1, 0, :, 0].float().mean() - (box.top + 31.5)) < 0.6

    def test_jitter_scales_the_short_side_to_its_range(self) -> None:
        transform = make(AugmentConfig(resize="short_side_jitter", jitter=(40, 80)), crop=40)
        sides = {transform(noise(1, 100, 140), labels("clap"), rng(seed))[2].height for seed in range(300)}
        assert min(sides) == 50, "short side 80: half of it"
        assert max(sides) == 100, "short side 40: all of it"
        assert len(sides) > 30

    def test_inception_boxes_keep_their_ranges(self) -> None:
        transform = make(AugmentConfig(scale=(0.2, 0.5), ratio=(0.75, 4 / 3)))
        boxes = [transform(noise(1, 200, 300), labels("clap"), rng(seed))[2] for seed in range(200)]
        shares = [box.height * box.width / 60000 for box in boxes]
        aspects = [box.width / box.height for box in boxes]
        assert 0.195 < min(shares) < 0.22 and 0.48 < max(shares) < 0.505
        assert 0.74 < min(aspects) < 0.8 and 1.27 < max(aspects) < 1.35
        assert abs(np.mean(np.log(aspects))) < 0.03, "wide and tall are equally frequent"

    def test_inception_fallback_keeps_the_aspect(self) -> None:
        transform = make(AugmentConfig(scale=(1.0, 1.0), ratio=(0.75, 1.25)))
        wide = transform(noise(1, 20, 200), labels("clap"), rng())[2]
        assert (wide.height, wide.width) == (20, 25)
        tall = transform(noise(1, 200, 30), labels("clap"), rng())[2]
        assert (tall.height, tall.width) == (40, 30)

    def test_all_frames_are_treated_alike(self) -> None:
        frames = noise(1).expand(6, -1, -1, -1)
        transform = make(AugmentConfig(randaugment_magnitude=9, randaugment_layers=4, randaugment_prob=1.0))
        for seed in range(30):
            clip = transform(frames, labels("clap"), rng(seed))[0]
            assert torch.equal(clip, clip[:, :1].expand_as(clip))


class TestFlip:
    def test_flip_mirrors_left_to_right(self) -> None:
        frames = ramp(2, 48, 64)
        clip, ids, box, flipped = make(plain(hflip=1.0))(frames, labels("clap"), rng())
        assert flipped
        assert clip[0, 0, 0].tolist() == list(range(int(box.left) + 31, int(box.left) - 1, -1))
        assert ids.tolist() == labels("clap").tolist()

    def test_probability(self) -> None:
        transform = make(plain(hflip=0.3))
        flips = [transform(noise(1), labels("clap"), rng(seed))[3] for seed in range(500)]
        assert 0.23 < np.mean(flips) < 0.37

    def test_pairs_exchange_their_labels(self) -> None:
        transform = make(plain(hflip=1.0, hflip_pairs=[["left", "right"]]))
        assert transform(noise(1), labels("left"), rng())[1].tolist() == labels("right").tolist()
        assert transform(noise(1), labels("right"), rng())[1].tolist() == labels("left").tolist()
        assert transform(noise(1), labels("clap", "left"), rng())[1].tolist() == labels("clap", "right").tolist()

    def test_labels_are_kept_without_a_flip(self) -> None:
        transform = make(plain(hflip=0.0, hflip_pairs=[["left", "right"]]))
        assert transform(noise(1), labels("left"), rng())[1].tolist() == labels("left").tolist()

    def test_the_given_labels_are_not_changed(self) -> None:
        given = labels("left")
        make(plain(hflip=1.0, hflip_pairs=[["left", "right"]]))(noise(1), given, rng())
        assert given.tolist() == labels("left").tolist()

    def test_kept_classes_are_never_mirrored_and_nothing_else_changes(self) -> None:
        keep = make(AugmentConfig(hflip=1.0, hflip_keep=["read"]))
        free = make(AugmentConfig(hflip=1.0))
        frames = noise(2)
        for seed in range(5):
            kept, _, box, flipped = keep(frames, labels("read"), rng(seed))
            mirrored, _, other_box, _ = free(frames, labels("read"), rng(seed))
            assert not flipped
            assert torch.equal(kept, mirrored.flip(-1))
            assert box == other_box
        assert keep(frames, labels("clap"), rng())[3]
        assert not keep(frames, labels("clap", "read"), rng())[3], "one such class among several is enough"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hflip_pairs": [["left", "rihgt"]]}, r"augment.hflip_pairs: 'rihgt' is not a class.*nearest: right"),
            ({"hflip_keep": ["reed"]}, r"augment.hflip_keep: 'reed' is not a class.*nearest: read"),
            ({"hflip_pairs": [["left"]]}, "hflip_pairs.*pair"),
            ({"hflip_pairs": [["left", "left"]]}, "'left' occurs twice"),
            ({"hflip_pairs": [["left", "right"], ["right", "clap"]]}, "'right' occurs twice"),
            ({"hflip_pairs": [["left", "right"]], "hflip_keep": ["left"]}, "'left' occurs twice"),
        ],
    )
    def test_wrong_classes(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            make(plain(**changes))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hflip": 1.5}, "hflip"),
        ({"erasing": -0.1}, "erasing"),
        ({"randaugment_prob": 2}, "randaugment_prob"),
        ({"randaugment_magnitude": 11}, "randaugment_magnitude"),
        ({"randaugment_std": -1}, "randaugment_std"),
        ({"randaugment_layers": -1}, "randaugment_layers"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.8, 0.2)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"erasing_scale": (0.1, 1.1)}, "erasing_scale"),
        ({"erasing_mode": "pixel"}, "erasing_mode"),
        ({"resize": "short_side_jitter", "jitter": (20, 40)}, "jitter"),
        ({"resize": "squash"}, "resize"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^augment\.{field}: "):
        make(plain(**changes))


def strength(level: float, sign: int) -> float:
    return max(0.1, 1 + sign * 0.9 * level)


def moved(frames: torch.Tensor, right: float, down: float) -> torch.Tensor:
    return F.affine(frames, 0.0, [round(right), round(down)], 1.0, [0.0], fill=[10.0, 20.0, 30.0])


# The operations must do what torchvision's do, which follow PIL, at the strengths of timm's increasing set.
EXPECTED_OPS = {
    "autocontrast": lambda x, level, sign: F.autocontrast(x),
    "equalize": lambda x, level, sign: F.equalize(x),
    "invert": lambda x, level, sign: 255 - x,
    "posterize": lambda x, level, sign: F.posterize(x, max(1, 4 - int(level * 4))),
    "solarize": lambda x, level, sign: F.solarize(x, 256 - level * 256) if level else x,
    "solarize_add": lambda x, level, sign: torch.where(x < 128, x.int() + int(110 * level), x.int()),
    "color": lambda x, level, sign: F.adjust_saturation(x, strength(level, sign)),
    "contrast": lambda x, level, sign: F.adjust_contrast(x, strength(level, sign)),
    "brightness": lambda x, level, sign: F.adjust_brightness(x, strength(level, sign)),
    "sharpness": lambda x, level, sign: F.adjust_sharpness(x, strength(level, sign)),
    "translate_x": lambda x, level, sign: moved(x, 0.45 * level * sign * x.shape[-1], 0),
    "translate_y": lambda x, level, sign: moved(x, 0, 0.45 * level * sign * x.shape[-2]),
}


class TestRandAugment:
    @pytest.mark.parametrize("sign", [-1, 1])
    @pytest.mark.parametrize("level", [0.0, 0.25, 0.75, 1.0])
    @pytest.mark.parametrize("name", sorted(EXPECTED_OPS))
    def test_equals_torchvision(self, name: str, level: float, sign: int) -> None:
        frames = noise(3, 40, 52).permute(0, 3, 1, 2)
        got = transforms._OPS[name](frames, level, sign, [10, 20, 30])
        assert got.dtype == torch.uint8
        assert torch.equal(got.int(), EXPECTED_OPS[name](frames, level, sign).int())

    def test_rotation(self) -> None:
        frames = torch.zeros(1, 3, 101, 101, dtype=torch.uint8)
        frames[:, :, 48:53, 88:93] = 255  # 40 pixels to the right of the centre
        turned = transforms._OPS["rotate"](frames, 1.0, 1, [0, 0, 0])[0, 0].float()
        y, x = (turned.sum(1) @ torch.arange(101.0), turned.sum(0) @ torch.arange(101.0))
        angle = math.degrees(math.atan2(y / turned.sum() - 50, x / turned.sum() - 50))
        assert abs(angle - 30) < 1, "30 degrees at full strength, one way"
        back = transforms._OPS["rotate"](frames, 1.0, -1, [0, 0, 0])[0, 0]
        assert torch.equal(back, turned.to(torch.uint8).flip(0)), "and the other"

    @pytest.mark.parametrize("name", ["shear_x", "shear_y"])
    def test_shear(self, name: str) -> None:
        frames = torch.full((1, 3, 100, 100), 255, dtype=torch.uint8)
        sheared = transforms._OPS[name](frames, 1.0, 1, [0, 0, 0])[0, 0]
        if name == "shear_y":
            sheared = sheared.T
        filled = (sheared == 0).sum(1)
        assert filled[0] <= 1, "the first line stays"
        assert abs(int(filled[99]) - 30) <= 1, "the last one moves by 0.3 of the height"

    @pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
    def test_geometric_operations_fill_with_the_mean_colour(self, name: str) -> None:
        protocol = Protocol(short_side=64, crop=64, mean=(0.1, 0.5, 0.9))
        fill = TrainTransform(protocol, plain(), NAMES)._fill
        assert fill == [26, 128, 230]
        moved = transforms._OPS[name](torch.zeros(2, 3, 64, 64, dtype=torch.uint8), 1.0, 1, fill)
        colours = {tuple(colour) for colour in moved.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
        assert tuple(fill) in colours and (0, 0, 0) in colours

    def test_no_operation_mirrors(self) -> None:
        assert not any("flip" in name for name in RANDAUGMENT_OPS)
        assert len(RANDAUGMENT_OPS) == 15, "as many as timm's increasing set"
        # A bright left half stays left, whatever is done to it at a strength that keeps the middle in sight.
        frames = torch.full((1, 3, 64, 64), 60, dtype=torch.uint8)
        frames[..., :32] = 100
        for name in RANDAUGMENT_OPS:
            for sign in (-1, 1):
                result = transforms._OPS[name](frames, 0.2, sign, [80, 80, 80])[0, 0, 28:36].float()
                left, right = result[:, 16:20].mean(), result[:, 48:52].mean()
                # equalize has only two values to spread, and may leave them as they are
                assert left < right if name == "invert" else left > right, name

    def test_magnitude_and_probability(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[str, float, int]] = []

        def record(name: str) -> object:
            def operation(frames: torch.Tensor, level: float, sign: int, fill: list[int]) -> torch.Tensor:
                calls.append((name, level, sign))
                return frames

            return operation

        monkeypatch.setattr(transforms, "_OPS", {name: record(name) for name in RANDAUGMENT_OPS})
        transform = make(plain(randaugment_magnitude=7.0, randaugment_layers=4, randaugment_std=0.5))
        for seed in range(500):
            transform(noise(1, 8, 8), labels("clap"), rng(seed))
        assert 0.45 < len(calls) / 2000 < 0.55, "each of 4 layers with probability 0.5"
        levels = np.array([level for _, level, _ in calls])
        assert abs(levels.mean() - 0.7) < 0.01 and abs(levels.std() - 0.05) < 0.005
        assert {name for name, _, _ in calls} == set(RANDAUGMENT_OPS)
        assert 0.4 < np.mean([sign > 0 for _, _, sign in calls]) < 0.6

        calls.clear()
        transform = make(plain(randaugment_magnitude=10.0, randaugment_std=5.0, randaugment_prob=1.0))
        for seed in range(100):
            transform(noise(1, 8, 8), labels("clap"), rng(seed))
        assert len(calls) == 200
        assert max(level for _, level, _ in calls) == 1.0, "never beyond magnitude 10"

        calls.clear()
        make(plain(randaugment_magnitude=0.0))(noise(1, 8, 8), labels("clap"), rng())
        assert calls == []


class TestColour:
    def test_off_changes_nothing_and_draws_nothing(self) -> None:
        frames = noise()
        expected = make(plain(hflip=0.5, erasing=0.5))(frames, labels("clap"), rng(3))
        silent = plain(hflip=0.5, erasing=0.5, color_jitter=(0.0, 0.0, 0.0, 0.0), color_jitter_prob=1.0, grayscale=0.0)
        clip, *rest = make(silent)(frames, labels("clap"), rng(3))
        assert torch.equal(clip, expected[0])
        assert rest[1:] == list(expected[2:])

    @pytest.mark.parametrize("number", range(4))
    def test_each_amount_changes_its_own_property(self, number: int) -> None:
        amounts = [0.0] * 4
        amounts[number] = 0.5
        frames = torch.tensor([200, 100, 60], dtype=torch.uint8).expand(2, 48, 48, 3).clone()
        frames[:, 16:32] = torch.tensor([120, 80, 150], dtype=torch.uint8)
        before = frames[0, :, :, :].double() / 255
        for seed in range(8):
            clip, *_ = make(plain(color_jitter=tuple(amounts)), crop=48)(frames, labels("clap"), rng(seed))
            after = clip[:, 0].permute(1, 2, 0).double() / 255
            colours = [(colorsys.rgb_to_hsv(*pair[y, 0].tolist())) for pair in (before, after) for y in (0, 20)]
            (h0, s0, v0), (g0, t0, w0), (h1, s1, v1), (g1, t1, w1) = colours
            if number == 0:  # one factor for all pixels, from 0.5 to 1.5, as far as white
                assert (h1, s1) == pytest.approx((h0, s0), abs=0.02) or max(v1, w1) == 1.0
                assert 0.49 < v1 / v0 < 1.51
            elif number == 1:  # differences from the mean grey grow or shrink by one factor
                factor = (after[0, 0] - after[20, 0]) / (before[0, 0] - before[20, 0])
                assert (factor - factor.mean()).abs().max() < 0.1 or after.max() == 1.0
            elif number == 2:  # hue is kept, and both regions lose or gain colour together
                assert abs(h1 - h0) < 0.02 and abs(g1 - g0) < 0.02
                assert (s1 > s0) == (t1 > t0)
            else:  # hue turns by the same angle; saturation and value are kept
                assert ((h1 - h0) - (g1 - g0) + 0.5) % 1 - 0.5 == pytest.approx(0, abs=0.02)
                assert (s1, v1, t1, w1) == pytest.approx((s0, v0, t0, w0), abs=0.02)

    def test_amounts_vary_within_their_range(self) -> None:
        frames = torch.full((1, 48, 48, 3), 100, dtype=torch.uint8)
        transform = make(plain(color_jitter=(0.4, 0.0, 0.0, 0.0)))
        seen = [int(transform(frames, labels("clap"), rng(seed))[0].unique()) for seed in range(60)]
        assert 60 <= min(seen) < 66 and 134 < max(seen) <= 140

    def test_all_frames_of_a_clip_are_treated_alike(self) -> None:
        frames = noise(1).expand(5, -1, -1, -1).contiguous()
        transform = make(plain(color_jitter=(0.4, 0.4, 0.4, 0.2), grayscale=0.3))
        for seed in range(10):
            clip, *_ = transform(frames, labels("clap"), rng(seed))
            assert all(torch.equal(clip[:, frame], clip[:, 0]) for frame in range(5))

    def test_the_result_has_the_memory_order_of_the_decoder(self) -> None:
        for augment in (plain(color_jitter=(0.4, 0.4, 0.4, 0.2)), plain(grayscale=1.0)):
            clip, *_ = make(augment)(noise(), labels("clap"), rng())
            assert clip.permute(1, 2, 3, 0).is_contiguous()

    def test_grayscale(self) -> None:
        frames = noise()
        clip, *_ = make(plain(grayscale=1.0), crop=48, short_side=48)(frames, labels("clap"), rng())
        colour, *_ = make(plain(), crop=48, short_side=48)(frames, labels("clap"), rng())
        luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601
        for channel in clip:
            assert (channel - luma).abs().max() < 1.1  # rounded down

    def test_probabilities(self) -> None:
        frames = noise(1)
        jitter = make(plain(color_jitter=(0.4, 0.4, 0.4, 0.2), color_jitter_prob=0.25))
        gray = make(plain(grayscale=0.25))
        changed, grey = 0, 0
        for seed in range(200):
            expected = make(plain())(frames, labels("clap"), rng(seed))[0]
            changed += not torch.equal(jitter(frames, labels("clap"), rng(seed))[0], expected)
            clip = gray(frames, labels("clap"), rng(seed))[0]
            grey += torch.equal(clip[0], clip[1])
        assert 30 < changed < 70 and 30 < grey < 70


class TestErasing:
    def test_one_box_of_all_frames_becomes_noise(self) -> None:
        frames = torch.full((5, 64, 64, 3), 7, dtype=torch.uint8)
        transform = make(plain(erasing=1.0), short_side=64, crop=64)
        for seed in range(20):
            clip = transform(frames, labels("clap"), rng(seed))[0]
            changed = (clip != 7).any(0)  # (T, H, W)
            anywhere = changed.any(0)
            rows, columns = anywhere.any(1).nonzero().flatten(), anywhere.any(0).nonzero().flatten()
            height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            assert 0.01 < height * width / 4096 < 0.36
            inside = changed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert inside.float().mean() > 0.95, "the same box in every frame"
            assert not torch.equal(clip[:, 0], clip[:, 1]), "with other noise in each"

    def test_noise_is_standard_normal_after_normalisation(self) -> None:
        protocol = Protocol(short_side=64, crop=64, mean=(0.45, 0.5, 0.55), std=(0.1, 0.15, 0.2))
        augment = plain(erasing=1.0, erasing_scale=(0.3, 0.3))
        transform = TrainTransform(protocol, augment, NAMES)
        clip = transform(torch.zeros(16, 64, 64, 3, dtype=torch.uint8), labels("clap"), rng(3))[0]
        erased = (clip != 0).any(0).any(0)
        values = normalize(clip, protocol.mean, protocol.std)[:, :, erased]
        assert values.mean(dim=(1, 2)).abs().max() < 0.05
        assert (values.std(dim=(1, 2)) - 1).abs().max() < 0.05

    def test_mode_zeros_is_zero_after_normalisation(self) -> None:
        protocol = Protocol(short_side=64, crop=64, mean=(0.45, 0.5, 0.55), std=(0.1, 0.15, 0.2))
        frames = torch.zeros(4, 64, 64, 3, dtype=torch.uint8)
        modes = [TrainTransform(protocol, plain(erasing=1.0, erasing_mode=mode), NAMES) for mode in ("zeros", "noise")]
        for seed in range(10):
            clip, noisy = (transform(frames, labels("clap"), rng(seed))[0] for transform in modes)
            erased = (clip != 0).any(0)
            assert erased.any() and torch.equal(erased, erased[:1].expand_as(erased)), "the same box in every frame"
            assert torch.equal(erased.any(0), (noisy != 0).any(0).any(0)), "the box that noise would have filled"
            values = normalize(clip, protocol.mean, protocol.std)[:, erased]
            assert values.abs().max() <= 0.5 / 255 / 0.1 + 1e-6, "as near to zero as uint8 allows"

    def test_probability(self) -> None:
        frames = torch.full((1, 32, 32, 3), 7, dtype=torch.uint8)
        transform = make(plain(erasing=0.25), short_side=32)
        erased = [bool((transform(frames, labels("clap"), rng(seed))[0] != 7).any()) for seed in range(400)]
        assert 0.18 < np.mean(erased) < 0.32


class TestNormalize:
    def test_values(self) -> None:
        clips = noise(4, 8, 8).permute(3, 0, 1, 2)[None]
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        got = normalize(clips, mean, std)
        expected = (clips.double() / 255 - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)
        assert got.dtype == torch.float32 and got.is_contiguous()
        assert (got - expected).abs().max() < 1e-5

    def test_floats_are_0_to_1_and_are_not_changed(self) -> None:
        clips = noise(4, 8, 8).permute(3, 0, 1, 2)[None]
        floats = clips.float() / 255
        before = floats.clone()
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        assert torch.allclose(normalize(floats, mean, std), normalize(clips, mean, std), atol=1e-5)
        assert torch.equal(floats, before)

    def test_any_leading_dimensions_and_type(self) -> None:
        clips = torch.full((2, 5, 3, 4, 6, 6), 255, dtype=torch.uint8)
        got = normalize(clips, (0.5,) * 3, (0.25,) * 3, dtype=torch.bfloat16)
        assert got.shape == clips.shape and got.dtype == torch.bfloat16
        assert (got == 2).all()
        assert normalize(clips[0, 0], (0.5,) * 3, (0.25,) * 3).shape == (3, 4, 6, 6)

    def test_into_memory_that_is_there(self) -> None:
        clips = torch.randint(0, 256, (2, 3, 4, 6, 5), dtype=torch.uint8)
        memory = torch.full((5, 3, 4, 6, 5), 7.0)
        got = normalize(clips, (0.5,) * 3, (0.25,) * 3, out=memory[1:3])
        assert got.data_ptr() == memory[1].data_ptr()
        assert torch.equal(memory[1:3], normalize(clips, (0.5,) * 3, (0.25,) * 3))
        assert (memory[[0, 3, 4]] == 7).all()
        for wrong in (memory, memory[:2].double()):
            with pytest.raises(ValueError, match=r"out must be torch.float32 \(2, 3, 4, 6, 5\), not"):
                normalize(clips, (0.5,) * 3, (0.25,) * 3, out=wrong)
