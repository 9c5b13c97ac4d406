"""The methods: one paper, one file; every one is a frozen dataclass with the verb `explain`."""

from .baselines import PGD
from .dime import DiME
from .masks import SelfMask

__all__ = ["DiME", "PGD", "SelfMask"]
