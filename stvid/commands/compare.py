"""``stvid compare`` sets two results of `stvid test` side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stvid.commands.common import parse, parser_for
from stvid.console import printable
from stvid.errors import ConfigError

if TYPE_CHECKING:
    from stvid.evaluation.comparison import ClassChange, Comparison

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Compare two results on the same videos."""
    parser = parser_for(
        "compare",
        "Compare two results of stvid test on the same videos: the difference with a 95% interval (paired bootstrap), "
        "McNemar's exact test, and the classes that gain and lose.",
    )
    parser.add_argument("first", type=str, help="result.json, or its folder: the reference.")
    parser.add_argument("second", type=str, help="result.json, or its folder: what is compared with it.")
    parser.add_argument("--topk", type=int, default=10, help="Classes to list that gain, and that lose.")
    parser.add_argument("--resamples", type=int, default=2000, help="Draws of the bootstrap.")
    parser.add_argument("--json", action="store_true", help="Print JSON, with all classes.")
    options = parse(parser, argv)
    for name, least in (("topk", 0), ("resamples", 100)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}: {getattr(options, name)} is not a whole number of at least {least}")

    from stvid.evaluation.comparison import compare
    from stvid.evaluation.record import EvaluationResult

    results = [EvaluationResult.load(source) for source in (options.first, options.second)]
    names = (options.first, options.second)
    found = compare(*results, names=names, resamples=options.resamples)
    if options.json:
        print(json.dumps({"first_result": names[0], "second_result": names[1], **found.to_dict()}, indent=2))
    else:
        _print(found, names, options.topk)
    return 0


def _print(found: Comparison, names: tuple[str, str], classes: int) -> None:
    for name, value, views in zip(names, (found.first, found.second), found.views, strict=True):
        print(printable(f"{found.metric}@{views} {100 * value:6.2f}%  {name}"))
    if found.views[0] != found.views[1]:
        print(
            f"note: the views differ ({' and '.join(found.views)}), and the difference holds that between them, too; "
            "test both with the same --views to compare the models"
        )
    low, high = (100 * end for end in found.interval)
    print(f"difference {100 * found.difference:+.2f} points, 95% interval {low:+.2f} to {high:+.2f} (paired bootstrap)")
    if found.p_value is not None:
        print(f"{found.wins} videos only the second gets right, {found.losses} only the first; ", end="")
        print(f"McNemar's exact test: p = {found.p_value:.3g}")
    left = f"; {found.left_out} left out, which one of the two could not read" if found.left_out else ""
    print(f"{found.videos} videos{left}")
    gains = [change for change in found.per_class if change.second > change.first][:classes]
    losses = [change for change in reversed(found.per_class) if change.second < change.first][:classes]
    for title, changes in (("classes that gain", gains), ("classes that lose", losses)):
        if changes:
            print(f"{title}:")
            for change in changes:
                print(printable(f"  {_line(change)}"))


def _line(change: ClassChange) -> str:
    counts = "" if change.wins is None else f", {change.wins} won and {change.losses} lost"
    return (
        f"{100 * (change.second - change.first):+7.2f}  {change.name}  "
        f"({100 * change.first:.1f}% -> {100 * change.second:.1f}% of {change.support} videos{counts})"
    )
