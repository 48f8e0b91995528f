"""``stvid doctor``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from stvid.commands.common import parse, parser_for

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Report versions, decoders, attention backends and devices, and how to mend what is missing."""
    parser = parser_for(
        "doctor", "Report versions, decoders, attention backends and devices, and how to mend what is missing."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    parser.add_argument(
        "--video", type=str | None, help="Read this file through every decoder instead: differences, times, the best."
    )
    options = parse(parser, argv)

    from stvid.doctor import examine, print_comparison, print_report

    if options.video is not None:
        from stvid.data.comparison import compare_backends

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
