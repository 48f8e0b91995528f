"""``stvid export`` writes a model as a file that runs without stvid."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from stvid.commands.common import add_checkpoint_options, load, parse, parser_for, split_config_options
from stvid.console import printable

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Write a model as a torch.export program or an ONNX graph."""
    parser = parser_for(
        "export",
        "Write a model as a file that runs without stvid, with its protocol and class names in the metadata. The file "
        "is read back, and its logits are compared with the model's, before it is put in place.",
    )
    add_checkpoint_options(parser)
    parser.add_argument("--out", type=str, required=True, help="The file: .pt2 for torch.export, .onnx for ONNX.")
    parser.add_argument(
        "--format", type=Literal["torch-export", "onnx"] | None, help="Default by the suffix of the file."
    )
    parser.add_argument("--opset", type=int, default=18, help="Version of ONNX's operators, 18 to 23.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a line.")
    own, dotted = split_config_options(argv)
    options = parse(parser, own)

    from stvid.exporting import export_model

    model, _ = load(options, dotted)
    report = export_model(model, options.out, format=options.format, opset=options.opset)
    if options.json:
        plain = {
            key: [str(file) for file in value] if key == "files" else str(value) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(report).items()
        }
        print(json.dumps(plain, indent=2))
    else:
        print(printable(str(report), keep="\n"))
    return 0
