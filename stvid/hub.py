"""Models as repositories of the Hugging Face hub, and as folders of the same layout.

A folder that stvid writes holds ``config.json`` (how to build the model, its protocol with the class names, its task,
what was measured), ``model.safetensors`` (or shards and their index) and a model card, ``README.md``. `save_pretrained`
writes one, `push_to_hub` uploads it, `fetch_repo` brings a repository here, and `load_recipe` says how to build the
model of a folder, also of one that transformers wrote.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from stvid.checkpoints import check_description, describe
from stvid.downloads import fetch_hub_folder
from stvid.errors import CheckpointError, ConfigError, StvidError, UnknownNameError
from stvid.files import draft_folder, run_writer, write_folder_atomically
from stvid.hub_files import hub_endpoint
from stvid.models.registry import model_info
from stvid.models.transformers_configs import known_types, recipe_of
from stvid.protocol import Protocol, Task, parse_views
from stvid.version import __version__
from stvid.weight_files import CHECKED, seal

if TYPE_CHECKING:
    from torch import Tensor

    from stvid.models.base import VideoModel

__all__ = [
    "FolderConfig",
    "ModelCard",
    "StoredModel",
    "fetch_repo",
    "load_recipe",
    "push_to_hub",
    "read_config",
    "save_pretrained",
    "weights_in",
]

CONFIG, CARD = "config.json", "README.md"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
_OWN_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


# --- reading ----------------------------------------------------------------------------------------------------------


def fetch_repo(source: str) -> Path:
    """Returns the folder of a repository of the hub, downloaded if it is not on this machine.

    Args:
        source: ``hf-hub:org/repo`` or ``hf-hub:org/repo@revision``.

    Raises:
        DownloadError: If it cannot be had.
    """
    return fetch_hub_folder(source)


@dataclass(frozen=True)
class FolderConfig:
    """The ``config.json`` of a folder.

    Attributes:
        kind: ``stvid`` for a folder of `save_pretrained`, ``transformers`` for a video model of transformers, ``timm``
            for an image model of timm.
        values: Its content.
        preprocessor: The content of the preprocessor's file beside it; None if there is none.
        path: Its path.
    """

    kind: Literal["stvid", "transformers", "timm"]
    values: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None
    path: Path


class StoredModel(NamedTuple):
    """A model in a folder.

    Attributes:
        recipe: The arguments of `stvid.create_model`: ``name``, ``num_classes``, ``num_frames``, ``img_size``,
            ``hyperparameters``, and ``head`` if it is not the default.
        protocol: The protocol, with the class names if they are known.
        task: ``multiclass`` or ``multilabel``.
        weights: The file, or its shards in order.
        measured: The measured numbers that the folder was written with; empty if there are none.
    """

    recipe: dict[str, Any]
    protocol: Protocol
    task: Task
    weights: tuple[Path, ...]
    measured: Mapping[str, Any]


def read_config(folder: str | os.PathLike[str]) -> FolderConfig:
    """Reads the config of a folder, and says which program wrote it.

    Raises:
        CheckpointError: If there is none, it cannot be read, or it is of a model that stvid does not have.
    """
    path = Path(folder) / CONFIG
    values = _read_json(path)
    preprocessor = next(
        (_read_json(path.with_name(name)) for name in _PREPROCESSORS if path.with_name(name).is_file()), None
    )
    if values.get("library_name") == "stvid":
        return FolderConfig("stvid", values, preprocessor, path)
    if "model_type" in values:
        if values["model_type"] not in known_types():
            raise CheckpointError(
                f"{path}: model_type {values['model_type']!r} is no video model that stvid has; of transformers it "
                f"reads {', '.join(known_types())}"
            )
        return FolderConfig("transformers", values, preprocessor, path)
    if isinstance(values.get("architecture"), str):
        return FolderConfig("timm", values, preprocessor, path)
    raise CheckpointError(f"{path}: is no config of stvid, of a video model of transformers, or of timm")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing; a folder with a model has one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return content


def load_recipe(folder: str | os.PathLike[str]) -> StoredModel:
    """Returns how to build the model of a folder, and where its weights are.

    Args:
        folder: A folder of `save_pretrained` or of transformers, perhaps fetched by `fetch_repo`.

    Raises:
        CheckpointError: If its config cannot be read, or it is of a model that stvid does not have; or if the weights
            are missing.
    """
    config = read_config(folder)
    if config.kind == "timm":
        raise CheckpointError(
            f"{config.path}: is of an image model of timm; stvid inflate makes a video model of it "
            "(--from hf-hub:organisation/name)"
        )
    weights = weights_in(Path(folder))
    if config.kind == "transformers":
        found = recipe_of(config.values, config.preprocessor, where=str(config.path))
        return StoredModel(found.recipe, found.protocol, _task(found.task, config.path), weights, {})
    values = config.values
    check_description(values, str(config.path))
    recipe = values.get("model")
    needed = ("name", "num_classes", "num_frames", "img_size", "hyperparameters")
    if not isinstance(recipe, Mapping) or any(key not in recipe for key in needed):
        raise CheckpointError(f"{config.path}: does not say how to build the model (model: {', '.join(needed)})")
    try:
        protocol = Protocol.from_dict(values["protocol"])
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{config.path}: its protocol cannot be used ({error})") from error
    measured = values.get("measured")
    return StoredModel(
        dict(recipe),
        protocol,
        _task(values.get("task"), config.path),
        weights,
        measured if isinstance(measured, Mapping) else {},
    )


def _task(name: Any, path: Path) -> Task:
    if name not in get_args(Task):
        raise CheckpointError(f"{path}: its task {name!r} is not one of {', '.join(get_args(Task))}")
    task: Task = name
    return task


def weights_in(folder: Path) -> tuple[Path, ...]:
    """Returns the file with the weights of a folder, or its shards.

    Raises:
        CheckpointError: If there are none, or a shard is missing.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}{_INDEX}"
        if index.is_file():
            places = _read_json(index).get("weight_map")
            names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
            if not names or any(Path(shard).name != shard for shard in names):
                raise CheckpointError(f"{index}: does not list the shards of this folder (weight_map)")
            missing = [shard for shard in names if not (folder / shard).is_file()]
            if missing:
                raise CheckpointError(f"{index}: names {missing[0]}, which is missing; fetch all files of the folder")
            return tuple(folder / shard for shard in names)
    raise CheckpointError(f"{folder}: has a {CONFIG}, but no weights ({' or '.join(_WEIGHTS)})")


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCard:
    """Facts for the card of a model that the model itself does not know.

    Attributes:
        title: Its heading; empty takes the name of the folder or repository.
        description: Text below the heading, in Markdown.
        licence: The licence of the weights, such as ``Apache-2.0``; empty takes that of the published weights of which
            the model is, if it has some.
        dataset: The data that it was trained and measured on, such as ``Kinetics-400``.
        training_command: The command that trained it.
        base_model: The repository of the model that the training started from.
        tags: Further tags.
        result: The ``result.json`` of ``stvid test``, or its folder: the measured numbers.
    """

    title: str = ""
    description: str = ""
    licence: str = ""
    dataset: str = ""
    training_command: str = ""
    base_model: str = ""
    tags: Sequence[str] = ()
    result: str | os.PathLike[str] | None = None


def save_pretrained(
    model: VideoModel,
    folder: str | os.PathLike[str],
    *,
    card: ModelCard | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Writes a model as a folder, which `stvid.load_model` takes: config, weights and model card.

    Args:
        model: A model of stvid.
        folder: Made if it does not exist. Weights and config of an earlier model in it are replaced; a README.md is
            kept unless a card is given.
        card: What the card tells besides what the model knows.
        max_shard_size: Weights above it are written in several files, with an index.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the folder cannot be written, or the model is for inference only.
        ConfigError: If the result that the card names cannot be read, or is of another model.
    """
    target = Path(folder)
    content = _Content(model, card or ModelCard(), source=str(folder), name=target.resolve().name)
    try:
        if not target.exists():
            write_folder_atomically(target, lambda empty: content.write(empty, max_shard_size))
            return target
        with draft_folder(target / "model") as temporary:
            run_writer(lambda folder: content.write(folder, max_shard_size), temporary, target)
            _move(temporary, target, keep_card=card is None)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target


def _move(written: Path, target: Path, *, keep_card: bool) -> None:
    """Moves the files of a model into a folder that exists; without its config the folder is no model meanwhile."""
    names = {path.name for path in written.iterdir()}
    if keep_card and (target / CARD).exists():
        names.discard(CARD)
    (target / CONFIG).unlink(missing_ok=True)
    for path in target.iterdir():
        if _OWN_WEIGHTS.fullmatch(path.name) and path.name not in names:
            path.unlink()
    for name in sorted(names, key=lambda name: name == CONFIG):
        os.replace(written / name, target / name)


def push_to_hub(
    model: VideoModel,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload model of stvid",
    token: str | None = None,
    card: ModelCard | None = None,
) -> str:
    """Uploads a model to the Hugging Face hub, from where ``stvid.load_model("hf-hub:...")`` takes it.

    Args:
        model: A model of stvid.
        repo_id: ``organisation/name``, or ``name`` for a repository of one's own; made if it does not exist.
        private: Whether a new repository is private.
        revision: The branch; made if it does not exist. None is the main branch.
        commit_message: The message of the commit.
        token: None takes the one of ``hf auth login``, or ``HF_TOKEN``.
        card: What the model card tells besides what the model knows. A card that is at the hub already is kept if this
            is None, which is said on standard error.

    Returns:
        The address of the commit.

    Raises:
        StvidError: If the hub refuses, or cannot be reached.
        CheckpointError: If the model is for inference only.
        ConfigError: If the result that the card names cannot be read, or is of another model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError

    api = HfApi(endpoint=hub_endpoint(), token=token, library_name="stvid", library_version=__version__)
    failures: tuple[type[BaseException], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    content = _Content(model, card or ModelCard(), source=f"hf-hub:{repo_id}", name=repo_id.rpartition("/")[2])
    with tempfile.TemporaryDirectory(prefix="stvid_hub_") as temporary:
        folder = Path(temporary) / "model"
        try:
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            content.source = f"hf-hub:{repo}" + (f"@{revision}" if revision else "")  # the hub completes a short name
            content.write(folder, "5GB")
            if card is None and api.file_exists(repo, CARD, revision=revision):
                (folder / CARD).unlink()
                print(f"{repo}: its model card is kept; give a card to replace it", file=sys.stderr, flush=True)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                delete_patterns=["model*.safetensors", f"model.safetensors{_INDEX}"],  # of an earlier upload
            )
        except failures as error:
            raise _refused(repo_id, error) from error
    return str(commit.commit_url)


def _refused(repo_id: str, error: BaseException) -> StvidError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "; log in with `hf auth login`, or set HF_TOKEN, with the right to write" if status in (401, 403) else ""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return StvidError(f"{repo_id}: cannot be uploaded to the hub: {reason}{login}")


class _Content:
    """The files of a model's folder.

    Args:
        model: The model.
        card: Facts for its card.
        source: How `stvid.load_model` will name it.
        name: The heading of the card, unless it has one.
    """

    def __init__(self, model: VideoModel, card: ModelCard, *, source: str, name: str) -> None:
        if model.inference_only:
            raise CheckpointError(f"{source}: not written: {model.inference_only}; save the model it was made from")
        self.model = model
        self.measured = _measured(model, card)
        self.description = {key: value for key, value in describe(model).items() if key != "measured"}
        if not card.licence:
            card = dataclasses.replace(card, licence=getattr(getattr(model, "weights", None), "licence", ""))
        self.card = dataclasses.replace(card, title=card.title or name)
        self.source = source

    def write(self, folder: Path, max_shard_size: int | str) -> None:
        """Writes them into a folder, which is made if it does not exist."""
        from huggingface_hub import save_torch_state_dict

        folder.mkdir(exist_ok=True)
        config = {"library_name": "stvid", **self.description}
        if self.measured:
            config["measured"] = self.measured
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        (folder / CARD).write_text(_card_text(self), encoding="utf-8")
        metadata = {"format": "pt", "stvid": json.dumps(self.description), **CHECKED}
        save_torch_state_dict(_own_tensors(self.model), folder, max_shard_size=max_shard_size, metadata=metadata)
        for path in folder.glob("*.safetensors"):
            seal(path)
        mode = (folder / CONFIG).stat().st_mode
        for path in folder.iterdir():  # safetensors makes files that nobody else may read
            path.chmod(mode)


def _own_tensors(model: VideoModel) -> dict[str, Tensor]:
    """Returns the state of a model, each tensor with memory of its own: of tied ones a file would hold one alone."""
    state, seen = {}, set()
    for key, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        state[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return state


# --- what was measured ------------------------------------------------------------------------------------------------


def _measured(model: VideoModel, card: ModelCard) -> dict[str, Any]:
    """Returns the numbers of a result file, or those that the model carries; empty if there are none."""
    if card.result is None:
        carried = getattr(model, "measured", None)
        if not isinstance(carried, Mapping) or not isinstance(carried.get("metrics"), Mapping):
            return {}
        return {**carried, "metrics": _finite(carried["metrics"])}
    path = Path(card.result)
    path = path / "result.json" if path.is_dir() else path
    try:
        record = _read_json(path)
        metrics = _finite(record["metrics"])
        protocol = Protocol.from_dict(record["protocol"])
        videos = int(record["videos"]["counted"])
    except (CheckpointError, ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"card.result: {path} is no result.json of stvid test ({error})") from error
    classes = record.get("classes", protocol.class_names)
    if len(classes) != model.num_classes:
        raise ConfigError(f"card.result: {path} is of {len(classes)} classes, but the model has {model.num_classes}")
    return {
        "metrics": metrics,
        "protocol": protocol.replace(class_names=()).to_dict(),
        "videos": videos,
        "dataset": card.dataset,
        "command": str(record.get("command", "")),
        "versions": dict(record.get("versions", {})),
    }


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that are numbers; a class mean without classes is none."""
    numbers = {str(name): float(value) for name, value in metrics.items() if value is not None}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


@dataclass(frozen=True)
class _Number:
    """A metric for the card."""

    name: str
    views: str
    value: float

    @property
    def text(self) -> str:
        return f"{100 * self.value:.2f}%"


def _numbers(metrics: Mapping[str, float]) -> list[_Number]:
    """Splits metrics such as ``top1@4x3``."""
    found = []
    for key, value in metrics.items():
        name, _, views = key.partition("@")
        found.append(_Number(re.sub(r"^top(\d)", r"top-\1 accuracy", name.replace("_", " ")), views, value))
    return found


# --- the model card ---------------------------------------------------------------------------------------------------

# The licences that the hub knows by an identifier, as far as weights of video models have them.
_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "openrail"),
)


def _card_metadata(content: _Content) -> str:
    """Returns the YAML at the head of a model card, as the hub defines it."""
    from huggingface_hub import EvalResult, ModelCardData

    card, recipe = content.card, content.description["model"]
    licence = card.licence.partition(" (")[0].lower()  # without a remark, such as "(repository)"
    facts: dict[str, Any] = {"license": licence} if licence in _LICENCES else {}
    if card.licence and not facts:
        facts = {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", card.licence.lower()).strip("-")}
    dataset = card.dataset or content.measured.get("dataset") or "unknown"
    results = [
        EvalResult(
            task_type="video-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "unknown",
            dataset_name=dataset,
            metric_type="accuracy" if number.name.startswith("top-1") else number.name.replace(" ", "_"),
            metric_name=f"{number.name}, views {number.views}" if number.views else number.name,
            metric_value=round(number.value, 6),
        )
        for number in _numbers(content.measured.get("metrics", {}))
    ]
    data = ModelCardData(
        library_name="stvid",
        pipeline_tag="video-classification",
        tags=["video-classification", "stvid", recipe["name"], *card.tags],
        base_model=card.base_model or None,
        eval_results=results or None,
        model_name=card.title if results else None,
        **facts,
    )
    return data.to_yaml()


def _card_rows(model: VideoModel) -> Iterable[tuple[str, str]]:
    """Yields the rows of the card's table of the protocol."""
    protocol = model.default_protocol
    clips, crops = parse_views(protocol.views)
    rate = f" at {protocol.fps:g} frames a second" if protocol.fps else ""
    if protocol.sampling == "dense":
        yield "frames", f"{protocol.frames}, {protocol.stride} apart in the video{rate}"
    else:
        each = "one" if protocol.frames_per_segment == 1 else f"{protocol.frames_per_segment} in a row"
        yield "frames", f"{protocol.frames}, {each} of each of {protocol.segments} equal parts of the video{rate}"
    yield "size", f"short side scaled to {protocol.short_side}, crop of {protocol.crop} pixels"
    yield "mean", ", ".join(f"{number:g}" for number in protocol.mean)
    yield "standard deviation", ", ".join(f"{number:g}" for number in protocol.std)
    yield "colour channels", protocol.channels.upper()
    yield "views", f"{protocol.views}: {clips} clips x {crops} crops"
    names = protocol.class_names
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        yield "classes", f"{len(names)}: {shown} (all in {CONFIG})"
    else:
        yield "classes", f"{model.num_classes}, without names"


def _cell(value: Any) -> str:
    """Returns a text that fits into a cell of a table in Markdown."""
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _card_text(content: _Content) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("stvid", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    environment.filters["cell"] = _cell
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    model, recipe = content.model, content.description["model"]
    try:
        info = model_info(recipe["name"])
        about, paper = info.about, info.paper
    except UnknownNameError:  # a model of another library: it has no entry among the native ones
        about, paper = "", ""
    height, width = recipe["img_size"]
    return environment.get_template("model_card.md.j2").render(
        metadata=_card_metadata(content),
        title=content.card.title,
        description=content.card.description,
        about=about,
        protocol=model.default_protocol,
        width=width,
        height=height,
        num_classes=model.num_classes,
        task=model.task,
        version=__version__,
        source=content.source,
        quoted_source=shlex.quote(content.source),
        rows=list(_card_rows(model)),
        measured=_card_measured(content),
        training_command=content.card.training_command,
        recipe=recipe,
        paper=paper,
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.3g} million",
        licence=content.card.licence,
    )


def _card_measured(content: _Content) -> dict[str, Any] | None:
    """Returns the section of the measured numbers; None without numbers."""
    measured = content.measured
    numbers = _numbers(measured.get("metrics", {}))
    if not numbers:
        return None
    dataset = content.card.dataset or measured.get("dataset") or ""
    videos = f"On {measured['videos']} videos" if "videos" in measured else "Measured"
    about = f"{videos}{' of ' + dataset if dataset else ''}"
    if "protocol" in measured:
        how = Protocol.from_dict(measured["protocol"]).describe()
        about += f", with {how.rpartition('; views')[0]}"  # each number has its own views
    return {"about": f"{about}.", "numbers": numbers, "command": measured.get("command", "")}
