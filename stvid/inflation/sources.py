"""Where 2D networks come from: timm, torchvision, repositories of the Hugging Face hub, and files of their weights."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stvid.errors import CheckpointError, ConfigError, UnknownNameError, nearest
from stvid.hub import fetch_repo, read_config, weights_in
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["HUB", "LIBRARIES", "EncoderClassifier", "ImageOrigin", "find_origin", "image_models", "parse_source"]

LIBRARIES = ("timm", "torchvision")
HUB = "hf-hub:"
SHOWN = 6
# Models of torchvision that take images but do not classify them, or classify something else.
_OTHER_TASKS = ("detection", "segmentation", "video", "optical_flow", "quantization")
# torchvision's published weights of these were trained on images that the network itself normalises in another way.
_TRANSFORM_INPUT = ("googlenet", "inception_v3")


def parse_source(source: str) -> tuple[str, str]:
    """Splits ``timm:convnext_tiny`` (or ``timm/convnext_tiny``) into library and name.

    Raises:
        UnknownNameError: If there is no such library or model; the message lists the nearest names.
    """
    library, _, name = source.replace("/", ":", 1).partition(":")
    if library not in LIBRARIES or not name:
        full = [f"{library}:{source}" for library in LIBRARIES if source in image_models(library)]
        hint = " or ".join(full) if full else "timm:<name> or torchvision:<name>"
        raise UnknownNameError(f"{source!r}: is no 2D network; name one as {hint}")
    names = image_models(library)
    if name.split(".")[0] not in names:
        if library == "torchvision" and (task := _other_task(name)):
            article = "an" if task[0] in "aeiou" else "a"
            raise UnknownNameError(f"{source}: is {article} {task} model; only image classifiers can be inflated")
        raise UnknownNameError(f"{source}: {library} has no such image classifier{nearest(name, names)}")
    return library, name


def find_origin(
    source: str, options: Mapping[str, Any], *, weights: Any = None, pretrained: bool = False
) -> tuple[ImageOrigin, Any, bool]:
    """Returns a named 2D network, the file of its weights, and whether the library's published weights are taken.

    Args:
        source: As for `parse_source`, or ``hf-hub:organisation/name@revision``, a repository of an image model of timm,
            whose weights, sizes and normalisation are taken.
        options: Further arguments of the library's function.
        weights: The weights that the user gives.
        pretrained: Whether the user asks for published weights.

    Raises:
        UnknownNameError: If there is no such library or model.
        ConfigError: If weights are given for a repository, which has its own, or its images have other channels.
        CheckpointError: If the repository cannot be had, or holds no image model of timm.
    """
    if not source.startswith(HUB):
        return ImageOrigin(*parse_source(source), options=dict(options)), weights, pretrained
    if weights is not None:
        raise ConfigError(f"{source}: has its own weights; others are for timm:<name> and torchvision:<name>")
    config = read_config(fetch_repo(source))
    if config.kind != "timm":
        raise CheckpointError(f"{source}: is a video model ({config.kind}), not an image model of timm")
    name = str(config.values["architecture"])
    if name.partition(".")[0] not in image_models("timm"):
        hint = nearest(name, image_models("timm"))
        raise UnknownNameError(f"{source}: timm {_version_of_timm()} has no image classifier {name!r}{hint}")
    origin = ImageOrigin(
        "timm", name, {**_model_arguments(config.values), **options}, _pretrained_config(config.values), source
    )
    channels = dict(origin.config or {}).get("input_size", (3,))[0]
    if channels != 3:
        raise ConfigError(f"{source}: takes images of {channels} channels, but frames have 3")
    files = weights_in(config.path.parent)
    if len(files) > 1:
        raise CheckpointError(f"{source}: its weights are in {len(files)} files, which is not known of timm")
    return origin, files[0], False


def _version_of_timm() -> str:
    import timm

    return str(timm.__version__)


def _pretrained_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns timm's description of weights from a ``config.json``, in which it may lie inside or be the whole.

    Entries of the file itself win, as in timm (``models/_hub.py``); those that this version does not know are left out.
    """
    import timm

    inner = values.get("pretrained_cfg")
    found = {**(inner if isinstance(inner, Mapping) else values)}
    for key in ("num_classes", "label_names", "label_descriptions"):
        if key in values:
            found[key] = values[key]
    known = {entry.name for entry in dataclasses.fields(timm.models.PretrainedCfg)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if key in known}


def _model_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that built the model of a ``config.json``, without those that `ImageOrigin` decides."""
    arguments = values.get("model_args")
    decided = ("img_size", "in_chans", "num_classes", "pretrained")
    return {key: value for key, value in arguments.items() if key not in decided} if arguments else {}


@functools.cache
def image_models(library: str) -> tuple[str, ...]:
    """Returns the names of a library's image classifiers."""
    if library == "timm":
        import timm

        return tuple(timm.list_models())
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def _other_task(name: str) -> str:
    import torchvision

    for task in _OTHER_TASKS:
        if name in torchvision.models.list_models(module=getattr(torchvision.models, task)):
            return task.replace("_", " ")
    return ""


class EncoderClassifier(nn.Module):
    """An encoder that returns a map or tokens, with a linear classifier of their mean.

    Args:
        encoder: Takes images (B, 3, H, W) to (B, C, h, w) or (B, N, C).
        num_classes: Number of logits.
        img_size: (height, width) of the images.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, img_size: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        with torch.no_grad():  # timm's `num_features` are not always those of the output
            features = self.pool(copy.deepcopy(encoder).to("meta")(torch.empty(1, 3, *img_size, device="meta")))
        self.head = nn.Linear(features.shape[1], num_classes)

    @staticmethod
    def pool(features: Tensor) -> Tensor:
        """Returns the mean over places, (B, C)."""
        return features.mean((2, 3)) if features.dim() == 4 else features.mean(1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, num_classes)."""
        return self.head(self.pool(self.encoder(images)))


@dataclass(frozen=True)
class ImageOrigin:
    """A 2D network of a library, and how to build it.

    Attributes:
        library: ``timm`` or ``torchvision``.
        name: Its name there; timm's may have a tag (``convnext_tiny.fb_in1k``).
        options: Further arguments of the library's function.
        config: The ``pretrained_cfg`` of a repository, in place of the library's own; None without a repository.
        repo: The repository, such as ``hf-hub:timm/resnet18.a1_in1k``; empty without one.
    """

    library: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    repo: str = ""

    def __str__(self) -> str:
        return self.repo or f"{self.library}:{self.name}"

    def settings(self) -> dict[str, Any]:
        """Returns ``mean``, ``std``, ``crop`` and ``short_side`` of the images that the network was trained on."""
        if self.library == "timm":
            found = self._timm_config()
            crop = min(found.input_size[1:])
            short_side = max(crop, round(crop / (found.crop_pct or 1.0)))
            return {"mean": found.mean, "std": found.std, "crop": crop, "short_side": short_side}
        import torchvision

        weights = torchvision.models.get_model_weights(self.name)
        if not len(weights):
            return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop": 224, "short_side": 256}
        images = next(iter(weights)).transforms()
        crop = images.crop_size[0]
        short_side = max(crop, images.resize_size[0])
        return {"mean": tuple(images.mean), "std": tuple(images.std), "crop": crop, "short_side": short_side}

    def num_classes(self) -> int:
        """Returns the classes of the published weights; 0 if those have no classifier."""
        if self.library == "torchvision":
            return 1000
        return int(self._timm_config().num_classes)

    def _timm_config(self) -> Any:
        import timm

        if self.config is not None:
            return timm.models.PretrainedCfg(**self.config)
        try:
            return timm.get_pretrained_cfg(self.name)
        except RuntimeError:  # the model has no such tag
            tags = timm.list_pretrained(f"{self.name.split('.')[0]}.*")
            raise UnknownNameError(f"{self}: timm has no such weights{nearest(self.name, tags)}") from None

    def build(self, *, num_classes: int, img_size: tuple[int, int], pretrained: bool = False) -> nn.Module:
        """Builds the network.

        Args:
            num_classes: Number of logits.
            img_size: (height, width) in pixels, for networks that are built for one size.
            pretrained: Whether to take published weights, from the network or the library's cache.

        Returns:
            The network; an encoder that has no classifier in the library comes in an `EncoderClassifier`, unless
            `num_classes` is 0.

        Raises:
            TypeError: If the library's function does not take an option.
            ConfigError: If the network cannot be built at this size.
        """
        if num_classes < 0:
            raise ConfigError(f"num_classes {num_classes}: must be a whole number; 0 leaves the classifier out")
        make = self._build_timm if self.library == "timm" else self._build_torchvision
        try:
            network = make(num_classes, img_size, pretrained)
        except TypeError:
            raise  # names an option that the library's function does not take
        except Exception as error:
            message = " ".join(str(error).split())[:200] or type(error).__name__
            if pretrained:
                raise ConfigError(
                    f"{self}: the published weights cannot be had ({message}); without a network give a file of them"
                ) from error
            raise ConfigError(
                f"{self}: cannot be built for images of {img_size[0]}x{img_size[1]}: {message}"
            ) from error
        if num_classes and getattr(network, "num_classes", num_classes) == 0:
            return EncoderClassifier(network, num_classes, img_size)
        return network

    def _build_timm(self, num_classes: int, img_size: tuple[int, int], pretrained: bool) -> nn.Module:
        import timm

        options = {"num_classes": num_classes, **self.options}
        if self.config is not None:
            options["pretrained_cfg"] = dict(self.config)
        own_size = self.config is None and tuple(self._timm_config().input_size[1:]) == tuple(img_size)
        if own_size or "img_size" in options:
            return timm.create_model(self.name, pretrained=pretrained, **options)
        try:
            return timm.create_model(self.name, pretrained=pretrained, img_size=tuple(img_size), **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
        return timm.create_model(self.name, pretrained=pretrained, **options)  # takes images of any size

    def _build_torchvision(self, num_classes: int, img_size: tuple[int, int], pretrained: bool) -> nn.Module:
        import torchvision

        options = dict(self.options)
        if not pretrained:
            options["num_classes"] = num_classes
        if self.name.startswith("vit_"):
            options.setdefault("image_size", img_size[0])
        elif self.name.startswith("maxvit"):
            options.setdefault("input_size", tuple(img_size))
        elif self.name in _TRANSFORM_INPUT and not pretrained:
            options = {"transform_input": True, "aux_logits": False, "init_weights": True, **options}
        network = torchvision.models.get_model(self.name, weights="DEFAULT" if pretrained else None, **options)
        if self.name in _TRANSFORM_INPUT:  # published weights bring auxiliary classifiers, which only training used
            network.aux_logits = False
            network.aux1 = network.aux2 = network.AuxLogits = None
        return network

    def fit_state(
        self, network: nn.Module, state: Mapping[str, Tensor], *, name: str
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Turns the published layouts of a network's weights into the library's keys and shapes.

        Args:
            network: Built by `build`.
            state: Flat mapping without wrappers.
            name: How messages call the file.

        Returns:
            The state, which may still have other keys, shapes or classes; and the keys of auxiliary classifiers, which
            are left out of it.

        Raises:
            CheckpointError: If timm fails to read it.
        """
        if isinstance(network, EncoderClassifier):
            inner, unused = self.fit_state(network.encoder, state, name=name)
            return {f"encoder.{key}": value for key, value in inner.items()}, unused
        fitted = dict(state)
        dropped: list[str] = []
        if self.library == "torchvision":
            dropped = [key for key in state if re.match(r"(aux1|aux2|AuxLogits)\.", key)]
            fitted = {
                re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value
                for key, value in state.items()
                if key not in dropped
            }
        elif _differences(network.state_dict(), fitted):
            convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
            if convert is not None:
                try:
                    fitted = dict(convert(fitted, network))
                except (KeyError, RuntimeError, ValueError, AttributeError, IndexError, TypeError) as error:
                    raise CheckpointError(
                        f"{name}: is no checkpoint of {self} ({type(error).__name__}: {error})"
                    ) from error
        return fitted, dropped


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Returns what keeps a state from being loaded, each as a phrase."""
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    shaped = [key for key in state if key in own and state[key].shape != own[key].shape]
    parts = [f"missing {_listed(missing)}"] if missing else []
    parts += [f"left over {_listed(extra)}"] if extra else []
    parts += [f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in shaped[:SHOWN]]
    return parts


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, name: str, owner: str) -> None:
    """Loads a 2D state.

    Raises:
        CheckpointError: If a key is missing or left over, or a shape differs; the network is unchanged then.
    """
    own = network.state_dict()
    if problems := _differences(own, state):
        raise CheckpointError(f"{name}: does not fit {owner}: {'; '.join(problems)}")
    network.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, strict=False)


def head_classes(state: Mapping[str, Tensor], classifiers: list[str]) -> int | None:
    """Returns the number of classes that a 2D state has, by the names of the classifier's layers; None without one."""
    for name in classifiers:
        for part in ("weight", "bias"):
            if f"{name}.{part}" in state:
                return int(state[f"{name}.{part}"].shape[0])
    return None
