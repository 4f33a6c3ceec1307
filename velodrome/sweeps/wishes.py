"""What is asked of a sweep, beside what its trials are; checked before anything is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

from velodrome.config import FOLDER_NAME, TIME, Config, seconds_of
from velodrome.errors import ConfigError, did_you_mean, visible
from velodrome.sweeps.address import check_address

SAMPLERS = ("tpe", "random")
TRIALS = 20  # where neither their number nor a time is given
GRACE = "60s"
# Names of studies may be this long in every database.
LONGEST_NAME = 200


@dataclass(frozen=True)
class Wishes:
    """What is asked of a sweep.

    Attributes:
        trials: how many there shall be, over all workers and starts; None for as many as there is time for.
        timeout_s: seconds after which this worker begins no trial any more; None for no such time.
        sampler: "tpe" or "random".
        prune: give up trials that do worse than the others.
        storage: address of the study; None for a file in the folder of the sweep.
        study: its name; None for the name of that folder.
        folder: name of the folder; None for a number.
        keep_checkpoints: also of trials that are not the best.
        grace_s: a worker without a sign of life for so many seconds is taken for dead.
    """

    trials: int | None
    timeout_s: float | None
    sampler: str
    prune: bool
    storage: str | None
    study: str | None
    folder: str | None
    keep_checkpoints: bool
    grace_s: int


def check_wishes(
    config: Config,
    *,
    trials: int | None,
    timeout: str | None,
    sampler: str,
    prune: bool,
    storage: str | None,
    study_name: str | None,
    keep_checkpoints: bool,
    grace: str,
) -> Wishes:
    """The wishes, if they can be met.

    Args:
        config: names the folder, perhaps.
        trials: as for `velodrome.sweep`, and so are all others.
        timeout: likewise.
        sampler: likewise.
        prune: likewise.
        storage: likewise.
        study_name: likewise.
        keep_checkpoints: likewise.
        grace: likewise.

    Raises:
        ConfigError: one of them cannot.
    """
    if trials is not None and trials < 1:
        raise ConfigError(f"trials is {trials}, but must be at least 1.", "For instance --trials 20.")
    if sampler not in SAMPLERS:
        raise ConfigError(
            f"--sampler is {visible(sampler)!r}, but must be {' or '.join(SAMPLERS)}.",
            did_you_mean(sampler, SAMPLERS),
        )
    timeout_s = None if timeout is None else _seconds("--timeout", timeout)
    return Wishes(
        trials=TRIALS if trials is None and timeout is None else trials,
        timeout_s=timeout_s,
        sampler=sampler,
        prune=prune,
        storage=None if storage is None else check_address(storage),
        study=_check_name(study_name, config.run.name, storage),
        folder=config.run.name or study_name,
        keep_checkpoints=keep_checkpoints,
        grace_s=max(1, math.ceil(_seconds("--grace", grace))),
    )


def _seconds(flag: str, text: str) -> float:
    try:
        return seconds_of(text)
    except ValueError:
        raise ConfigError(
            f"{flag} is {visible(text)!r}, but must be {TIME.words}.", f"For instance {flag} 1h."
        ) from None


def _check_name(study: str | None, folder: str | None, storage: str | None) -> str | None:
    """The name of the study, if all workers would take part in the same."""
    if study is None:
        if storage is not None and folder is None:
            raise ConfigError(
                "--storage is given, but no name by which all workers find the same study.",
                "Give all of them the same --study-name.",
            )
        return folder
    if not 0 < len(study) <= LONGEST_NAME or not study.isprintable():
        raise ConfigError(
            f"--study-name is {visible(study)!r}, but must be a line of 1 to {LONGEST_NAME} characters.",
            "For instance --study-name width.",
        )
    if folder is None and not FOLDER_NAME.holds(study):
        raise ConfigError(
            f"--study-name is {study!r}, but must be {FOLDER_NAME.words}, unless there is a --name.",
            "Use another, or give the folder a --name.",
        )
    return study
