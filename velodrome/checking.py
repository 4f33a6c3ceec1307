"""What is in a user's images and what is wrong with it: a table, a JSON file and a picture."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velodrome.config import HUB, NAMED_DATA, Config, is_own, override
from velodrome.data.own.contact_sheet import contact_sheet
from velodrome.data.own.findings import Findings
from velodrome.data.own.own_data import OwnData, read_own
from velodrome.data.own.prepared import clear, clear_all
from velodrome.data.own.prepared_cache import resolved
from velodrome.data.sources import telling
from velodrome.errors import ConfigError, visible
from velodrome.recipes import folder
from velodrome.run.folder import (
    RunFolder,
    check_can_write,
    check_name_is_free,
    create_run,
    write_atomically,
    write_json,
)


@dataclass(frozen=True, eq=False)
class DataCheck:
    """What was found in a user's images.

    Attributes:
        own: the images, and all that is to be said about them.
        path: of the folder with data_check.json and contact_sheet.png.
    """

    own: OwnData
    path: Path

    @property
    def findings(self) -> Findings:
        """What was found, the gravest first."""
        return self.own.findings

    def __str__(self) -> str:
        """Counts, sizes and findings as text for a terminal."""
        size = f"Image size: {self.own.why or f'{self.own.side} pixels'}"
        return "\n".join([self.findings.table(), size, "", *self.findings.lines()]).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """The content of data_check.json."""
        return self.own.to_dict()

    def _repr_html_(self) -> str:
        sheet = base64.b64encode(RunFolder(self.path).contact_sheet.read_bytes()).decode()
        return f'<pre>{html.escape(str(self))}</pre><img src="data:image/png;base64,{sheet}">'


def check_data(data: Config | Path | str, *, progress: bool = True, **settings: object) -> DataCheck:
    """Look through a user's images as training would, and write down what is found.

    Leaves a folder with data_check.json and contact_sheet.png, and the images prepared in the cache.

    Args:
        data: path of the images, or whatever else the setting `data` may be; or a whole config.
        progress: say on stderr what takes time.
        settings: such as `image_size`, `test_fraction` or `labels`, and `runs_dir`, where the folder goes.

    Raises:
        ConfigError: a setting is wrong, or the data set is one that velodrome knows by name.
        DataError: there is no data set there.
        RunError: the folder cannot be made.
    """
    config = override(data if isinstance(data, Config) else folder(data=str(data)), settings)
    if not is_own(config.data.data):
        raise ConfigError(
            f"data is {config.data.data!r}, which is verified whenever it is read.",
            "Give the path of your own images.",
        )
    check_can_write(config.run.runs_dir)
    check_name_is_free(config.run.runs_dir, config.run.name)
    with telling(progress) as (say, bar):
        own = read_own(config.data, say=say, bar=bar)

    made = create_run(
        config.run.runs_dir, config.run.name, "data-check", lambda draft: write_check(draft, own)
    )
    return DataCheck(own, made.path)


def write_check(folder: RunFolder, own: OwnData) -> None:
    """Write what was found: data_check.json and contact_sheet.png.

    Raises:
        RunError: the folder cannot be written.
    """
    write_json(folder.data_check, own.to_dict())
    write_atomically(folder.contact_sheet, contact_sheet(own.findings.contents, own.pick, own.name))


def clear_data(data: Path | str | None) -> int:
    """Remove from the cache what was prepared of a user's images; the images themselves stay.

    Args:
        data: path of the images, which may be gone, or hf:NAME; None for all that were ever prepared.

    Returns:
        The bytes that were freed.

    Raises:
        ConfigError: it is one of the named data sets.
        DataError: something cannot be removed.
    """
    if data is None:
        return clear_all()
    if str(data) in NAMED_DATA:
        raise ConfigError(
            f"data is {str(data)!r}, but only own images are prepared.", "Give the path of your own images."
        )
    return clear(Path(data).expanduser())


def tell_cleared(data: Path | str | None, freed_bytes: int) -> str:
    """What `clear_data` did, in words.

    Args:
        data: as there.
        freed_bytes: as it said.
    """
    place = "" if data is None else visible(str(resolved(Path(data).expanduser())))
    if not freed_bytes:
        what = f"nothing of {place}" if place else "no prepared images"
        return f"The cache holds {what}, so nothing is freed."
    freed = f"{freed_bytes / 1e6:,.1f} MB freed"
    if place.startswith(HUB):
        return f"{freed}: the images of {place} as files, and what was prepared of them."
    return f"{freed}. The images themselves are where they were."
