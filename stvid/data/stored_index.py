"""The former name of `stvid.video.stored_index`, for one release."""

import warnings

from stvid.video.stored_index import *  # noqa: F403
from stvid.video.stored_index import __all__ as __all__

warnings.warn("stvid.data.stored_index is old: import stvid.video.stored_index", FutureWarning, stacklevel=2)
