"""The options of commands whose videos are shared out: ``--shard``, ``--devices``, processes of torchrun or SLURM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands.common import pick_device, split_config_options
from stvid.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.data.parts import Part
    from stvid.evaluation.ranks import Rank, Team

__all__ = [
    "add_engine_options",
    "add_sharing_options",
    "check_engine_options",
    "check_rank",
    "given_part",
    "given_rank",
    "place_on_device",
    "run_shared",
]


def add_sharing_options(parser: ArgumentParser, *, what: str) -> None:
    """Adds the options that share out the videos.

    Args:
        parser: The parser of ``stvid COMMAND``.
        what: What the merge writes, in a few words.
    """
    command = parser.prog.removeprefix("stvid ")
    parser.add_argument(
        "--devices",
        type=str,
        default="1",
        help="How many devices of this machine share the videos; auto: all GPUs. Over machines, start the command with "
        "torchrun or srun. The numbers are those of one device, bit for bit.",
    )
    parser.add_argument(
        "--shard",
        type=str | None,
        help="Do one part of the videos, i/n: 1/4 to 4/4 are all of four; slurm takes the place of this process in its "
        f"SLURM array. Afterwards stvid prep merge {command}, with the same options without --shard, writes {what}.",
    )


def add_engine_options(parser: ArgumentParser) -> None:
    """Adds the options that hand the work to Ray."""
    parser.add_argument(
        "--engine",
        type=Literal["local", "ray"],
        default="local",
        help="Devices of this machine, or a Ray cluster, where each model has a GPU if there are any, and --workers is "
        "the most models at once.",
    )
    parser.add_argument(
        "--ray_address", type=str | None, help="Cluster for --engine ray: auto or HOST:PORT; default Ray starts here."
    )


def check_engine_options(options: Any) -> None:
    """Raises ConfigError if options of Ray (`add_engine_options`) stand without it, or against others."""
    if options.engine != "ray":
        if options.ray_address is not None:
            raise ConfigError("--ray_address: belongs to --engine ray, which is missing")
        return
    if options.get("optimize"):
        raise ConfigError("--optimize: is made for the device of this process; leave it out with --engine ray")
    if options.devices not in ("1", "auto"):
        raise ConfigError(f"--devices {options.devices}: leave it out: --engine ray takes the devices of the cluster")


def given_part(options: Any) -> Part | None:
    """Returns the part of ``--shard``; None without.

    Raises:
        ConfigError: If it is not of its form.
    """
    from stvid.data.parts import Part

    return None if options.shard is None else Part.parse(options.shard)


def _is_shard(word: str) -> bool:
    return word == "--shard" or word.startswith("--shard=")


def given_rank(argv: Sequence[str]) -> Rank | None:
    """Returns the place that torchrun or SLURM gave this process, unless it does a ``--shard`` or gives help.

    Raises:
        ConfigError: If their variables make no sense.
    """
    from stvid.evaluation.ranks import Rank

    return None if any(word in ("-h", "--help") or _is_shard(word) for word in argv) else Rank.of_environment()


def check_rank(options: Any, rank: Rank) -> None:
    """Raises ConfigError if options do not go with a process that torchrun or SLURM has started."""
    if options.devices not in ("1", "auto", str(rank.count)):
        raise ConfigError(
            f"--devices {options.devices}: leave it out: this is one of {rank.count} processes that were started from "
            "outside"
        )
    if options.get("engine") == "ray":
        raise ConfigError("--engine ray: one process hands the work to Ray; start it without torchrun or srun")


def run_shared(
    command: str,
    argv: Sequence[str],
    read: Callable[[list[str]], Any],
    work: Callable[[Any, list[str], Team | None], int],
) -> int:
    """Runs a command in the processes that share its videos: those of torchrun or SLURM, or of ``--devices``.

    Args:
        command: Its name.
        argv: Its arguments.
        read: Parses its own options, among them those of `add_sharing_options`.
        work: Does the work of one process, of the options, those of the config, and the team; None for a process by
            itself. Returns the exit code.

    Raises:
        ConfigError: If the options do not fit together, or the variables of torchrun or SLURM make no sense.
    """
    from stvid.evaluation.ranks import started, together

    own, dotted = split_config_options(argv)
    rank = given_rank(own)
    if rank is not None:  # the processes meet first, so that one of them speaks for all
        with together(rank) as team:
            options = read(own)
            check_rank(options, rank)
            return work(options, dotted, team)
    options = read(own)
    count = _device_count(options)
    if count == 1:
        return work(options, dotted, None)
    if options.shard is not None:
        raise ConfigError(f"--devices {options.devices}: a --shard is done by one process; leave one of them out")
    with started(count, [command, *argv]) as rank, together(rank) as team:
        return work(options, dotted, team)


def _device_count(options: Any) -> int:
    """Returns how many processes ``--devices`` asks for.

    Raises:
        ConfigError: If it is no number, or there are not so many devices.
    """
    import torch

    given = options.devices
    if given == "1":
        return 1
    device = pick_device(options.device)
    kind, _, number = device.partition(":")
    if given == "auto":
        return 1 if number or kind != "cuda" else max(1, torch.cuda.device_count())
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"--devices {given}: is neither a number from 1 on nor auto")
    if number:
        raise ConfigError(f"--devices {given}: leave it out; --device {device} names the only one")
    if kind == "cuda" and int(given) > torch.cuda.device_count():
        raise ConfigError(f"--devices {given}: there are {torch.cuda.device_count()} GPUs here")
    return int(given)


def place_on_device(options: Any, team: Team | None) -> None:
    """Puts the device of this process into the options; of a team each process has a GPU of its own.

    Raises:
        ConfigError: If there is no such device here.
    """
    import torch

    options.device = pick_device(options.device)
    if team is None or not options.device.startswith("cuda"):
        return
    if ":" in options.device:
        raise ConfigError(f"--device {options.device}: names one GPU for all processes; write --device cuda")
    torch.cuda.set_device(team.rank.local % torch.cuda.device_count())
