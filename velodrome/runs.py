"""A run folder for those who look at it: its figures, its settings and its model."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from velodrome.config import Config, check, override, read_yaml
from velodrome.data.imageset import Normalisation
from velodrome.errors import ConfigError, RunError
from velodrome.evaluation.predict import Classifier
from velodrome.models.build import build_model
from velodrome.recipes import by_name
from velodrome.run.checkpoint import load_weights
from velodrome.run.folder import RunFolder, open_run


class Run:
    """A run that has finished, or any run folder: its figures and its model.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def result(self) -> dict[str, Any]:
        """The final figures, as in result.json; empty while the run is not complete."""
        return self.folder.read_json(self.folder.result) or {}

    @property
    def history(self) -> list[dict[str, float | None]]:
        """The rows of history.csv, one an epoch."""
        return self.folder.read_history()

    def model(self) -> Classifier:
        """The trained model, ready to predict."""
        return load(self.path)

    def __repr__(self) -> str:
        figures = self.result
        found = f", test accuracy {float(figures['test_accuracy']):.2%}" if figures else ", not finished"
        return f"Run({str(self.path)!r}{found})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
            for key, value in self.result.items()
            if key != "classes"
        )
        return f"<p>{html.escape(repr(self))}</p><table>{rows}</table>"


def load(run: Path | str | Run) -> Classifier:
    """The trained model of a run, in evaluation mode on the CPU, ready to predict.

    Raises:
        RunError: the run does not exist, or has no readable weights yet.
    """
    folder = run.folder if isinstance(run, Run) else open_run(Path(run))
    tensors, about = load_weights(folder.model)
    try:
        settings, side = override(Config(), about["model"]), int(about["image_size"])
        network = build_model(settings.model, classes=len(about["classes"]), image_size=side)
        network.load_state_dict(tensors)
        normalisation = Normalisation(tuple(about["mean"]), tuple(about["std"]))
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"Weights {folder.model} are not of this version: {reason}.", "Train the model again."
        ) from error
    return Classifier(network, about["classes"], normalisation, (side, side)).eval()


def read_config(folder: RunFolder) -> Config:
    """The settings of a run, on top of the recipe that they name.

    Raises:
        ConfigError: config.yaml cannot be read or holds a setting that is wrong.
    """
    try:
        values = read_yaml(folder.config)
        recipe = by_name(str(values.pop("recipe", "resnet9")))
        return check(override(recipe(), values, origin=str(folder.config)))
    except ConfigError as error:
        named = str(folder.config) in error.problem
        problem = error.problem if named else f"{folder.config}: {error.problem}"
        raise ConfigError(problem, "Restore the file from a copy, or start a new run.") from error
