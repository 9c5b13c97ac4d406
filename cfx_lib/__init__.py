"""Diffusion-based visual counterfactual explanations: the library behind the notebook course.

    from cfx_lib import DiME, zoo, worlds

Names are imported when they are first used, so that `import cfx_lib` itself is fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_METHODS = {
    "ACE": "methods.ace",
    "BlendedDiffusion": "methods.blended",
    "CFResult": "types",
    "DVCE": "methods.dvce",
    "DiME": "methods.dime",
    "HiT": "hit",
    "LDCE": "methods.ldce",
    "Noise": "types",
    "PGD": "methods.baselines",
    "SVCE": "methods.svce",
    "SelfMask": "methods.masks",
    "TIME": "methods.time",
}
_MODULES = ("bench", "diffusion", "learn", "methods", "metrics", "train", "worlds", "zoo")

__all__ = [*_METHODS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _METHODS:
        value = getattr(import_module(f"{__name__}.{_METHODS[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{_nearest(name)}")
    globals()[name] = value
    return value


def _nearest(name: str) -> str:
    from cfx_lib.names import nearest

    return "" if name.startswith("_") else nearest(name, __all__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
