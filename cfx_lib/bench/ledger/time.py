"""The claims of TIME."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cfx_lib.bench.claims import Claim, Row

CLAIMS: tuple[Claim, ...] = ()
LIVE: dict[str, Callable[[], Iterable[Row]]] = {}
