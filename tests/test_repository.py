"""The files around the code: workflow, templates, citation, changelog. Whatever can be checked of them here is."""

from __future__ import annotations

import datetime
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import stvid

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    return read(GITHUB / "workflows" / "ci.yml")


def project() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # tomllib is not in Python 3.10


def test_the_workflow_runs_when_it_should(workflow: dict[Any, Any]) -> None:
    triggers = workflow[True]  # YAML reads the key "on" as true
    assert set(triggers) >= {"push", "pull_request", "schedule"}
    assert triggers["push"]["tags"] == ["v*"]
    assert len(triggers["schedule"][0]["cron"].split()) == 5
    assert triggers["schedule"][0]["cron"].split()[4] != "*"  # a day of the week
    jobs = workflow["jobs"]
    assert "schedule" in jobs["slow"]["if"] and "schedule" not in jobs["test"]["if"]
    assert jobs["build"]["needs"] == ["lint", "test"] and jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}


def test_the_workflow_tests_what_the_package_claims(workflow: dict[Any, Any]) -> None:
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project())
    assert f'requires-python = ">={matrix["python"][0]}"' in project()
    pins = {row["torch"]: row["pins"] for row in matrix["include"]}
    assert set(pins) == set(matrix["torch"])
    lowest = dict(re.findall(r'"(torch|torchvision)>=([\d.]+)"', project()))
    assert pins["oldest"].split() == [f"{name}=={version}.*" for name, version in lowest.items()]
    assert pins["newest"].split() == list(lowest)


def test_the_workflow_uses_targets_that_exist(workflow: dict[Any, Any]) -> None:
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    used = re.findall(r"make ([\w-]+)", "\n".join(steps) + (ROOT / ".ci" / "run").read_text())
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert {"lint", "test", "test-slow"} <= set(used) <= set(targets)


def test_the_release_compares_tag_and_version(workflow: dict[Any, Any], tmp_path: Path) -> None:
    (script,) = (
        step["run"] for step in workflow["jobs"]["build"]["steps"] if step.get("name", "").startswith("The tag")
    )

    def run(tag: str) -> subprocess.CompletedProcess[str]:
        lines = ["set -e", 'python() { python3 "$@"; }', f"GITHUB_REF_NAME={tag}", script]
        return subprocess.run(["bash", "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)

    assert run(f"v{stvid.__version__}").returncode == 0
    wrong = run("v0.0.0")
    assert wrong.returncode == 1 and f"stvid/version.py says {stvid.__version__}" in wrong.stdout


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_forms_have_what_github_asks_for(name: str) -> None:
    form = read(GITHUB / "ISSUE_TEMPLATE" / name)
    assert form["name"] and form["description"] and form["body"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]+", field) for field in ids)
    for field in form["body"]:
        assert field["type"] in ("textarea", "input") and field["attributes"]["label"]
        assert isinstance(field["validations"]["required"], bool)
    assert any(field["validations"]["required"] for field in form["body"])


def test_issue_forms_ask_for_what_helps() -> None:
    bug = (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "stvid doctor" in bug and "stvid inspect" in bug
    wish = [field["attributes"]["label"] for field in read(GITHUB / "ISSUE_TEMPLATE" / "feature.yml")["body"]]
    assert wish[1:4] == ["Paper", "Official code", "Published weights"] and wish[4].startswith("Licence")
    assert read(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": True}
    assert "CHANGELOG.md" in (GITHUB / "pull_request_template.md").read_text()


def test_the_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert {"message", "title", "authors"} <= set(citation)  # required by CFF
    assert citation["authors"] and all(set(author) <= {"name", "website"} for author in citation["authors"])
    assert citation["version"] == stvid.__version__
    assert f'license = "{citation["license"]}"' in project()
    assert f"## [{citation['version']}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_changelog_has_its_form() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    releases = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert releases[0] == "[Unreleased]"
    for release in releases[1:]:
        version, date = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\S+)", release).groups()  # type: ignore[union-attr]
        assert version and datetime.date.fromisoformat(date)
    assert releases[1].startswith(f"[{stvid.__version__}]")
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
