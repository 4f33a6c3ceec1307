"""A run folder for those who look at it: its figures, its settings and its model."""

from __future__ import annotations

import html
import operator
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from velodrome.config import Config, check, override, read_yaml
from velodrome.data.imageset import ImageSet, ImagesU8, Normalisation
from velodrome.data.sources import load_splits
from velodrome.errors import ConfigError, RunError
from velodrome.evaluation.gradcam import DEFAULT_LAYER
from velodrome.evaluation.mistakes import ConfusedPair, LabelError, confused_pairs, likely_label_errors, rank
from velodrome.evaluation.predict import Classifier
from velodrome.explaining import Explanations, Mistake, Mistakes, class_numbers, collect_mistakes, explain
from velodrome.models.build import build_model
from velodrome.recipes import by_name
from velodrome.run.answers import Answers, read_answers
from velodrome.run.checkpoint import load_weights
from velodrome.run.folder import RunFolder, open_run
from velodrome.run.images import check_same_as_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run:
    """A run that has finished, or any run folder: its figures and its model.

    Args:
        folder: of the run, or its path.

    Raises:
        RunError: there is no run at the path.
    """

    def __init__(self, folder: RunFolder | Path | str) -> None:
        self.folder = folder if isinstance(folder, RunFolder) else open_run(Path(folder))
        self._test_images: ImageSet | None = None

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

    @property
    def evaluation(self) -> dict[str, Any]:
        """All figures of merit, as in evaluation.json; empty while there are none."""
        return self.folder.read_json(self.folder.evaluation) or {}

    @property
    def diagnosis(self) -> dict[str, Any]:
        """The findings, as in diagnosis.json; empty while there are none."""
        return self.folder.read_json(self.folder.diagnosis) or {}

    def model(self) -> Classifier:
        """The trained model, ready to predict."""
        return load(self.path)

    def test_images(self) -> ImageSet:
        """The images that the run was tested on, in the order of its answers; read once.

        Raises:
            DataError: they are no longer where the run found them, or there are others by now.
        """
        if self._test_images is None:
            config = read_config(self.folder)
            enlarged = config.augment.takes_parts
            splits = load_splits(config.data, config.run.seed, enlarged=enlarged, progress=False)
            check_same_as_result(self.folder, splits, config.data.data)
            self._test_images = splits.test
        return self._test_images

    def answers(self) -> Answers:
        """The answer for every test image.

        Raises:
            RunError: the run has not been evaluated yet.
        """
        answers = read_answers(self.folder, self.evaluation.get("classes") or self.result.get("classes"))
        if answers is None:
            raise RunError(
                f"Run {self.path} has no answers: it has no predictions.csv.",
                f"Let it finish, or: velodrome evaluate {shlex.quote(str(self.path))}",
            )
        return answers

    def mistakes(
        self,
        by: str = "loss",
        *,
        label: str | None = None,
        prediction: str | None = None,
        n: int | None = None,
    ) -> Mistakes:
        """The test images that were taken for another class, the most telling first.

        Args:
            by: "loss", "confidence" in the wrong class, "class", or "pair" of confused classes.
            label: only images of this class.
            prediction: only images that were taken for this class.
            n: at most this many.

        Raises:
            ConfigError: there is no such order or class, or n is below 0.
            RunError: the run has not been evaluated yet.
        """
        answers = self.answers()
        if n is not None and n < 0:
            raise ConfigError(f"n is {n}, but must be at least 0.", "Use n=20, for instance.")
        chosen = rank(answers, by, label=label, prediction=prediction)[:n]
        return collect_mistakes(answers, chosen, self.test_images())

    def confused_pairs(self) -> list[ConfusedPair]:
        """Every pair of a class and another that it was taken for, the most frequent first.

        Raises:
            RunError: the run has not been evaluated yet.
        """
        return confused_pairs(self.answers())

    def label_errors(self) -> list[LabelError]:
        """Test images whose label is likely wrong, the most suspicious first.

        Raises:
            RunError: the run has not been evaluated yet.
        """
        return likely_label_errors(self.answers())

    def gradcam(
        self,
        images: int | Mistake | Sequence[int | Mistake] | ImagesU8,
        *,
        classes: str | Sequence[str] | None = None,
        layer: str = DEFAULT_LAYER,
    ) -> Explanations:
        """Where the network sees what speaks for a class (Grad-CAM), computed on the CPU in float32.

        Args:
            images: test images by their index, mistakes, or (N, H, W, 3) or (H, W, 3) uint8 images.
            classes: what to explain; without them the predicted and the true class of test images, and the
                two most probable classes of others.
            layer: name of the stage to look at.

        Raises:
            ConfigError: there is no such class or stage, or no test image of such an index.
            DataError: the images are of another size than the model's.
        """
        model = self.model()
        if isinstance(images, np.ndarray) and images.ndim >= 3:
            images_u8: ImagesU8 = images if images.ndim > 3 else images[None]
            captions = [f"image {number}" for number in range(len(images_u8))]
            targets = np.argsort(-model.probabilities(images_u8).numpy(), 1, kind="stable")[:, :2]
        else:
            several = [images] if isinstance(images, int | Mistake) else images
            captions, targets, images_u8 = self._answered([_index(image) for image in several])
        if classes:
            names = [classes] if isinstance(classes, str) else classes
            targets = np.tile(class_numbers(model, names), (len(images_u8), 1))
        return explain(model, images_u8, captions, targets, layer)

    def _answered(self, chosen: Sequence[int]) -> tuple[list[str], NDArray[np.int64], ImagesU8]:
        """True class, (N, 2) predicted and true class as numbers, and pixels of test images."""
        answers = self.answers()
        beyond = [index for index in chosen if not 0 <= index < len(answers)]
        if beyond:
            raise ConfigError(
                f"Image {beyond[0]} was asked for, but test images are numbered 0 to {len(answers) - 1}.",
                "Use numbers of that range.",
            )
        indices = np.array(chosen, np.int64)
        labels = answers.labels[indices]
        targets = np.stack([answers.predictions[indices], labels], 1)
        return [answers.classes[label] for label in labels], targets, self.test_images().images_u8[indices]

    def plot_history(self) -> Figure:
        """Accuracy, loss and learning rate over the epochs, a matplotlib figure."""
        from velodrome.reporting.history_figure import draw_history

        return draw_history(self.history)

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


def _index(image: int | Mistake) -> int:
    """The index of a test image."""
    return image.index if isinstance(image, Mistake) else operator.index(image)


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
    fit = about.get("image_fit", "crop")  # the only one that there once was
    return Classifier(network, about["classes"], normalisation, (side, side), fit).eval()


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
