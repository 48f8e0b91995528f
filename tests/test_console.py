import os
import subprocess
import sys

import pytest

from stvid.console import command_line, printable, progress_bar


def test_the_bar_shows_title_and_count_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("[clips]", 5, done=2, enabled=True) as bar:
        bar.advance(2)
        bar.advance(title="[clips] (1 failed)")
    shown = capsys.readouterr()
    assert "[clips] (1 failed)" in shown.err and "5/5" in shown.err
    assert not shown.out


def test_bytes_are_shown_in_units(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("weights.pth", 3_000_000, done=500_000, enabled=True, in_bytes=True) as bar:
        bar.advance(1_000_000)
    assert "1.5/3.0 MB" in capsys.readouterr().err
    with progress_bar("weights.pth", None, enabled=True, in_bytes=True) as bar:
        bar.advance(7000)
    assert "7.0/? kB" in capsys.readouterr().err


@pytest.mark.parametrize("enabled", [False, None])
def test_nothing_is_shown_if_it_is_switched_off_or_there_is_no_terminal(
    enabled: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not sys.stderr.isatty()
    with progress_bar("clips", 3, enabled=enabled) as bar:
        bar.advance(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("run fast é 跑", "run fast é 跑"),
        ("a\nb\r\t", "a\\nb\\r\\t"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\x9b31m \u2028", "\\u009b31m \\u2028"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        (os.fsdecode(b"caf\xe9.mp4"), "caf\\xe9.mp4"),
    ],
)
def test_control_characters_are_shown_and_not_sent(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(f"{text}\n", keep="\n") == (shown if "\n" not in text else "a\nb\\r\\t") + "\n"


@pytest.mark.parametrize(
    "name", ["plain", "my runs/it's first", "a\nb", "esc\x1b[1m", "back\\slash\n'", "$HOME `x`", os.fsdecode(b"\xe9 '")]
)
def test_a_command_can_be_pasted(name: str) -> None:
    line = command_line("printf", "%s", name)
    assert "\n" not in line and printable(line) == line
    assert subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout == os.fsencode(name)
