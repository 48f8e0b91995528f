from __future__ import annotations

from collections.abc import Sequence

import pytest

from stvid.commands.dispatch import dispatch


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 1, "there is too little memory here"),
        (
            ImportError("libtorch.so: failed to map segment from shared object"),
            1,
            "memory here (libtorch.so",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "too little memory here (Default"),
        (OSError(12, "Cannot allocate memory"), 1, "Cannot allocate memory"),
        (RuntimeError("something else"), 70, "internal error: RuntimeError: something else (STVID_DEBUG=1"),
    ],
)
def test_a_want_of_memory_is_no_internal_error(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: Sequence[str]) -> int:
        raise error

    assert dispatch("stvid", "", {"fail": fail}, ["fail"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("stvid: error: ") and said in printed and printed.count("\n") == 1
