"""Files of weights, read without running anything of what they hold.

`read_weight_file` opens any of them; `find_candidates` lists what in the content may be the state of a network.
"""

from stvid.weight_files.folders import holds_weights
from stvid.weight_files.one_file import WeightFile
from stvid.weight_files.placeholders import Placeholder
from stvid.weight_files.reading import read_weight_file
from stvid.weight_files.states import Candidate, find_candidates
from stvid.weight_files.sums import CHECKED, seal

__all__ = [
    "CHECKED",
    "Candidate",
    "Placeholder",
    "WeightFile",
    "find_candidates",
    "holds_weights",
    "read_weight_file",
    "seal",
]
