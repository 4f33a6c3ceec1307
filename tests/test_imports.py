"""Imports point one way, and the light parts stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import velodrome

PACKAGE = Path(velodrome.__file__).parent

# Each part and what it may import from velodrome, itself aside. Everything may import the base.
BASE = {"errors", "events", "config", "device", "distributed"}
RUN = {"run"} | BASE
STAGES = {"data", "models"} | RUN
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "events": {"errors"},
    "device": {"errors"},
    "distributed": {"config", "errors", "ranks"},
    "ranks": {"distributed", "errors"},
    "recipes": {"config", "errors"},
    "data": {"integrations"} | BASE,
    "integrations": {"data.own", "config", "errors"},
    "models": BASE,
    "run": {"data", "models"} | BASE,
    "training": STAGES,
    "evaluation": STAGES,
    "reporting": {"run.folder", "run.answers", "errors"},
    "reports": {"reporting", "evaluation.diagnosis", "run.folder", "run.lock", "errors"},
    "settling": {"data"} | BASE,
    "fine_tuning": {"training.optim"} | RUN,
    "job": {"training", "evaluation", "settling", "fine_tuning"} | STAGES,
    "planning": {"job", "training"} | STAGES,
    "budget": {"job", "training", "evaluation", "data"} | BASE,
    "early_stopping": {"training.state"} | RUN,
    "checking": {"data", "run.folder", "recipes"} | BASE,
    "running": {"budget", "job", "reports", "early_stopping", "training", "evaluation"} | STAGES,
    "resumption": {"job", "training.schedule"} | STAGES,
    "lr_finding": {"reporting", "training"} | RUN,
    "lr_search": {"job", "lr_finding", "training"} | STAGES,
    "evaluating": {"job", "evaluation"} | STAGES,
    "predicting": {"evaluation"} | STAGES,
    "explaining": {"reporting", "evaluation"} | STAGES,
    "runs": {"explaining", "recipes", "reporting", "evaluation"} | STAGES,
    "session": {
        "early_stopping",
        "job",
        "planning",
        "budget",
        "running",
        "runs",
        "explaining",
        "evaluating",
        "predicting",
        "resumption",
        "lr_search",
        "lr_finding",
        "reports",
        "training",
        "evaluation",
        "recipes",
    }
    | STAGES,
    "spread": set(),
    "printing": set(),
    "comparison": {"spread", "config", "errors", "reporting", "run.answers", "run.folder", "run.lock"},
    "bench_commands": {"run"},
    "bench_rows": {"run.folder"},
    "bench_results": {"bench_rows", "spread", "run.folder", "run.sinks", "errors"},
    "benching": {"session", "planning", "job", "recipes", "bench_results", "bench_rows", "bench_commands"}
    | RUN,
    "trial_plan": {"comparison.groups", "fine_tuning", "config", "errors"},
    "trial_record": {"trial_plan", "comparison", "run.folder", "errors"},
    "trial_runs": {
        "session",
        "planning",
        "job",
        "recipes",
        "printing",
        "comparison.groups",
        "trial_plan",
        "trial_record",
        "bench_commands",
    }
    | RUN,
    "sweeps": {
        "early_stopping",
        "session",
        "planning",
        "job",
        "running",
        "reports",
        "reporting.lr_figure",
        "fine_tuning",
        "recipes",
        "printing",
        "bench_commands",
        "data.sources",
    }
    | RUN,
    "flags": {"recipes"} | BASE,
    "verbs": {
        "session",
        "planning",
        "trial_plan",
        "trial_runs",
        "benching",
        "bench_results",
        "checking",
        "comparison",
        "fine_tuning",
        "sweeps",
        "reports",
        "runs",
        "recipes",
        "flags",
        "printing",
    }
    | BASE,
    "cli": {"verbs", "flags", "printing"} | BASE,
    "__main__": {"cli"},
    "__init__": {
        "session",
        "benching",
        "checking",
        "bench_results",
        "comparison",
        "trial_record",
        "trial_runs",
        "sweeps",
        "reports",
        "runs",
        "lr_search",
        "lr_finding",
        "recipes",
        "models",
    }
    | BASE,
}


def imported_parts(path: Path) -> set[str]:
    """What a module imports from the package, as `part` or `part.module`; also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {".".join(name.split(".")[1:3]) for name in found if name.split(".")[0] == "velodrome"} - {""}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    for name in imported_parts(path):
        top = name.split(".")[0]
        if name.startswith("__version__") or top == part:
            continue
        assert top in ALLOWED[part] or name in ALLOWED[part], f"{part} must not import {name}"


def test_the_check_sees_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from velodrome.training import loop\n")
    assert imported_parts(wrong) == {"training.loop"}


@pytest.mark.parametrize(
    "module",
    [
        "velodrome",
        "velodrome.cli",
        "velodrome.comparison.comparing",
        "velodrome.reports",
        "velodrome.run.folder",
    ],
)
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
