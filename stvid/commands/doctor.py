"""``stvid doctor`` reports versions, decoders, attention kernels and devices, and how to get those that are missing."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

from stvid.classes import class_list, class_lists
from stvid.commands.common import parse, parser_for
from stvid.console import printable
from stvid.machine import usable_cores
from stvid.version import __version__

__all__ = ["examine", "run"]

REQUIRED = ("torch", "torchvision", "timm", "av", "lightning", "torchmetrics", "einops", "safetensors")
OPTIONAL = (
    *("decord", "torchcodec", "xformers"),
    *("onnx", "onnxscript", "onnxruntime", "gradio", "webdataset", "fsspec", "pyarrow", "transformers"),
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_problem(package: str) -> str:
    """Returns why a required package does not import, or an empty string; a broken build fails only here."""
    import importlib

    try:
        importlib.import_module(package)
    except Exception as error:  # whatever a broken package raises is what the user needs to see
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def examine() -> dict[str, Any]:
    """Looks at this installation.

    Returns:
        ``packages``, ``decoders``, ``attention``, ``devices``, ``remedies`` (problem to command) and ``usable``:
        whether stvid can train and predict here.
    """
    remedies: dict[str, str] = {}
    packages: dict[str, Any] = {}
    usable = True
    for package in REQUIRED:
        version = _version(package)
        problem = "not installed" if version is None else _import_problem(package)
        packages[package] = {"version": version, "problem": problem}
        if problem:
            usable = False
            remedies[f"{package}: {problem}"] = (
                "pip install --upgrade --force-reinstall torch torchvision"
                if package in ("torch", "torchvision")
                else f"pip install --upgrade {package}"
            )
    for package in OPTIONAL:
        packages[package] = {"version": _version(package), "problem": ""}

    decoders: dict[str, str] = {}
    attention: dict[str, str] = {}
    devices: list[dict[str, Any]] = []
    if not packages["torch"]["problem"]:
        from stvid.models.attention import attention_backends
        from stvid.video.reader import available_backends

        decoders = available_backends()
        attention = attention_backends()
        devices = _devices()
    for kind, table in (("decoder", decoders), ("attention", attention)):
        for name, problem in table.items():
            if problem:
                remedies[f"{kind} {name}"] = problem
    if decoders.get("av"):
        usable = False
    return {
        "stvid": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": packages,
        "decoders": decoders,
        "attention": attention,
        "devices": devices,
        "class_lists": {name: len(class_list(name)) for name in class_lists()},
        "remedies": remedies,
        "usable": usable,
    }


def _devices() -> list[dict[str, Any]]:
    import torch

    found: list[dict[str, Any]] = [
        {"name": "cpu", "detail": f"{usable_cores()} cores, {torch.get_num_threads()} torch threads"}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        found.append(
            {
                "name": f"cuda:{index}",
                "detail": f"{properties.name}, {memory}, CUDA {torch.version.cuda}, {bf16}",
            }
        )
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "detail": "Apple GPU"})
    return found


def print_report(report: dict[str, Any]) -> None:
    """Prints a report of `examine` for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(f"stvid {report['stvid']}, Python {report['python']}, {report['platform']}"))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_column()
    table.add_column()
    for name, package in report["packages"].items():
        if package["problem"]:
            state, style = package["problem"], "red"
        elif package["version"] is None:
            state, style = "not installed (optional)", "dim"
        else:
            state, style = package["version"], "green"
        table.add_row("package", name, Text(state, style=style))
    for kind, key in (("decoder", "decoders"), ("attention", "attention")):
        for name, problem in report[key].items():
            table.add_row(kind, name, Text("usable", style="green") if not problem else Text("not usable", style="dim"))
    for device in report["devices"]:
        table.add_row("device", device["name"], Text(device["detail"]))
    console.print(table)
    lists = ", ".join(f"{name} ({count})" for name, count in report["class_lists"].items())
    console.print(Text(f"class names that --class_names takes by name: {lists}"))
    for problem, command in report["remedies"].items():
        console.print(Text(f"{problem}: {command}"))
    console.print(
        Text("ready", style="green")
        if report["usable"]
        else Text("not usable until the red lines are put right", style="red")
    )


def print_comparison(path: str, comparison: dict[str, Any]) -> None:
    """Prints what `stvid.video.comparison.compare_backends` found."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(printable(f"{path}: {comparison['frames']} frames")), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("backend")
    table.add_column("a clip of 16", justify="right")
    table.add_column("beside av")
    for name, entry in comparison["backends"].items():
        if entry["problem"]:
            table.add_row(name, "", Text(entry["problem"], style="dim"))
            continue
        differing = entry["differing"]
        shown = ", ".join(str(index) for index in differing[:6]) + (", ..." if len(differing) > 6 else "")
        verdict = (
            f"{len(differing)} frames differ by up to {entry['largest']} of 255: {shown}" if differing else "equal"
        )
        table.add_row(name, f"{entry['milliseconds']:.1f} ms", Text(verdict, style="red" if differing else "green"))
    console.print(table)
    console.print(Text(f"fastest of those that agree: {comparison['recommended']}"))


def run(argv: Sequence[str]) -> int:
    """Report versions, decoders, attention backends and devices, and how to get what is missing."""
    parser = parser_for(
        "doctor", "Report versions, decoders, attention backends and devices, and how to get what is missing."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    parser.add_argument(
        "--video", type=str | None, help="Read this file through every decoder instead: differences, times, the best."
    )
    options = parse(parser, argv)

    if options.video is not None:
        from stvid.video.comparison import compare_backends

        comparison = compare_backends(options.video)
        if options.json:
            print(json.dumps(comparison, indent=2))
        else:
            print_comparison(options.video, comparison)
        return 0

    report = examine()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)
    return 0 if report["usable"] else 1
