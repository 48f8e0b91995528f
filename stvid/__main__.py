"""``python -m stvid`` is ``stvid``."""

import sys

from stvid.cli import main

if __name__ == "__main__":
    sys.exit(main())
