"""The command line as argparse sees it: commands, and a flag for every setting in `velodrome.config`.

The values of flags go through the same conversion and the same checks as YAML values, so that an error reads
the same wherever it comes from. Never imports torch.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import velodrome
from velodrome import recipes
from velodrome.config import SEARCH_SETTINGS, SECTIONS, SETTINGS, Setting, describe_kind
from velodrome.errors import ConfigError, did_you_mean, nearest

# What a look at own images depends on.
DATA_CHECK = ("labels", "image_size", "image_fit", "test_fraction", "split_seed", "on_bad_image", "cache_by")
# What a range test finds, and what makes no difference to it.
NOT_FOR_LR_FIND = (
    "lr",
    "lr_min",
    "lr_final",
    "steps",
    "time_budget",
    "replanned",
    "early_stop",
    "compile",
    "checkpoint_every",
)

# What a value is called in the help, where its type does not say.
METAVARS = {"init": "RUN", "labels": "FILE", "time_budget": "TIME", "replanned": "STEP:STEPS"}


def parse(words: Sequence[str]) -> argparse.Namespace | None:
    """The arguments of a command, or None where only help was asked for.

    Raises:
        ConfigError: a command, option or argument is unknown or incomplete.
    """
    parser, commands = _make_parser()
    if not words:
        parser.print_help()
        return None
    if not words[0].startswith("-") and words[0] not in commands:
        raise ConfigError(f"{words[0]!r} is not a command.", did_you_mean(words[0], commands))
    try:
        arguments, unknown = parser.parse_known_args(words)
    except SystemExit:  # --help and --version have printed what was asked for
        return None
    if unknown:
        raise _unknown(unknown[0], words[0], commands.get(words[0], parser))
    return arguments


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError instead of ending the process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message[0].upper() + message[1:] + ".", f"See {self.prog} --help.")


def _unknown(word: str, command: str, parser: argparse.ArgumentParser) -> ConfigError:
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    name = word.partition("=")[0]
    if not name.startswith("-"):
        return ConfigError(f"{word!r} is one argument too many.", f"See velodrome {command} --help.")
    close = nearest(name, flags)
    remedy = f"Did you mean {close}?" if close else f"See velodrome {command} --help."
    return ConfigError(f"{name} is not an option of velodrome {command}.", remedy)


def _make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="velodrome",
        description="Train a small image classifier fast, and see why it errs.",
        epilog="A first try in a minute: velodrome train --data shapes",
    )
    parser.add_argument("--version", action="version", version=f"velodrome {velodrome.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    made = {
        "train": _add_train(commands),
        "resume": _add_resume(commands),
        "lr-find": _add_lr_find(commands),
        "evaluate": _add_evaluate(commands),
        "predict": _add_predict(commands),
        "report": _add_report(commands),
        "compare": _add_compare(commands),
        "trials": _add_trials(commands),
        "data": _add_data(commands),
        "bench": _add_bench(commands),
        "sweep": _add_sweep(commands),
        "summary": _add_summary(commands),
        "doctor": _add_doctor(commands),
    }
    return parser, made


def _add_command(commands: Any, name: str, about: str) -> Any:
    parser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(command=name)
    return parser


def _add_train(commands: Any) -> argparse.ArgumentParser:
    parser = _add_command(commands, "train", "train, evaluate and report: one run folder")
    words = "auto: go on with the run of that --name where there is one, for jobs that are started again"
    parser.add_argument("--resume", metavar="auto", help=words)
    _add_training(parser)
    return typing.cast(argparse.ArgumentParser, parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    """The recipe and everything that may be said about how it is trained."""
    _add_recipe(parser)
    parser.add_argument("--print-config", action="store_true", help="print all settings as YAML and stop")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen and stop")
    _add_output_flags(parser)
    for section in SECTIONS:
        _add_settings(parser, section)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(recipes.RECIPES)
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help=f"{names}; without one, what fits the data"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with settings; flags win over it"
    )


def _add_lr_find(commands: Any) -> argparse.ArgumentParser:
    about = "find the learning rate by a range test: table, figure, LRMAX and LRMIN"
    parser = _add_command(commands, "lr-find", about)
    _add_recipe(parser)
    _add_output_flags(parser)
    group = parser.add_argument_group("search", "How the learning rate is searched for.")
    _add_flags(group, SEARCH_SETTINGS.values(), "search_")
    for section in SECTIONS:
        _add_settings(parser, section, without=NOT_FOR_LR_FIND)
    return typing.cast(argparse.ArgumentParser, parser)


def _add_resume(commands: Any) -> argparse.ArgumentParser:
    parser = _add_command(commands, "resume", "go on exactly where a run stopped")
    parser.add_argument("path", type=Path, metavar="RUN", help="run folder")
    _add_output_flags(parser)
    more = "more epochs than the run has; the added ones keep the learning rate with which its schedule ends"
    parser.add_argument("--epochs", dest="set_epochs", metavar="N", default=argparse.SUPPRESS, help=more)
    moved = "where the run's own images lie now, if they have moved; they must be the same images"
    parser.add_argument("--data", dest="set_data", metavar="D", default=argparse.SUPPRESS, help=moved)
    _add_settings(parser, "data", only=("data_root",))
    return typing.cast(argparse.ArgumentParser, parser)


def _add_evaluate(commands: Any) -> argparse.ArgumentParser:
    about = "accuracy, loss, calibration, confusion, per class; the mistakes with Grad-CAM; the page again"
    parser = _add_command(commands, "evaluate", about)
    parser.add_argument("path", type=Path, metavar="RUN", help="run folder")
    which = (
        "another data set, as for train: its test images, else those to validate on, else all of them; "
        "without it the run's own"
    )
    parser.add_argument("--data", metavar="D", help=which)
    _add_layer(parser)
    _add_output_flags(parser)
    _add_settings(parser, "data", only=("data_root",))
    _add_settings(parser, "run", only=("device",))
    precision = "auto, fp32, bf16 or fp16; else that of the run"
    parser.add_argument(
        "--precision", dest="set_precision", metavar="NAME", default=argparse.SUPPRESS, help=precision
    )
    return typing.cast(argparse.ArgumentParser, parser)


def _add_predict(commands: Any) -> argparse.ArgumentParser:
    parser = _add_command(commands, "predict", "the most probable classes of any image files")
    parser.add_argument("path", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument("--top", default="3", metavar="K", help="how many classes to name (default: 3)")
    pictures = "folder for a picture of each image with Grad-CAM maps of its first classes"
    parser.add_argument("--explain", type=Path, metavar="DIR", help=pictures)
    _add_layer(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return typing.cast(argparse.ArgumentParser, parser)


def _add_data(commands: Any) -> argparse.ArgumentParser:
    about = "what is in your own images and what is wrong with it; what was prepared of them"
    parser = _add_command(commands, "data", about)
    verbs = parser.add_subparsers(metavar="check|clear", required=True)
    about = (
        "counts, sizes, unreadable files, duplicates, leaks: a table, data_check.json and contact_sheet.png"
    )
    check = verbs.add_parser("check", help=about, description=about)
    check.set_defaults(verb="check")
    what = "folder of images, table, archive or .npz file; or hf:NAME"
    check.add_argument("data", metavar="D", help=what)
    _add_output_flags(check)
    _add_settings(check, "data", only=DATA_CHECK)
    _add_settings(check, "run", only=("runs_dir", "name"))
    about = "remove from the cache what was prepared of your own images; the images themselves stay"
    clear = verbs.add_parser("clear", help=about, description=about)
    clear.set_defaults(verb="clear")
    clear.add_argument("data", metavar="D", nargs="?", help=what)
    clear.add_argument("--all", action="store_true", help="of all data sets")
    clear.add_argument("--json", action="store_true", help="print one JSON object")
    return typing.cast(argparse.ArgumentParser, parser)


def _add_layer(parser: argparse.ArgumentParser) -> None:
    words = "stage of the network whose Grad-CAM maps to show (default: layer2)"
    parser.add_argument("--layer", metavar="NAME", help=words)


def _add_report(commands: Any) -> argparse.ArgumentParser:
    parser = _add_command(commands, "report", "write the page of a run again, from its folder alone")
    parser.add_argument("path", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--output", type=Path, metavar="F", help="HTML file; else RUN/report.html")
    return typing.cast(argparse.ArgumentParser, parser)


def _add_compare(commands: Any) -> argparse.ArgumentParser:
    about = "runs side by side: means with confidence intervals, what differs, whether it matters, mistakes"
    parser = _add_command(commands, "compare", about)
    which = "run folders, folders that hold run folders (of trials, of a bench), or globs of such"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=which)
    baseline = "what to compare with: a run, or settings such as cutout=16; else the variant of the first run"
    parser.add_argument("--baseline", metavar="NAME", help=baseline)
    across = "take runs with other test images too, marked, and without statements about them"
    parser.add_argument("--across-data", action="store_true", help=across)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write one self-contained HTML page")
    return typing.cast(argparse.ArgumentParser, parser)


def _add_trials(commands: Any) -> argparse.ArgumentParser:
    about = "a recipe, or variants of it, with several seeds: means with intervals, compared"
    parser = _add_command(commands, "trials", about)
    group = parser.add_argument_group(
        "trials", "What is tried. With the --name of trials that were stopped, they go on."
    )
    seeds = "runs of each variant, with as many seeds from --seed on (default: 3)"
    group.add_argument("--seeds", default="3", metavar="N", help=seeds)
    vary = "values of a setting to try; given for several settings, every combination of them"
    group.add_argument("--vary", action="append", default=[], metavar="KEY=V1,V2", help=vary)
    also = "one more variant, that differs from the recipe by these settings alone; may be given many times"
    group.add_argument("--also", action="append", default=[], metavar="KEY=V[,KEY2=V2]", help=also)
    _add_training(parser)
    return typing.cast(argparse.ArgumentParser, parser)


def _add_bench(commands: Any) -> argparse.ArgumentParser:
    about = "time to accuracy over several seeds, with the machine's ceiling; also against another program"
    parser = _add_command(commands, "bench", about)
    group = parser.add_argument_group(
        "bench", "What is measured. With the --name of a bench that was stopped, it goes on."
    )
    group.add_argument("--runs", default="5", metavar="N", help="runs, each with a seed more (default: 5)")
    rival = (
        "command line of another program, to be run in turn with ours, for the ratio of wall times; {seed} "
        "in it becomes the seed"
    )
    group.add_argument("--against", metavar="COMMAND", help=rival)
    words = "regular expression with one group: the accuracy in the output of that program; the last counts"
    group.add_argument("--against-accuracy", metavar="REGEX", help=words)
    file = "Markdown file that the table is appended to; else it is printed"
    group.add_argument("--output", type=Path, metavar="FILE", help=file)
    _add_training(parser)
    return typing.cast(argparse.ArgumentParser, parser)


def _add_sweep(commands: Any) -> argparse.ArgumentParser:
    parser = _add_command(commands, "sweep", "search for the best settings: many trials, on many machines")
    group = parser.add_argument_group(
        "sweep", "What is searched and how. With the --name of a sweep that is there, it goes on."
    )
    space = "YAML file: a line for each setting, with a list of values or a range {from: A, to: B, log: true}"
    group.add_argument("--search", type=Path, metavar="FILE", required=True, help=space)
    group.add_argument(
        "--trials", metavar="N", help="trials in all, over all workers (default: 20, unless with --timeout)"
    )
    group.add_argument("--timeout", metavar="TIME", help="begin no trial after so long, such as 90s or 8h")
    group.add_argument(
        "--sampler", default="tpe", metavar="NAME", help="tpe, which learns from the trials, or random"
    )
    prune = "give up trials that do worse than the others (successive halving)"
    group.add_argument("--prune", action=argparse.BooleanOptionalAction, default=True, help=prune)
    storage = (
        "address of a database that all workers share, such as postgresql://user@host/database; else a "
        "SQLite file in the folder"
    )
    group.add_argument("--storage", metavar="URL", help=storage)
    group.add_argument(
        "--study-name", metavar="NAME", help="by which workers find the same study; else that of the folder"
    )
    checkpoints = "keep those of all trials, not just of the best"
    group.add_argument("--keep-checkpoints", action="store_true", help=checkpoints)
    grace = "a worker without a sign of life for so long is taken for dead (default: 60s)"
    group.add_argument("--grace", default="60s", metavar="TIME", help=grace)
    _add_training(parser)
    return typing.cast(argparse.ArgumentParser, parser)


def _add_summary(commands: Any) -> argparse.ArgumentParser:
    about = "the layers of a network: output shape, parameters, MACs, receptive field"
    parser = _add_command(commands, "summary", about)
    parser.add_argument("name", nargs="?", metavar="MODEL", help="resnet9 (the default) or speednet")
    parser.add_argument("--classes", default="10", metavar="N", help="number of classes (default: 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_settings(parser, "model", without=("model",))
    return typing.cast(argparse.ArgumentParser, parser)


def _add_doctor(commands: Any) -> argparse.ArgumentParser:
    about = "what this machine can do, and what velodrome will use of it"
    parser = _add_command(commands, "doctor", about)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_settings(parser, "data", only=("data_root",))
    _add_settings(parser, "run", only=("runs_dir",))
    return typing.cast(argparse.ArgumentParser, parser)


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_settings(
    parser: argparse.ArgumentParser, section: str, only: Sequence[str] = (), without: Sequence[str] = ()
) -> None:
    """One flag for each setting of a section; only those that were given appear in the namespace."""
    group = parser.add_argument_group(section, (SECTIONS[section].__doc__ or "").strip())
    wanted = [item for item in SETTINGS.values() if item.section == section and item.key not in without]
    _add_flags(group, [item for item in wanted if not only or item.key in only], "set_")


def _add_flags(group: Any, settings: Iterable[Setting], prefix: str) -> None:
    for item in settings:
        words = item.help
        if _is_limited(item.kind):
            words += f" ({describe_kind(item)})"
        words = words.replace("%", "%%")  # as argparse wants it
        if item.kind is bool:
            group.add_argument(
                item.flag,
                dest=prefix + item.key,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=words,
            )
        else:
            group.add_argument(
                item.flag,
                dest=prefix + item.key,
                metavar=METAVARS.get(item.key) or _metavar(item.kind),
                default=argparse.SUPPRESS,
                help=words,
            )


def _is_limited(kind: Any) -> bool:
    return "Literal" in str(kind)


def _metavar(kind: Any) -> str:
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    names = {int: "N", float: "X", Path: "DIR", str: "NAME"}
    return next((names[part] for part in parts if part in names), "NAME")


def settings_given(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings that were given as flags: names and texts."""
    return _given(arguments, "set_")


def search_given(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings of the search for a learning rate that were given as flags: names and texts."""
    return _given(arguments, "search_")


def _given(arguments: argparse.Namespace, prefix: str) -> dict[str, object]:
    return {
        name.removeprefix(prefix): value for name, value in vars(arguments).items() if name.startswith(prefix)
    }
