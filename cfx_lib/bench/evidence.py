"""Where the checks of the ledger get their measurements: tables made here, tables of data/results/, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cfx_lib.bench import results

__all__ = ["Evidence", "Row"]

Row = Mapping[str, Any]


@dataclass
class Evidence:
    """Measurements for checks. `makers`: table -> how to make its rows (some of them, on a few images), in fast mode."""

    mode: str = "full"
    makers: Mapping[str, Callable[[], Iterable[Row]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _made: dict[str, list[Row]] = field(default_factory=dict)
    _kept: dict[str, results.Result] = field(default_factory=dict)

    def rows(self, table: str, **wanted: Any) -> list[Row]:
        """The rows with these entries, made here if they can be, else those of data/results/. None of them: an empty list.

        Raises FileNotFoundError for a table that is neither made here nor stored.
        """
        return self._found(table, wanted)

    def _found(self, table: str, wanted: Row, column: str | None = None) -> list[Row]:
        """The rows with these entries and, where one is named, this column: of those made here, else of the stored ones."""
        if found := _matching(self._here(table), wanted, column):
            self._note(f"made here: {table}")
            return found
        if table not in self._kept:
            self._kept[table] = results.load(table)
        self._note(f"stored: {table}{', other weights' if results.stale(self._kept[table]) else ''}")
        return _matching(self._kept[table].rows, wanted, column)

    def value(self, table: str, column: str, **wanted: Any) -> Any:
        """The entry of the one row with these entries; None where it was not measured.

        Raises KeyError where there is no such row, ValueError for more than one.
        """
        found = self._found(table, wanted, column)
        if len(found) > 1:
            raise ValueError(f"{table}: {len(found)} rows with {wanted} and {column}; ask for exactly one.")
        if not found:
            raise KeyError(f"{table}: no row with {wanted} and {column}")
        return found[0][column]

    def values(self, table: str, column: str, *wanted: Row) -> list[Any]:
        """The entries of several rows that are compared: all made here or all stored, so that they count the same images."""
        here = self._here(table)
        whole = all(_matching(here, one, column) for one in wanted)
        source = self if whole else replace(self, mode="full")
        return [source.value(table, column, **one) for one in wanted]

    def computed(self) -> None:
        """A check calls this when it computes by itself."""
        self._note("computed")

    def _here(self, table: str) -> list[Row]:
        """The rows that are made here, once; none in full mode and for tables without a maker."""
        if self.mode != "fast" or table not in self.makers:
            return []
        if table not in self._made:
            self._made[table] = list(self.makers[table]())
        return self._made[table]

    def _note(self, source: str) -> None:
        if source not in self.asked:
            self.asked.append(source)


def _matching(rows: Iterable[Row], wanted: Row, column: str | None) -> list[Row]:
    has_it = (row for row in rows if column is None or column in row)
    return [row for row in has_it if all(_same(row.get(name), value) for name, value in wanted.items())]


def _same(entry: Any, wanted: Any) -> bool:
    return entry == wanted or str(entry) == str(wanted)
