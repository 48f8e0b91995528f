import subprocess
import sys

CODE = """
import sys
import stvid.video.comparison, stvid.video.reader, stvid.video.stored_index, stvid.video.streaming
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("stvid", "torch", "av", "decord")))
"""
LOWER = {"stvid", "stvid.errors", "stvid.files", "stvid.version"}


def test_the_reader_is_a_library_of_its_own() -> None:
    loaded = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout.split()
    assert {name for name in loaded if not name.startswith("stvid.video")} <= LOWER  # no torch, no decoder, no data
    assert "stvid.video.reader" in loaded
