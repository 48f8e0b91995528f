"""The command line: finds the command, runs it, and turns its errors into one line and an exit code.

An error is one line on standard error and a non-zero exit code: 2 for something in the call or the config, 1 for
something in the data or the weights, 128 + n after signal n. ``STVID_DEBUG=1`` shows the traceback besides.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from stvid.commands import doctor, models, predict, test, train
from stvid.errors import ConfigError, StvidError, UnknownNameError, nearest
from stvid.version import __version__

__all__ = ["main"]

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train.run,
    "test": test.run,
    "predict": predict.run,
    "models": models.run,
    "doctor": doctor.run,
}


def _help() -> str:
    lines = ["usage: stvid COMMAND [OPTIONS]", "", "Train, evaluate and use video classification models.", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<10} {(command.__doc__ or '').strip()}")
    lines += ["", "stvid COMMAND --help shows the options of a command; stvid --version shows the version."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        print(f"stvid {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail(f"{name}: no such command{nearest(name, COMMANDS)} (see: stvid --help)", 2)
    try:
        return COMMANDS[name](rest)
    except SystemExit as error:  # --help of a command
        return error.code if isinstance(error.code, int) else 2
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the reader has gone; nothing more can be printed
        return 1
    except StvidError as error:
        signum = getattr(error, "signum", None)
        if signum is not None:
            if os.environ.get("LOCAL_RANK", "0") != "0":  # the first rank says it for all
                return 128 + signum
            return _fail(str(error), 128 + signum)
        return _fail(str(error), 2 if isinstance(error, ConfigError | UnknownNameError) else 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"internal error: {message[:500]} (STVID_DEBUG=1 shows where; please report it)", 70)


def _fail(message: str, code: int) -> int:
    if os.environ.get("STVID_DEBUG") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"stvid: error: {message}", file=sys.stderr, flush=True)
    return code
