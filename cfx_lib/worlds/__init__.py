"""Where images come from: `worlds.personas`, `worlds.avatars`, `worlds.fashion`, `worlds.folders`; and which classes
to ask for, `worlds.targets`. Imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfx_lib.worlds import avatars, fashion, folders, personas, targets

__all__ = ["avatars", "fashion", "folders", "personas", "targets"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"cfx_lib.worlds.{name}")
    raise AttributeError(f"cfx_lib.worlds has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
