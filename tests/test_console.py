import sys

import pytest

from stvid.console import progress_bar


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
