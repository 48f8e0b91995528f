"""The models that the demo page offers: those that the command names, and the published ones by ``NAME.TAG``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath

from stvid.downloads import fetch, is_non_commercial, where_kept
from stvid.errors import CheckpointError, ConfigError, DownloadError, UnknownNameError, nearest
from stvid.hub_files import parse_hub_address
from stvid.models.base import VideoModel
from stvid.models.registry import find_weights
from stvid.models.weights import Weights
from stvid.zoo import list_models, load_model

__all__ = ["ModelShelf", "is_on_this_machine", "licence_note", "published_weights", "short_names"]


class ModelShelf:
    """Models by name, of which the latest few stay in memory.

    Args:
        given: The models that the page was started with: a name for each, and what loads it.
        published: Published weights that are offered besides.
        device: Where the models run; None leaves them where their loaders put them.
        limit: How many models stay loaded. The one that was used least recently goes first.
        downloads: Whether published weights that are not on this machine may be fetched when a visitor asks for them.

    Raises:
        ConfigError: If there is no model to offer, or the limit is not positive.
    """

    def __init__(
        self,
        given: Mapping[str, Callable[[], VideoModel]],
        *,
        published: Sequence[Weights] = (),
        device: str | None = None,
        limit: int = 2,
        downloads: bool = True,
    ) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"limit: {limit!r} is not a positive whole number of models")
        self.published = {weights.name: weights for weights in published if weights.name not in given}
        if not given and not self.published:
            raise ConfigError("given: the page has no model to offer; name a checkpoint")
        self.device = device
        self.limit = limit
        self.downloads = downloads
        self._given = dict(given)
        self._loaded: OrderedDict[str, VideoModel] = OrderedDict()
        self._lock = threading.Lock()  # a page serves several visitors, and no model is to be loaded twice at a time

    @property
    def names(self) -> tuple[str, ...]:
        """All names, those that the page was started with first."""
        return (*self._given, *self.published)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the models in memory, the one that was used least recently first."""
        return tuple(self._loaded)

    def choices(self) -> list[tuple[str, str]]:
        """Returns what a list of the models shows: pairs of a text, which says where the weights are, and a name.

        Published weights that are on this machine come before those that are not.
        """
        here, away = [], []
        for name, weights in self.published.items():
            if is_on_this_machine(weights):
                here.append((f"{name} (published, on this machine)", name))
            elif weights.needs_a_person:
                away.append((f"{name} (published, to be fetched by hand)", name))
            else:
                away.append((f"{name} (published, {'to be fetched' if self.downloads else 'not here'})", name))
        return [*((name, name) for name in self._given), *here, *away]

    def get(self, name: str) -> VideoModel:
        """Returns a model in evaluation mode, which is loaded first if it is not in memory.

        Raises:
            UnknownNameError: If the page does not offer it.
            DownloadError: If its weights are not on this machine, and cannot or must not be fetched.
            CheckpointError: If its weights cannot be loaded, or have no classifier.
            ConfigError: If the device cannot hold it.
        """
        if name not in self._given and name not in self.published:
            raise UnknownNameError(f"model {name!r}: the page does not offer it{nearest(name, self.names)}")
        with self._lock:
            if name not in self._loaded:
                while len(self._loaded) >= self.limit:
                    self._loaded.popitem(last=False)
                self._loaded[name] = self._load(name)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def _load(self, name: str) -> VideoModel:
        weights = self.published.get(name)
        if weights is not None and not self.downloads and not is_on_this_machine(weights):
            raise DownloadError(
                f"{name}: its weights are not on this machine, and a page that is open to others fetches none; load "
                "them here once, for example with stvid predict --checkpoint"
            )
        model = self._given[name]() if weights is None else load_model(name)
        if not model.num_classes:
            raise CheckpointError(f"{name}: has no classifier, only features; choose weights with classes")
        if self.device is not None:
            try:
                model.to(self.device)
            except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
                reason = str(error).splitlines()[0]
                raise ConfigError(f"{name}: device {self.device!r} cannot hold it: {reason}") from error
        return model.eval()


def published_weights() -> tuple[Weights, ...]:
    """Returns the published weights that have a classifier, in the order of `stvid.list_models`."""
    found = (find_weights(name) for name in list_models(pretrained=True))
    return tuple(weights for weights in found if weights is not None and weights.num_classes != 0)


def is_on_this_machine(weights: Weights) -> bool:
    """Returns whether published weights have been fetched before; their hash is looked at when they are loaded."""
    try:
        if parse_hub_address(weights.url) is None:
            return where_kept(weights.url, name=weights.name) is not None
        fetch(weights.url, name=weights.name, offline=True)
    except DownloadError:  # whoever chooses them is told why they cannot be had
        return False
    return True


def licence_note(model: VideoModel) -> str:
    """Returns a sentence if the licence of a model's published weights forbids commercial use; else nothing."""
    licence = "" if model.weights is None else model.weights.licence
    return f"The licence of these weights forbids commercial use: {licence}." if is_non_commercial(licence) else ""


def short_names(sources: Sequence[str]) -> list[str]:
    """Returns a short name for each source of weights: the ends of paths, as long as it takes to tell them apart.

    Raises:
        ConfigError: If a source is named twice.
    """
    for place, source in enumerate(sources):
        if source in sources[:place]:
            raise ConfigError(f"--checkpoint: {source} is named twice")
    parts = [PurePath(source).parts or (source,) for source in sources]
    names = []
    for source, own in zip(sources, parts, strict=True):
        if "://" in source or source.startswith("hf-hub:"):
            names.append(source)
            continue
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return list(sources) if len(set(names)) < len(names) else names
