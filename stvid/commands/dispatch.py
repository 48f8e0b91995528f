"""How a program finds its command, runs it, and turns its errors into one line and an exit code.

An error is one line on standard error and a non-zero exit code: 2 for something in the call or the config, 1 for
something in the data or the weights, 128 + n after signal n. ``STVID_DEBUG=1`` shows the traceback, too.

Every command takes ``--remote_cache DIR`` and ``--remote_cache_gb N``: what is fetched of remote videos is kept there
(`stvid.video.block_cache`). Where a machine has room is no matter of a config: they are handed on in the environment.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from stvid.commands.common import take_option
from stvid.console import printable
from stvid.errors import ConfigError, StvidError, UnknownNameError, nearest
from stvid.version import __version__

__all__ = ["dispatch"]


def _help(program: str, about: str, commands: Mapping[str, Callable[[Sequence[str]], int]]) -> str:
    lines = [f"usage: {program} COMMAND [OPTIONS]", "", about, ""]
    for name, command in commands.items():
        lines.append(f"  {name:<{max(map(len, commands))}}  {(command.__doc__ or '').strip().splitlines()[0]}")
    lines += [
        "",
        "Of remote videos, every command keeps what it fetches with --remote_cache DIR [--remote_cache_gb 10].",
    ]
    lines += ["", f"{program} COMMAND --help shows the options of a command; {program} --version shows the version."]
    return "\n".join(lines)


def _run(
    program: str, about: str, commands: Mapping[str, Callable[[Sequence[str]], int]], arguments: Sequence[str]
) -> int:
    """Runs the command that the arguments name, or shows the help or the version; see `dispatch`."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(program, about, commands))
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        print(f"{program} {__version__}")
        return 0
    name, *rest = arguments
    if name not in commands:
        raise ConfigError(f"{name}: no such command{nearest(name, commands)} (see: {program} --help)")
    return commands[name](_set_remote_cache([_no_option(word) for word in rest]))


def _flush() -> None:
    """Writes what was printed, so that it fails here and not when Python ends, if it cannot be written.

    Raises:
        OSError: If it cannot be; it names the standard output.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # nothing more can be printed
        raise OSError(error.errno, error.strerror, "standard output") from error


def dispatch(
    program: str, about: str, commands: Mapping[str, Callable[[Sequence[str]], int]], argv: Sequence[str] | None
) -> int:
    """Runs the command that the arguments name, and turns its errors into a line and an exit code.

    Args:
        program: Name for messages.
        about: A sentence on the purpose of the program, for its help.
        commands: Name to function; its docstring is its line in the help.
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(program, about, commands, arguments)
        _flush()
        return code
    except SystemExit as error:  # --help of a command
        return error.code if isinstance(error.code, int) else 2
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the reader has gone; nothing more can be printed
        return 1
    except StvidError as error:
        signum = getattr(error, "signum", None)
        if signum is not None:
            if os.environ.get("LOCAL_RANK", "0") != "0":  # the first rank says it for all
                return 128 + signum
            return _fail(program, str(error), 128 + signum)
        return _fail(program, str(error), 2 if isinstance(error, ConfigError | UnknownNameError) else 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(program, f"{where}{error.strerror or error}", 1)
    except Exception as error:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return _fail(
                program, f"there is too little memory here ({' '.join(str(error).split())[:120]}): give more of it", 1
            )
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(program, f"internal error: {message[:500]} (STVID_DEBUG=1 shows where; please report it)", 70)


def _set_remote_cache(arguments: Sequence[str]) -> list[str]:
    """Puts the options of the cache of remote videos into the environment; returns the other arguments.

    Raises:
        ConfigError: If they, or what the environment says, cannot be used.
    """
    from stvid.video.block_cache import FOLDER_VARIABLE, LIMIT_VARIABLE, check_environment

    for option, variable in (("--remote_cache", FOLDER_VARIABLE), ("--remote_cache_gb", LIMIT_VARIABLE)):
        value, arguments = take_option(arguments, option)
        if value is not None:
            os.environ[variable] = value
    check_environment()
    return list(arguments)


# The words of the loader of libraries, of torch and of C++ where memory is not given.
_NO_MEMORY = re.compile(
    r"failed to map segment|(cannot|can't|could not) allocate memory|not enough memory|bad_alloc", re.I
)


def _no_option(word: str) -> str:
    """Returns the name of a file that begins with a dash so that it is not taken for an option."""
    return os.path.join(os.curdir, word) if word.startswith("-") and os.path.isfile(word) else word


def _fail(program: str, message: str, code: int) -> int:
    if os.environ.get("STVID_DEBUG") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(printable(f"{program}: error: {message}"), file=sys.stderr, flush=True)
    return code
