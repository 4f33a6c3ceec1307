"""What goes wrong when files from outside are read, in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from velodrome.data.image_files import reason
from velodrome.data.own.listing import shown
from velodrome.errors import DataError, VelodromeError


@contextlib.contextmanager
def damage_named(path: Path, kind: str) -> Iterator[None]:
    """Whatever a decoder raises inside becomes an error that names the file.

    Args:
        path: of the file that is read.
        kind: what it is, with a capital, such as "Archive".

    Raises:
        DataError: something was raised. Errors of velodrome's own pass.
    """
    try:
        yield
    except VelodromeError:
        raise
    except PermissionError as error:
        raise DataError(
            f"{kind} {shown(path)} cannot be read: {reason(error)}.", "Mend its permissions."
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{kind} {shown(path)} takes more memory than there is.", "Make it smaller, or split it."
        ) from error
    # Damaged bytes make decoders raise nearly everything.
    except Exception as error:
        raise DataError(
            f"{kind} {shown(path)} is truncated or damaged: {reason(error)}.",
            "Restore it from where it came from.",
        ) from error
