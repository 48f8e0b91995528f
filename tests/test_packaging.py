"""The wheel stands alone, and the commands of the README are real."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stvid.cli import COMMANDS
from stvid.commands import prep
from stvid.commands.common import parse, split_config_options, take_option
from stvid.config import list_configs, load_config

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:  # a clean checkout: nothing that lies about here gets in
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def stvid(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stvid", *arguments]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)

    where = subprocess.run(
        [sys.executable, "-c", "import stvid; print(stvid.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    assert (installed / "bin" / "stvid").is_file() and (installed / "stvid" / "py.typed").is_file()
    templates = {path.name for path in (ROOT / "stvid" / "look" / "templates").iterdir()}
    assert {path.name for path in (installed / "stvid" / "look" / "templates").iterdir()} == templates
    helped = stvid("train", "--help")
    assert helped.returncode == 0
    assert all(name in helped.stdout for name in list_configs())
    missing = stvid("train", "--config", "uniformer_s_k400.yaml")
    assert missing.returncode == 1 and "k400/train.csv" in missing.stderr


PAGES = [ROOT / "README.md", *sorted((ROOT / "data_prep").glob("*/README.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


def commands(program: str) -> list[list[str]]:
    """The words of each command of README, of the pages of data sets, and of the documentation, after `program`."""
    lines = "\n".join(block for page in PAGES for block in blocks(page, "sh")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix(program), comments=True) for line in lines if line.startswith(program)]
    return list({" ".join(words): words for words in found}.values())  # pages repeat commands


@pytest.mark.parametrize("words", commands("stvid "), ids=" ".join)
def test_commands_of_the_pages_are_accepted(words: list[str]) -> None:
    command, arguments = words[0], words[1:]
    assert command in COMMANDS
    if command == "prep":
        with pytest.MonkeyPatch.context() as patch, pytest.raises(StopHere):
            patch.setattr(prep, "parse", parse_and_stop)
            prep.COMMANDS[arguments[0]](arguments[1:])
        return
    if command in ("train", "pretrain"):
        name, options = take_option(arguments, "--config")
        config = load_config(name, options)
        assert (config.data.train or config.resume) is not None and config.command == command
        return
    own, dotted = split_config_options(arguments)
    name, _ = take_option(own, "--config")
    load_config(name, dotted)
    module = sys.modules[COMMANDS[command].__module__]

    # the parser accepts the options; what follows needs the files
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopHere):
        patch.setattr(module, "parse", parse_and_stop)
        COMMANDS[command](arguments)


class StopHere(Exception):
    pass


def parse_and_stop(*arguments: Any) -> None:
    parse(*arguments)
    raise StopHere


@pytest.mark.parametrize("words", commands("python data_prep/"), ids=" ".join)
def test_commands_of_the_scripts_are_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / "data_prep" / words[0]).is_file()
    script = importlib.import_module(f"data_prep.{words[0].removesuffix('.py').replace('/', '.')}")
    monkeypatch.setattr(script, "options_of", stop_here)
    with pytest.raises(StopHere):
        script.main(words[1:])


def stop_here(*arguments: Any, **options: Any) -> None:
    raise StopHere


def test_readme_names_every_packaged_recipe() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in list_configs() if name not in text] == []
