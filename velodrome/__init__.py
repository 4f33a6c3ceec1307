"""velodrome trains small image classifiers fast, and shows why they err.

    import velodrome as vd

    run = vd.train(vd.recipes.quick())
    model = vd.load(run)

The public names are imported when they are first used, so `import velodrome` itself is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from velodrome import recipes as recipes
    from velodrome.bench_results import Bench as Bench
    from velodrome.benching import bench as bench
    from velodrome.checking import check_data as check_data
    from velodrome.checking import clear_data as clear_data
    from velodrome.comparison.comparing import Comparison as Comparison
    from velodrome.comparison.comparing import compare as compare
    from velodrome.config import Config as Config
    from velodrome.config import override as override
    from velodrome.errors import VelodromeError as VelodromeError
    from velodrome.lr_finding import LRFinding as LRFinding
    from velodrome.lr_search import search_module as lr_range_test
    from velodrome.models.summary import summarize as summary
    from velodrome.reports import report as report
    from velodrome.runs import Run as Run
    from velodrome.runs import load as load
    from velodrome.session import evaluate as evaluate
    from velodrome.session import lr_find as lr_find
    from velodrome.session import predict as predict
    from velodrome.session import preview as preview
    from velodrome.session import resume as resume
    from velodrome.session import train as train
    from velodrome.sweeps.sweep_results import Sweep as Sweep
    from velodrome.sweeps.sweeping import sweep as sweep
    from velodrome.trial_record import Trials as Trials
    from velodrome.trial_runs import trials as trials

_HOMES = {
    "Bench": ("velodrome.bench_results", "Bench"),
    "bench": ("velodrome.benching", "bench"),
    "check_data": ("velodrome.checking", "check_data"),
    "clear_data": ("velodrome.checking", "clear_data"),
    "Comparison": ("velodrome.comparison.comparing", "Comparison"),
    "compare": ("velodrome.comparison.comparing", "compare"),
    "Config": ("velodrome.config", "Config"),
    "override": ("velodrome.config", "override"),
    "VelodromeError": ("velodrome.errors", "VelodromeError"),
    "LRFinding": ("velodrome.lr_finding", "LRFinding"),
    "lr_range_test": ("velodrome.lr_search", "search_module"),
    "summary": ("velodrome.models.summary", "summarize"),
    "Run": ("velodrome.runs", "Run"),
    "evaluate": ("velodrome.session", "evaluate"),
    "load": ("velodrome.runs", "load"),
    "lr_find": ("velodrome.session", "lr_find"),
    "predict": ("velodrome.session", "predict"),
    "preview": ("velodrome.session", "preview"),
    "report": ("velodrome.reports", "report"),
    "resume": ("velodrome.session", "resume"),
    "Sweep": ("velodrome.sweeps.sweep_results", "Sweep"),
    "sweep": ("velodrome.sweeps.sweeping", "sweep"),
    "train": ("velodrome.session", "train"),
    "Trials": ("velodrome.trial_record", "Trials"),
    "trials": ("velodrome.trial_runs", "trials"),
}

__all__ = [
    "Bench",
    "Comparison",
    "Config",
    "LRFinding",
    "Run",
    "Sweep",
    "Trials",
    "VelodromeError",
    "bench",
    "check_data",
    "clear_data",
    "compare",
    "evaluate",
    "load",
    "lr_find",
    "lr_range_test",
    "override",
    "predict",
    "preview",
    "recipes",
    "report",
    "resume",
    "summary",
    "sweep",
    "train",
    "trials",
]


def __getattr__(name: str) -> object:
    if name == "recipes":
        return importlib.import_module("velodrome.recipes")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'velodrome' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
