"""The methods: one paper, one file; every one is a frozen dataclass with the verb `explain`."""

from .ace import ACE
from .baselines import PGD, SVCE, BlendedDiffusion
from .dime import DiME
from .dvce import DVCE
from .ldce import LDCE
from .masks import SelfMask
from .time import TIME

__all__ = ["ACE", "BlendedDiffusion", "DVCE", "DiME", "LDCE", "PGD", "SVCE", "SelfMask", "TIME"]
