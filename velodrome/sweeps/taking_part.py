"""Taking part in a sweep: the study is opened, trials are trained, and what is found is written down."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from typing import Any

from velodrome.bench_commands import Stopped
from velodrome.config import Config, to_dict
from velodrome.errors import (
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_RESUMABLE,
    ConfigError,
    InterruptedRunError,
    RunError,
    visible,
)
from velodrome.sweeps.address import shown, sqlite_address
from velodrome.sweeps.place import made_or_found
from velodrome.sweeps.rows import ENDED, SweepFolder
from velodrome.sweeps.space import Space
from velodrome.sweeps.study import OpenStudy, opened
from velodrome.sweeps.sweep_results import Sweep
from velodrome.sweeps.wishes import Wishes
from velodrome.sweeps.worker import Worker

PLAN = "plan"


def take_part(
    config: Config,
    common: Config,
    space: Space,
    wishes: Wishes,
    plan: Mapping[str, Any],
    *,
    epochs: int,
    progress: bool,
) -> Sweep:
    """Train trials of a sweep, with all others who do, until there are enough.

    Args:
        config: as it was given.
        common: what all trials have in common.
        space: what they try.
        wishes: what else is asked.
        plan: what must be the same for all who take part.
        epochs: of the longest trial.
        progress: show it on stderr.

    Raises:
        VelodromeError: as `velodrome.sweep`.
    """
    runs_dir = config.run.runs_dir
    with contextlib.ExitStack() as stack:
        # A file lies in the folder; a server is asked before there is one.
        place = None if wishes.storage else made_or_found(runs_dir, wishes, plan)
        shared = stack.enter_context(
            opened(
                sqlite_address(place.study) if place else str(wishes.storage),
                wishes.study or (place.path.name if place else ""),
                grace_s=wishes.grace_s,
                sampler=wishes.sampler,
                seed=config.run.seed,
                prune=wishes.prune,
                epochs=epochs,
            )
        )
        _check_same(shared, plan)
        place = place or made_or_found(runs_dir, wishes, plan)
        worker = Worker(
            common,
            space,
            shared,
            place,
            wishes.trials,
            wishes.timeout_s,
            wishes.keep_checkpoints,
            progress,
        )
        try:
            worker.work()
            worker.score_best()
            found = _found(config, space, shared, place)
            found.save()
        except (KeyboardInterrupt, InterruptedRunError) as error:
            raise _stopped(error, shared, wishes, place) from error
        except RunError as error:  # of writing, which has begun
            error.exit_code = EXIT_PARTLY
            raise
        return found


def _check_same(shared: OpenStudy, plan: Mapping[str, Any]) -> None:
    """Check that all who take part try the same, and note what that is where nobody has.

    Raises:
        ConfigError: something differs; names it.
    """
    study, where = shared.study, shown(shared.address)
    before, now = study.user_attrs.get(PLAN), json.loads(json.dumps(plan))
    if before is None:
        if study.get_trials(deepcopy=False):
            raise ConfigError(
                f"Study {visible(study.study_name)} in {where} is not one of velodrome sweep.",
                "Use another --study-name.",
            )
        study.set_user_attr(PLAN, now)
        return
    for part, values in now.items():
        for key in {**before[part], **values}:
            old, new = before[part].get(key), values.get(key)
            # A setting may be newer than the sweep.
            if old != new and (key in before[part] or part == "space"):
                raise ConfigError(
                    f"Study {visible(study.study_name)} in {where} was begun with {key} {_said(old)}, but "
                    f"now it is {_said(new)}.",
                    "Use the same as before, or another --name (with --storage, another --study-name).",
                )


def _said(value: object) -> str:
    return "not searched" if value is None else visible(json.dumps(value))


def _found(config: Config, space: Space, shared: OpenStudy, place: SweepFolder) -> Sweep:
    """All that is known of the sweep by now."""
    rows = shared.rows()
    importance, no_importance = shared.importance()
    settings = to_dict(config)
    return Sweep(
        path=place.path,
        study=shared.study.study_name,
        storage=shown(shared.address),
        space=space.to_json(),
        rows=tuple(rows),
        importance=importance,
        no_importance=no_importance,
        run_settings={
            **{key: settings[key] for key in ("score_test", "runs_dir", "data_root", "device")},
            "name": None,
        },
    )


def _stopped(
    error: BaseException, shared: OpenStudy, wishes: Wishes, place: SweepFolder
) -> InterruptedRunError:
    """Say what is kept and how to go on."""
    code = EXIT_RESUMABLE if isinstance(error, Stopped) else EXIT_INTERRUPTED
    code = error.exit_code if isinstance(error, InterruptedRunError) else code
    done = sum(row.status in ENDED for row in shared.rows())
    of = f" of {wishes.trials}" if wishes.trials else ""
    return InterruptedRunError(
        f"Stopped; {done}{of} trials are done, and all is kept in {place.path}.",
        f"Go on with the same command and --name {shlex.quote(place.path.name)}.",
        code,
    )
