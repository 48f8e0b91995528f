"""The shape of the repository: which module may import which, who may import which library, and where tests stand.

Everything is read from the source by `ast`, so an import counts wherever it stands: at the top of a module, inside a
function, under ``TYPE_CHECKING``, or as a text with a module's name that is handed to ``importlib``.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# From low to high: a module imports from its own level and the levels above it in this list, never from those below.
# An entry is a module or a package of stvid.
LEVELS: list[tuple[set[str], str]] = [
    (
        {
            "errors",
            "version",
            "protocol",
            "classes",
            "files",
            "weight_files",
            "journal",
            "console",
            "downloads",
            "hub_files",
            "machine",
            "notebook",
            "config_sections",
            "config",
        },
        "Small things that everything else may use: errors, the protocol, atomic writes, downloads, the typed config.",
    ),
    ({"video"}, "Turns files into frames; knows neither clips nor labels nor torch modules."),
    (
        {"data", "data_prep"},
        "Turns frames into batches: lists of videos, shards, sampling, transforms, data sets, loaders.",
    ),
    ({"models"}, "The networks, their building blocks, and the table of their names."),
    ({"sources"}, "Finds weights, whatever names them, and fetches those that are published."),
    ({"checkpoints"}, "Recognises and converts published weights, and saves a model's own."),
    ({"hub"}, "Reads and writes repositories of the Hugging Face hub, and folders of the same layout."),
    ({"inflation"}, "Makes video models of image models."),
    ({"zoo"}, "Builds any model by name: native, inflated, or of another library."),
    ({"inference", "exporting"}, "Prepares a built model for use: faster, fused, or as a file for another program."),
    ({"evaluation"}, "Turns batches into numbers: metrics, predictions, timelines, features."),
    ({"look"}, "Turns numbers into pictures and pages."),
    ({"runs"}, "Knows what the folder of a training holds."),
    ({"engine"}, "Trains; the one place that imports lightning."),
    ({"commands", "cli", "__main__"}, "What a user types."),
]
PUBLIC = "stvid"  # the root package offers names of every level and imports none of them before it is asked

DECODERS = {"av", "decord", "torchcodec"}
# Libraries that only a part of stvid may import: the rest works on machines that do not have them.
OWNERS: dict[str, tuple[str, ...]] = {
    "lightning": ("stvid.engine",),
    "ray": ("stvid.data.ray_engine",),
    "decord": ("stvid.video.backends", "stvid.video.other_readers"),
    "torchcodec": ("stvid.video.backends", "stvid.video.other_readers"),
}

# Each folder of tests, and the folder whose modules it tests file by file. The first that fits counts.
MIRRORS = {"tests/data_prep_pages": "data_prep", "tests/tools": "tools", "tests": "stvid"}
WITHOUT_MODULE = {
    "tests/models/test_models.py": "asks every native model the same questions",
    "tests/test_english.py": "is about docstrings and lines",
    "tests/test_packaging.py": "is about the wheel, and the commands in README",
    "tests/test_repository.py": "is about the files around the code",
    "tests/test_structure.py": "is about the tree of modules and tests",
}
FREE_FOLDERS = ("tests/docs/", "tests/gpu/")  # tests of the site, and whole programs on a GPU


class Import(NamedTuple):
    """One import of a module: what it names, the line, and whether it runs when the module is imported."""

    name: str
    line: int
    at_once: bool


def modules_of(root: Path) -> dict[str, Path]:
    """Returns the modules of stvid in a checkout, by their dotted names."""
    found = {}
    for path in sorted((root / "stvid").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(source: str, modules: Collection[str]) -> tuple[Import, ...]:
    """Returns all imports of a module, of stvid or not; a text counts if it is the name of a module in `modules`."""
    return _imports_of(source, frozenset(modules))


@functools.cache
def _imports_of(source: str, modules: frozenset[str]) -> tuple[Import, ...]:
    return tuple(_imports_below(ast.parse(source), modules, at_once=True))


def _imports_below(node: ast.AST, modules: frozenset[str], *, at_once: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, at_once) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = "." * node.level + (node.module or "")
        for alias in node.names:
            inner = f"{start}.{alias.name}"
            yield Import(inner if inner in modules else start, node.lineno, at_once)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in modules:
        yield from () if node.value == PUBLIC else (Import(node.value, node.lineno, False),)  # also the program's name
    for child in ast.iter_child_nodes(node):
        in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        yield from _imports_below(child, modules, at_once=at_once and not in_function and not for_types)


def is_in(name: str, packages: Collection[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def level(module: str) -> int:
    """Returns the level of a module of stvid by the part of its name after ``stvid.``; the root package is the top."""
    if module == PUBLIC:
        return len(LEVELS)
    part = module.split(".")[1]
    (found,) = (number for number, (members, _) in enumerate(LEVELS) if part in members)
    return found


def upward_imports(sources: Mapping[str, str]) -> list[str]:
    """Returns a line for each import that goes up, and for each relative one, whose target is hard to see."""
    problems = []
    for module, source in sources.items():
        for found in imports_of(source, sources):
            if found.name.startswith("."):
                problems.append(f"{module}, line {found.line}: relative import of {found.name}")
            elif is_in(found.name, [PUBLIC]) and level(found.name) > level(module):
                problems.append(f"{module}, line {found.line}: imports {found.name}, which is on a higher level")
    return problems


def circle(sources: Mapping[str, str]) -> list[str]:
    """Returns the modules of one circle of imports in their order, the first again at the end; or an empty list."""
    graph = {
        module: {found.name for found in imports_of(text, sources)} & set(sources) for module, text in sources.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {module: path.read_text(encoding="utf-8") for module, path in modules_of(ROOT).items()}


def test_every_module_has_one_level(sources: dict[str, str]) -> None:
    members = [name for names, _ in LEVELS for name in names]
    assert sorted(members) == sorted({module.split(".")[1] for module in sources if module != PUBLIC})


def test_imports_go_down(sources: dict[str, str]) -> None:
    assert upward_imports(sources) == []


def test_imports_have_no_circle(sources: dict[str, str]) -> None:
    assert circle(sources) == []


@pytest.mark.parametrize(
    "text",
    [
        "import stvid.runs",
        "from stvid.runs import find",
        "from stvid import runs",
        "from stvid import create_model",  # from the root package, which is above all
        "import stvid",
        "def f():\n    import stvid.runs",
        "class C:\n    def f(self):\n        return lambda: __import__('stvid.runs')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stvid.runs import find",
        "TABLE = {'a': ('stvid.runs',)}",
        "from ..runs import find",
    ],
)
def test_an_upward_import_is_found(text: str) -> None:
    sources = {"stvid": "", "stvid.runs": "", "stvid.errors": "", "stvid.data.views": f"import stvid.errors\n{text}"}
    (problem,) = upward_imports(sources)
    assert problem.startswith("stvid.data.views, line ")
    assert upward_imports({**sources, "stvid.data.views": "import stvid.errors"}) == []


def test_a_circle_is_found() -> None:
    sources = {
        "stvid.data.one": "from stvid.data import two",
        "stvid.data.two": "def f():\n    from stvid.data.three import g",
        "stvid.data.three": "if TYPE_CHECKING:\n    import stvid.data.one",
    }
    found = circle(sources)
    assert found[0] == found[-1] and set(found) == set(sources)
    assert found[found.index("stvid.data.one") + 1 :][:1] in (["stvid.data.two"], [])
    assert circle({**sources, "stvid.data.three": ""}) == []


def test_libraries_stay_with_their_owners(sources: dict[str, str]) -> None:
    imported = {
        (module, found.name.split(".")[0]) for module, text in sources.items() for found in imports_of(text, sources)
    }
    strays = [(module, name) for module, name in imported if name in OWNERS and not is_in(module, OWNERS[name])]
    assert strays == []
    assert {name for _, name in imported} >= set(OWNERS)


def test_decoders_are_imported_when_a_video_is_opened(sources: dict[str, str]) -> None:
    imported = [
        (module, found)
        for module, text in sources.items()
        for found in imports_of(text, sources)
        if found.name.split(".")[0] in DECODERS
    ]
    assert [(module, found.line) for module, found in imported if found.at_once] == []
    assert {found.name.split(".")[0] for _, found in imported} == DECODERS


READER = """
import sys
import stvid.video.comparison, stvid.video.reader, stvid.video.stored_index, stvid.video.streaming
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("stvid", "torch", "av", "decord")))
"""


def test_the_reader_is_a_library_of_its_own() -> None:
    loaded = subprocess.run([sys.executable, "-c", READER], check=True, capture_output=True, text=True).stdout.split()
    lower = {"stvid", "stvid.console", "stvid.errors", "stvid.files", "stvid.version"}
    assert {name for name in loaded if not name.startswith("stvid.video")} <= lower  # no torch, no decoder, no data
    assert "stvid.video.reader" in loaded


def without_module(root: Path) -> list[str]:
    """Returns the test files, relative to the root, that stand where no module of the same place and name is."""
    found = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        name = path.relative_to(root).as_posix()
        if name in WITHOUT_MODULE or name.startswith(FREE_FOLDERS):
            continue
        tests = next(folder for folder in MIRRORS if name.startswith(f"{folder}/"))
        module = root / MIRRORS[tests] / path.relative_to(root / tests).with_name(path.stem.removeprefix("test_"))
        if not module.with_suffix(".py").is_file() and not module.is_dir():
            found.append(name)
    return found


def test_tests_mirror_the_package() -> None:
    assert without_module(ROOT) == []
    assert [name for name in WITHOUT_MODULE if not (ROOT / name).is_file()] == []


def test_a_test_without_a_module_is_found(tmp_path: Path) -> None:
    for name in ("stvid/data/views.py", "tools/zoo.py", "tests/data/test_views.py", "tests/tools/test_zoo.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "tests/test_data.py").touch()  # of a package
    assert without_module(tmp_path) == []
    (tmp_path / "tests/test_views.py").touch()
    (tmp_path / "tests/data/test_zoo.py").touch()
    assert without_module(tmp_path) == ["tests/data/test_zoo.py", "tests/test_views.py"]
