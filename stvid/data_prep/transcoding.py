"""The former name of `stvid.data.transcoding`, for one release."""

import warnings

from stvid.data.transcoding import *  # noqa: F403
from stvid.data.transcoding import __all__ as __all__

warnings.warn("stvid.data_prep.transcoding is old: import stvid.data.transcoding", FutureWarning, stacklevel=2)
