"""``stvid train`` trains a model from a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stvid.commands.common import take_option, use_new_names
from stvid.errors import ConfigError

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Train a model from a config."""
    from stvid.config import dump_config, load_config, train_parser

    if any(option in ("-h", "--help") for option in argv):
        train_parser().print_help()
        return 0
    argv = use_new_names("train", argv)
    only_print = "--print_config" in argv
    name, options = take_option([word for word in argv if word != "--print_config"], "--config")
    resume, rest = take_option(options, "--resume")
    if resume is not None and name is None:
        from stvid.runs import resume_config

        config = resume_config(resume, rest)
    else:
        if name is None and not only_print:
            given = next((word for word in rest if not word.startswith("-")), "uniformer_xxs_motion.yaml")
            raise ConfigError(f"--config is missing; for example: stvid train --config {given}")
        config = load_config(name, rest)
        config.resume = resume
    if only_print:
        print(dump_config(config), end="")
        return 0

    from stvid.engine.train import train
    from stvid.runs import is_first_rank  # after the config: a mistake there need not wait for Lightning

    result = train(config, name=Path(name or resume or "run").stem)
    if not is_first_rank():
        return 0
    for key, value in result.metrics.items():
        if key.startswith("val_") and not key.endswith(("_failed", "_low", "_high")):
            print(f"{key.removeprefix('val_'):<16}{value:.4f}")
    best = result.best if result.best is not None else result.last
    print(f"next: stvid test --checkpoint {result.output}; stvid predict VIDEO --checkpoint {best}")
    return 0
