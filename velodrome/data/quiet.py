"""What Pillow and the libraries below it print is kept back, for a moment or for good."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator

from PIL import Image

# Python prints what a library logs where nobody has set up logging, as in the command line.
logging.getLogger("PIL").addHandler(logging.NullHandler())
# The filters of warnings, and stderr, belong to the whole process.
_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Pillow's warnings are not shown, whatever the user's filters; that of a bomb is an error.

    Of several threads, one at a time goes on.
    """
    with _one_at_a_time, warnings.catch_warnings():
        _keep_warnings_back()
        yield


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Nothing reaches stderr. libtiff prints there, past Python, and Pillow has no other way to stop it."""
    try:
        kept = os.dup(2)
    except OSError:  # closed already
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def quiet_process() -> None:
    """For a process that does nothing but decode: what `quietly` does, for good, and nothing on stderr."""
    warnings.resetwarnings()
    _keep_warnings_back()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != 2:  # where stderr was closed, it is in its place already
        os.dup2(nowhere, 2)
        os.close(nowhere)


def _keep_warnings_back() -> None:
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
