"""How the report writes figures. All take anything: what is not a finite number becomes a dash."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

from velodrome.run.folder import number

NONE = "–"

# Neither HTML nor UTF-8 can hold these; a name that was read from a file may.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def percent(value: object) -> str:
    """A share in [0, 1] as a percentage with two decimals."""
    share = number(value)
    return NONE if share is None else f"{100 * share:.2f}%"


def points(value: object) -> str:
    """A difference of two shares, in [-1, 1], in percentage points, with its sign."""
    change = number(value)
    return NONE if change is None else f"{100 * change:+.2f} points".replace("-", "\N{MINUS SIGN}")


def images(value: int) -> str:
    """How many images: 1 image, 1,000 images."""
    return f"{value:,} image" + ("" if value == 1 else "s")


def count(value: object) -> str:
    """A number without decimals, its thousands set apart."""
    found = number(value)
    return NONE if found is None else f"{found:,.0f}"


def loss(value: object) -> str:
    """Four decimals, or four digits where there are more than that before the point."""
    found = number(value)
    if found is None:
        return NONE
    return f"{found:.4f}" if abs(found) < 1000 else f"{found:.4g}"


def rate(value: object) -> str:
    """A learning rate: three digits."""
    found = number(value)
    if found is None:
        return NONE
    return f"{found:#.3g}" if abs(found) < 100 else f"{found:.3g}"


def duration(value: object) -> str:
    """Seconds as people say them: 4.1 s, 41 s, 3 min 05 s, 2 h 31 min."""
    seconds = number(value)
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def words(value: object) -> str:
    """Any JSON value, as a person would write it."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(words(part) for part in value) or NONE
    return str(value)


def pixels(value: object) -> str:
    """A size, or one for each direction: 32, or 32 × 16."""
    if isinstance(value, list):
        return " × ".join(pixels(part) for part in value)
    found = number(value)
    return NONE if found is None else f"{found:,.10g}"


def command_line(value: object) -> str | None:
    """A command as one types it, from a string or a list of words; None where there is none."""
    if isinstance(value, list):
        return shlex.join(str(word) for word in value)
    return value if isinstance(value, str) and value else None


def flattened(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The entries of nested mappings as ("git.commit", "3be7f7b")."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", words(value)


def with_minus(words: str) -> str:
    """The words with a proper minus sign in front of negative numbers."""
    return re.sub(r"(?<![\w.)])-(?=\d)", "\N{MINUS SIGN}", words)


def printable(html: str) -> str:
    """The page with a mark in place of every character that a page cannot hold."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", html)
