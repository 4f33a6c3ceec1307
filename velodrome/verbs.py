"""What each command of the command line does: settings put together, one call, the result printed.

Imports torch only where a command needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import typing
from collections.abc import Callable
from pathlib import Path

from velodrome import recipes
from velodrome.config import Config, check, is_auto, override, read_yaml, search_section, to_dict, to_yaml
from velodrome.distributed import place_told
from velodrome.errors import ConfigError, PartlyError, RunError
from velodrome.flags import search_given, settings_given
from velodrome.printing import print_json, print_table, say

if typing.TYPE_CHECKING:
    from velodrome.runs import Run


def _config(arguments: argparse.Namespace) -> Config:
    """Recipe, then file, then flags."""
    flags = settings_given(arguments)
    file = read_yaml(arguments.config) if arguments.config else {}
    if flags.keys() & {"steps", "epochs"}:  # another plan than that of the run it is from
        file.pop("replanned", None)
    named = file.pop("recipe", None)
    if arguments.recipe and named is not None and named != arguments.recipe:
        raise ConfigError(
            f"The recipe is {arguments.recipe!r}, but {arguments.config} names {named!r}.",
            "Leave out one of them: the recipe, or the line `recipe:` in the file.",
        )
    fallback = recipes.default_for(flags.get("data", file.get("data")))
    base = recipes.by_name(str(arguments.recipe or named or fallback))()
    if init := flags.get("init", file.get("init")):
        from velodrome.fine_tuning import network_of

        base = override(base, network_of(Path(str(init))))
    return check(override(override(base, file, str(arguments.config)), flags, "flags"))


def _train(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    if arguments.print_config:
        _print_config(config, arguments)
        return
    from velodrome import planning, session

    if arguments.dry_run:
        if arguments.resume:
            raise ConfigError(
                "--resume and --dry-run exclude each other: a plan is for a new run.", "Leave one out."
            )
        plan = planning.plan(config)
        print_json(plan) if arguments.json else print_table(plan)
        return
    run = session.train(config, progress=not arguments.quiet, resume=arguments.resume)
    if place_told().rank > 0:  # the first rank says it for all
        return
    _tell_result(run, arguments)
    from velodrome.comparison.since_last import change_since_last

    if not arguments.quiet and (change := change_since_last(run.folder)):
        say(change)


def _print_config(config: Config, arguments: argparse.Namespace) -> None:
    print_json(to_dict(config)) if arguments.json else sys.stdout.write(to_yaml(config))


def _resume(arguments: argparse.Namespace) -> None:
    given = settings_given(arguments)
    checked = override(Config(), given, "flags")
    if is_auto(checked.train.epochs):
        raise ConfigError("--epochs is 'auto', but must be a whole number here.", "For instance --epochs 30.")
    from velodrome import session

    run = session.resume(
        arguments.path,
        epochs=checked.train.epochs if "epochs" in given else None,
        data=checked.data.data if "data" in given else None,
        data_root=checked.data.data_root,
        progress=not arguments.quiet,
    )
    if place_told().rank == 0:
        _tell_result(run, arguments)


def _lr_find(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    search = search_section(search_given(arguments), "flags")
    from velodrome import session

    found = session.lr_find(config, progress=not arguments.quiet, **dataclasses.asdict(search))
    if arguments.json:
        print_json(found.to_dict())
        return
    print_table(dict(found.rows()))
    sys.stdout.write(
        f"\nFigures and data: {found.path}. To train with it: velodrome train --lr {found.lr_max:g}\n"
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    given = settings_given(arguments)
    checked = override(Config(), given, "flags")
    from velodrome import session

    found = session.evaluate(
        arguments.path,
        data=arguments.data,
        data_root=checked.data.data_root,
        layer=arguments.layer,
        device=checked.run.device,
        precision=checked.run.precision if "precision" in given else None,
        progress=not arguments.quiet,
    )
    if arguments.json:
        print_json(found.to_dict())
    else:
        print_table(dict(found.rows()))
        page = shlex.quote(str(found.page))
        sys.stdout.write(f"\n{found.table()}\n\nLook at it: python3 -m webbrowser {page}\n")
    if found.failed:
        problem = (
            f"{len(found.failed):,} of {len(found.failed) + found.figures.images:,} files cannot be read."
        )
        raise PartlyError(problem, "The figures are for the others.")


def _predict(arguments: argparse.Namespace) -> None:
    top = _whole_number("--top", arguments.top)
    if arguments.layer and not arguments.explain:
        raise ConfigError("--layer is for the pictures of --explain.", "Add --explain DIR, or leave it out.")
    from velodrome import session

    found = session.predict(
        arguments.path, arguments.images, top=top, explain=arguments.explain, layer=arguments.layer
    )
    if arguments.json:
        print_json(found.to_dict())
    elif found.predictions:
        sys.stdout.write(f"{found.table()}\n")
    for failure in found.failed:
        say(f"velodrome: {failure}")
    if found.failed:
        raise PartlyError(
            f"{len(found.failed):,} of {len(found.failed) + len(found.predictions):,} could not be answered.",
            "The reasons are above." if found.predictions else "Give image files, or folders of them.",
        )


def _whole_number(flag: str, text: str) -> int:
    """A whole number at least 1 from a flag.

    Raises:
        ConfigError: it is none.
    """
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise ConfigError(
            f"{flag} is {text!r}, but must be a whole number at least 1.", f"For instance {flag} 10."
        )
    return number


def _tell_result(run: Run, arguments: argparse.Namespace) -> None:
    result = run.result
    if arguments.json:
        print_json(result)
        return
    page = shlex.quote(str(run.folder.report))
    try:
        figures = (
            f"{result['test_accuracy']:.2%} test accuracy "
            f"({result['test_accuracy_tta']:.2%} with test-time augmentation), "
            f"{result['train_seconds']:.0f} s of training."
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.folder.result} is damaged: it does not hold the figures of a run.",
            "Restore it from a copy; or delete it, then velodrome resume makes it again.",
        ) from error
    sys.stdout.write(f"{run.path}: {figures} Look at it: python3 -m webbrowser {page}\n")


def _report(arguments: argparse.Namespace) -> None:
    from velodrome import reports

    path = reports.report(arguments.path, arguments.output)
    sys.stdout.write(f"{path}\n")


def _compare(arguments: argparse.Namespace) -> None:
    from velodrome.comparison.command import compare_and_write

    found = compare_and_write(
        arguments.runs,
        baseline=arguments.baseline,
        across_data=arguments.across_data,
        table=arguments.csv,
        page=arguments.output,
    )
    print_json(found.to_dict()) if arguments.json else sys.stdout.write(f"{found}\n")
    if missing := found.what_is_missing():
        raise missing


def _trials(arguments: argparse.Namespace) -> None:
    config, seeds = _config(arguments), _whole_number("--seeds", arguments.seeds)
    if arguments.print_config:
        _print_config(config, arguments)
        return
    from velodrome import trial_plan, trial_runs

    vary, also = trial_plan.parse_vary(arguments.vary), trial_plan.parse_also(arguments.also)
    if arguments.dry_run:
        plan = trial_runs.plan(config, seeds=seeds, vary=vary, also=also)
        print_json(plan) if arguments.json else print_table(trial_runs.rows_of_plan(plan))
        return
    found = trial_runs.trials(config, seeds=seeds, vary=vary, also=also, progress=not arguments.quiet)
    print_json(found.to_dict()) if arguments.json else sys.stdout.write(f"{found}\n\n{found.where()}\n")
    if failed := found.what_failed():
        raise PartlyError(*failed)


def _data(arguments: argparse.Namespace) -> None:
    _data_check(arguments) if arguments.verb == "check" else _data_clear(arguments)


def _data_check(arguments: argparse.Namespace) -> None:
    given = settings_given(arguments)
    config = override(override(recipes.folder(), {"data": arguments.data}), given, "flags")
    from velodrome import checking

    found = checking.check_data(config, progress=not arguments.quiet)
    if arguments.json:
        print_json({"path": str(found.path), **found.to_dict()})
    else:
        sys.stdout.write(f"{found}\n\nData and contact sheet: {found.path}\n")
    if found.findings.errors:
        raise PartlyError("These images cannot be trained on as they are.", "Mend what is an error above.")


def _data_clear(arguments: argparse.Namespace) -> None:
    if (arguments.data is None) != arguments.all:
        raise ConfigError("It is not clear what to clear.", "Give the path of one data set, or --all.")
    from velodrome import checking

    freed = checking.clear_data(arguments.data)
    if arguments.json:
        print_json({"freed_bytes": freed})
    else:
        sys.stdout.write(f"{checking.tell_cleared(arguments.data, freed)}\n")


def _bench(arguments: argparse.Namespace) -> None:
    config, runs = _config(arguments), _whole_number("--runs", arguments.runs)
    if arguments.print_config:
        _print_config(config, arguments)
        return
    from velodrome import bench_results, benching

    bench_results.check_output(arguments.output)
    if arguments.dry_run:
        plan = benching.plan(config, runs=runs, against=arguments.against)
        print_json(plan) if arguments.json else print_table(plan)
        return
    found = benching.bench(
        config,
        runs=runs,
        against=arguments.against,
        against_accuracy=arguments.against_accuracy,
        progress=not arguments.quiet,
    )
    if arguments.output:
        bench_results.append(arguments.output, f"{found}\n")
    if arguments.json:
        print_json({"path": str(found.path), **found.to_dict()})
    else:
        sys.stdout.write(f"The table is in {arguments.output}\n" if arguments.output else f"{found}\n")
    failed = benching.what_failed(found)
    if failed:
        raise PartlyError(*failed)


def _sweep(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    if arguments.print_config:
        _print_config(config, arguments)
        return
    from velodrome.sweeps.command import carry_out

    carry_out(config, arguments, settings_given(arguments))


def _summary(arguments: argparse.Namespace) -> None:
    flags = settings_given(arguments)
    if arguments.name is not None:
        flags["model"] = arguments.name
    config = override(Config(), flags, "flags")
    classes = _whole_number("--classes", arguments.classes)
    from velodrome import planning

    summary = planning.summary_of(config.model, classes)
    if arguments.json:
        print_json(summary.to_dict())
    else:
        sys.stdout.write(f"{summary}\n")


def _doctor(arguments: argparse.Namespace) -> None:
    config = override(Config(), settings_given(arguments), "flags")
    from velodrome import planning

    findings = planning.examine(config)
    print_json(findings) if arguments.json else print_table(findings)


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "resume": _resume,
    "lr-find": _lr_find,
    "evaluate": _evaluate,
    "predict": _predict,
    "report": _report,
    "compare": _compare,
    "trials": _trials,
    "data": _data,
    "bench": _bench,
    "sweep": _sweep,
    "summary": _summary,
    "doctor": _doctor,
}
