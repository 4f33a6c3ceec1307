"""What commands print: results on stdout, everything else on stderr. Never imports torch."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any


def print_json(value: object) -> None:
    """A value as JSON on one line of stdout."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    sys.stdout.write(text + "\n")


def print_table(values: dict[str, Any]) -> None:
    """Names and values in two columns; a nested object is indented under its name."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        label = name.replace("_", " ")
        if isinstance(value, dict):
            inner = "; ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
            sys.stdout.write(f"{label:<{width}}  {inner}\n")
        else:
            sys.stdout.write(f"{label:<{width}}  {_plain(value)}\n")


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def say(line: str) -> None:
    """A line on stderr, unless nobody listens there."""
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
