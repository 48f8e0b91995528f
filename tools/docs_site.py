"""Pages of the documentation that are made from the code when the site is built: mkdocs calls the functions below.

`mkdocs.yml` names this file under `hooks`. The pages `reference/python.md`, `reference/config.md`,
`reference/commands.md`, `reference/models.md`, `reference/recipes.md` and `changelog.md` are written by nobody, so they
cannot fall behind; all other pages lie in `docs/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docstring_parser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # mkdocs does not run in the package's folder

import stvid  # noqa: E402
from stvid.cli import COMMANDS  # noqa: E402
from stvid.commands.prep import COMMANDS as PREP_COMMANDS  # noqa: E402
from stvid.config import TrainConfig, list_configs  # noqa: E402
from stvid.errors import StvidError  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

GROUPS = {
    "Models": (
        "create_model", "list_models", "load_model", "load_checkpoint", "save_model", "save_pretrained", "push_to_hub",
        "ModelCard", "LoadReport", "inflate", "merge_tokens", "fuse", "optimize", "set_attention_backend",
    ),
    "Videos and clips": ("VideoReader", "load_clip", "Clip", "Protocol", "read_manifest", "make_loader", "ClipLoader",
                         "ClipBatch", "LoaderOptions"),
    "Training": ("train", "TrainResult"),
    "Evaluation": ("predict", "Prediction", "timeline", "evaluate", "EvaluationResult", "compare", "late_fusion",
                   "extract_features", "load_features", "probe", "ProbeResult", "explain"),
    "Deployment": ("export_model", "load_exported"),
    "Errors": ("StvidError",),
}  # fmt: skip
"""The order in which the reference shows the public names; a name that is in no group is an error of the build."""


PYTHON_INTRO = """\
# Python

Every public name of `stvid`. A clip is a float tensor (B, C, T, H, W), normalised; frames that were only decoded are
uint8 (T, H, W, C).
"""
CONFIG_INTRO = """\
# Config

A config is YAML. A key that it leaves out has the default below. Each key can be given on the command line, too, as in
`--optim.lr 1e-3`. `stvid train --config NAME.yaml --print_config` prints the whole.

## At the top
"""
COMMANDS_INTRO = """\
# Commands

A mistake is one line that says what is wrong, where, and what to do. The exit code is then not 0.
"""
RECIPES_INTRO = """\
# Recipes

A recipe states what its paper or official file sets, with the source beside each value, and nothing else.
`stvid train --config NAME.yaml --print_config` prints the complete file.
"""


def python_page() -> str:
    """Returns the reference of every public name, which mkdocstrings fills from the docstrings.

    Raises:
        ValueError: If a public name is in no group, or a group names one that is not public.
    """
    public = {name for name in stvid.__all__ if name != "__version__"}
    grouped = [name for names in GROUPS.values() for name in names]
    if public != set(grouped) or len(grouped) != len(public):
        odd = sorted(public.symmetric_difference(grouped))
        raise ValueError(f"tools/docs_site.py: GROUPS and stvid.__all__ differ: {', '.join(odd)}")
    lines = [PYTHON_INTRO]
    for title, names in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in names:
            home = importlib.import_module(getattr(stvid, name).__module__).__name__
            lines += [f"::: {home}.{name}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Returns text as one cell of a table; a bar outside of code would end it, one in code stays as it is."""
    words = " ".join(text.replace("``", "`").split()).split("`")
    return "`".join(word if number % 2 else word.replace("|", "\\|") for number, word in enumerate(words))


def _type_name(hint: Any) -> str:
    """Returns a type in words that stand in a table of Markdown, where a bar would end the cell."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(hint))
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_type_name(part) for part in typing.get_args(hint))
    if hint is type(None):
        return "null"
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return f"`{name.replace('typing.', '')}`"


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is not dataclasses.MISSING:
        value = item.default
    elif item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    else:
        return "needed"
    return f"`{json.dumps(value)}`"


def _key_rows(section: type, prefix: str) -> list[str]:
    hints = typing.get_type_hints(section)
    told = {found.arg_name: found.description or "" for found in docstring_parser.parse(inspect.getdoc(section)).params}
    rows = []
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[item.name]):
            continue
        cells = [
            f"`{prefix}{item.name}`", _type_name(hints[item.name]), _cell(_default(item)), _cell(told[item.name]),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def config_page() -> str:
    """Returns the table of every key of a config: its type, its default and its meaning."""
    header = ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    hints = typing.get_type_hints(TrainConfig)
    lines = [CONFIG_INTRO, *header, *_key_rows(TrainConfig, "")]
    for name, section in hints.items():
        if dataclasses.is_dataclass(section):
            about = docstring_parser.parse(inspect.getdoc(section) or "").short_description or ""
            lines += ["", f"## `{name}`", "", about, *header, *_key_rows(typing.cast(type, section), f"{name}.")]
    return "\n".join(lines) + "\n"


def _help(run: Callable[[list[str]], int]) -> str:
    text = io.StringIO()
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            run(["--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return text.getvalue().rstrip()


def commands_page() -> str:
    """Returns what `--help` prints of every command."""
    lines = [COMMANDS_INTRO, "| command | |", "|---|---|"]
    programs = {f"stvid {name}": run for name, run in COMMANDS.items() if name != "prep"}
    programs |= {f"stvid prep {name}": run for name, run in PREP_COMMANDS.items()}
    for name, run in programs.items():
        about = inspect.getdoc(run) or ""
        anchor = name.replace(" ", "-")
        lines.append(f"| [`{name}`](#{anchor}) | {_cell(about.splitlines()[0] if about else '')} |")
    for name, run in programs.items():
        lines += ["", f"## {name} {{ #{name.replace(' ', '-')} }}", "", "```text", _help(run), "```"]
    return "\n".join(lines) + "\n"


def models_page() -> str:
    """Returns the table of models that README holds."""
    from tools.zoo import BEGIN, END

    table = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return f"# Models\n\nMade by `python tools/zoo.py`; `stvid models` prints it for the installed version.\n\n{table}"


def recipes_page() -> str:
    """Returns each packaged config with the comment that it begins with."""
    lines = [RECIPES_INTRO]
    for name in list_configs():
        text = (ROOT / "configs" / name).read_text(encoding="utf-8")
        lines += [f"## `{name}`", "", "```yaml", text.rstrip(), "```", ""]
    return "\n".join(lines)


def changelog_page() -> str:
    """Returns CHANGELOG.md; its links lead to files of the repository, so they become plain words."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


PAGES: dict[str, Callable[[], str]] = {
    "reference/python.md": python_page,
    "reference/config.md": config_page,
    "reference/commands.md": commands_page,
    "reference/models.md": models_page,
    "reference/recipes.md": recipes_page,
    "changelog.md": changelog_page,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to those of the folder (mkdocs' event `files`)."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        try:
            text = make()
        except (StvidError, ValueError, KeyError) as error:
            raise PluginError(f"{path}: {error}") from error
        files.append(File.generated(config, path, content=textwrap.dedent(text)))
    return files
