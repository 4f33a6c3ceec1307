"""From the command line to one call of the session. Imports torch only when a command needs it.

Flags are made from the settings in `velodrome.config`, with argparse: their values go through the same
conversion and the same checks as YAML values, so that an error reads the same wherever it comes from.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import velodrome
from velodrome import recipes
from velodrome.config import (
    SECTIONS,
    SETTINGS,
    Config,
    check,
    describe_kind,
    override,
    read_yaml,
    to_dict,
    to_yaml,
)
from velodrome.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    ConfigError,
    RunError,
    VelodromeError,
    VelodromeWarning,
    did_you_mean,
    nearest,
)

EXIT_OUR_FAULT = 70

if typing.TYPE_CHECKING:
    from velodrome.session import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A stream that the caller has closed is None; what is written to it goes nowhere.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    try:
        arguments = parse(words)
        if arguments is None:
            return EXIT_DONE
        run: Callable[[argparse.Namespace], None] = arguments.run
        with warnings.catch_warnings():
            warnings.simplefilter("always", VelodromeWarning)
            warnings.showwarning = _show_warning
            run(arguments)
        sys.stdout.flush()
        return EXIT_DONE
    except VelodromeError as error:
        _say(f"velodrome: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("velodrome: interrupted.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does; a run never ends by this, only its last line.
        sys.stdout = _nowhere()
        return EXIT_DONE
    except Exception:
        traceback.print_exc()
        _say(f"velodrome {velodrome.__version__}: this is our fault, not yours. Please report it.")
        return EXIT_OUR_FAULT


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
        "report": _add_report(commands),
        "summary": _add_summary(commands),
        "doctor": _add_doctor(commands),
    }
    return parser, made


def _add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], about: str) -> Any:
    parser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    return parser


def _add_train(commands: Any) -> argparse.ArgumentParser:
    about = "train, evaluate and report: one run folder"
    parser = _add_command(commands, "train", _train, about)
    names = ", ".join(recipes.RECIPES)
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help=f"{names}; without one, what fits the data"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with settings; flags win over it"
    )
    parser.add_argument("--print-config", action="store_true", help="print all settings as YAML and stop")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen and stop")
    _add_output_flags(parser)
    for section in SECTIONS:
        _add_settings(parser, section)
    return typing.cast(argparse.ArgumentParser, parser)


def _add_resume(commands: Any) -> argparse.ArgumentParser:
    parser = _add_command(commands, "resume", _resume, "go on exactly where a run stopped")
    parser.add_argument("path", type=Path, metavar="RUN", help="run folder")
    _add_output_flags(parser)
    more = "more epochs than the run has; the added ones keep the learning rate with which its schedule ends"
    parser.add_argument("--epochs", dest="set_epochs", metavar="N", default=argparse.SUPPRESS, help=more)
    _add_settings(parser, "data", only=("data_root",))
    return typing.cast(argparse.ArgumentParser, parser)


def _add_report(commands: Any) -> argparse.ArgumentParser:
    parser = _add_command(commands, "report", _report, "write the page of a run again, from its folder alone")
    parser.add_argument("path", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--output", type=Path, metavar="F", help="HTML file; else RUN/report.html")
    return typing.cast(argparse.ArgumentParser, parser)


def _add_summary(commands: Any) -> argparse.ArgumentParser:
    about = "the layers of a network: output shape, parameters, MACs, receptive field"
    parser = _add_command(commands, "summary", _summary, about)
    parser.add_argument("name", nargs="?", metavar="MODEL", help="resnet9 (the default)")
    parser.add_argument("--classes", default="10", metavar="N", help="number of classes (default: 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_settings(parser, "model", without=("model",))
    return typing.cast(argparse.ArgumentParser, parser)


def _add_doctor(commands: Any) -> argparse.ArgumentParser:
    about = "what this machine can do, and what velodrome will use of it"
    parser = _add_command(commands, "doctor", _doctor, about)
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
    for item in SETTINGS.values():
        if item.section != section or item.key in without or (only and item.key not in only):
            continue
        words = item.help.replace("%", "%%")
        if item.kind is bool:
            group.add_argument(
                item.flag,
                dest=f"set_{item.key}",
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=words,
            )
        else:
            group.add_argument(
                item.flag,
                dest=f"set_{item.key}",
                metavar=_metavar(item.kind),
                default=argparse.SUPPRESS,
                help=f"{words} ({describe_kind(item)})" if _is_limited(item.kind) else words,
            )


def _is_limited(kind: Any) -> bool:
    return "Literal" in str(kind)


def _metavar(kind: Any) -> str:
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    names = {int: "N", float: "X", Path: "DIR", str: "NAME"}
    return next((names[part] for part in parts if part in names), "NAME")


def _overrides(arguments: argparse.Namespace) -> dict[str, object]:
    return {
        name.removeprefix("set_"): value for name, value in vars(arguments).items() if name.startswith("set_")
    }


def _config(arguments: argparse.Namespace) -> Config:
    """Recipe, then file, then flags."""
    flags = _overrides(arguments)
    file = read_yaml(arguments.config) if arguments.config else {}
    named = file.pop("recipe", None)
    if arguments.recipe and named is not None and named != arguments.recipe:
        raise ConfigError(
            f"The recipe is {arguments.recipe!r}, but {arguments.config} names {named!r}.",
            "Leave out one of them: the recipe, or the line `recipe:` in the file.",
        )
    fallback = recipes.default_for(flags.get("data", file.get("data")))
    base = recipes.by_name(str(arguments.recipe or named or fallback))()
    return check(override(override(base, file, str(arguments.config)), flags, "flags"))


def _train(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    if arguments.print_config:
        _print_json(to_dict(config)) if arguments.json else sys.stdout.write(to_yaml(config))
        return
    from velodrome import session

    if arguments.dry_run:
        plan = session.plan(config)
        _print_json(plan) if arguments.json else _print_table(plan)
        return
    _tell_result(session.train(config, progress=not arguments.quiet), arguments)


def _resume(arguments: argparse.Namespace) -> None:
    given = _overrides(arguments)
    checked = override(Config(), given, "flags")
    from velodrome import session

    run = session.resume(
        arguments.path,
        epochs=checked.train.epochs if "epochs" in given else None,
        data_root=checked.data.data_root,
        progress=not arguments.quiet,
    )
    _tell_result(run, arguments)


def _tell_result(run: Run, arguments: argparse.Namespace) -> None:
    result = run.result
    if arguments.json:
        _print_json(result)
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
    from velodrome import session

    path = session.report(arguments.path, arguments.output)
    sys.stdout.write(f"{path}\n")


def _summary(arguments: argparse.Namespace) -> None:
    flags = _overrides(arguments)
    if arguments.name is not None:
        flags["model"] = arguments.name
    config = override(Config(), flags, "flags")
    classes = int(arguments.classes) if arguments.classes.isdecimal() else 0
    if classes < 1:
        raise ConfigError(
            f"--classes is {arguments.classes!r}, but must be a whole number at least 1.",
            "For instance --classes 10.",
        )
    from velodrome import session

    summary = session.summary_of(config.model, classes)
    if arguments.json:
        _print_json(summary.to_dict())
    else:
        sys.stdout.write(f"{summary}\n")


def _doctor(arguments: argparse.Namespace) -> None:
    config = override(Config(), _overrides(arguments), "flags")
    from velodrome import session

    findings = session.examine(config)
    _print_json(findings) if arguments.json else _print_table(findings)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _print_table(values: dict[str, Any]) -> None:
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


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **_: Any) -> None:
    """Our own warnings as one line, those of others as Python has them."""
    if issubclass(category, VelodromeWarning):
        _say(f"velodrome: {message}")
    else:
        _say(warnings.formatwarning(message, category, *where[:2]))


def _nowhere() -> typing.TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
