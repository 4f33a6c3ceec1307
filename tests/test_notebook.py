"""The example notebook runs from its first cell to its last, on drawn shapes, and shows what it promises."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (pip install '.[test]')")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (pip install '.[test]')")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (pip install '.[test]')")
pytest.importorskip("pandas", reason="pandas is not installed (pip install '.[test]')")

NOTEBOOK = Path(__file__).parents[1] / "examples" / "cifar10.ipynb"
# The shapes are drawn once, not for each of eight trainings.
SMALL = """
import functools
from velodrome.data import sources
sources.ready_shapes = functools.cache(sources.ready_shapes)
DATA, EPOCHS, TRIAL_EPOCHS = "shapes", 2, 1
SETTINGS = {"width": 8, "limit_train": 1600, "limit_test": 100, "batch_size": 32}
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = SMALL
    with pytest.MonkeyPatch.context() as patch:
        # The kernel imports this checkout, as the tests do, and does not train on more threads than it needs.
        path = os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")])
        patch.setenv("PYTHONPATH", path.rstrip(os.pathsep))
        place = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_committed_notebook_has_no_outputs_and_no_trace_of_a_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def outputs(cells, call):
    """What the cell shows that ends in this call."""
    (cell,) = [cell for cell in cells if cell.source.strip().splitlines()[-1] == call]
    return cell.outputs


@pytest.mark.parametrize(
    "call",
    [
        "preview.plot_samples()",
        "preview.plot_augmented()",
        "found.plot_curve()",
        "found.plot_schedule()",
        "run.plot_history()",
        "run.mistakes(n=32).plot()",
        "run.gradcam(run.mistakes(n=6)).plot()",
        'run.gradcam([0, 1, 2], layer="layer3").plot()',
    ],
)
def test_figures_are_shown(cells, call):
    shown = [output for output in outputs(cells, call) if "image/png" in output.get("data", {})]
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("preview.summary", "receptive field"),
        ("found", "LRMAX"),
        ("run", "test_accuracy"),
        ('pd.DataFrame(evaluation["per_class"]).set_index("name").round(4)', "recall"),
    ],
)
def test_tables_are_shown(cells, call, words):
    (shown,) = [output for output in outputs(cells, call) if output.output_type == "execute_result"]
    assert words.lower() in shown.data["text/html"].lower()


def test_training_tells_of_each_epoch(cells):
    texts = [output.text for output in outputs(cells, "run") if output.output_type == "stream"]
    assert "2/2" in "".join(texts)


def test_the_table_of_trials_has_a_row_for_each(cells):
    (cell,) = [cell for cell in cells if "variants = {" in cell.source]
    (table,) = [output.data["text/html"] for output in cell.outputs if "data" in output]
    assert table.count("<tr>") + table.count("<tr ") == 6
    assert "label smoothing 0.1" in table
