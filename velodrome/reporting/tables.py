"""The plain pieces that the page is made of: figures with names, and tables of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velodrome.reporting import text

# A table with more rows than this starts folded.
LONG_TABLE = 12

Column = tuple[str, str, Callable[[object], str]]  # key, heading, how to write a value


@dataclass(frozen=True)
class Fact:
    """A figure with its name."""

    name: str
    value: str


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row names it, and columns from `numbers` on hold figures."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int

    @property
    def is_long(self) -> bool:
        """Whether the table starts folded."""
        return len(self.rows) > LONG_TABLE


def tabulate(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], numbers: int) -> Table:
    """The rows as texts; a column without any value is left out."""
    used = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    return Table(
        tuple(heading for _, heading, _ in used),
        tuple(tuple(write(row.get(key)) for key, _, write in used) for row in rows),
        numbers,
    )


def with_values(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """The facts that have a value."""
    return tuple(fact for fact in facts if fact.value != text.NONE)


def mapping(value: object) -> Mapping[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list[Any]:
    """The value where it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []
