"""Data, mistakes and Grad-CAM maps as objects that show themselves in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from velodrome.data.imageset import ImageSet, ImagesU8, Splits
from velodrome.errors import ConfigError, did_you_mean
from velodrome.evaluation.gallery import SAMPLES_PER_CLASS, maps_of, samples_of_each_class
from velodrome.evaluation.gradcam import DEFAULT_LAYER
from velodrome.evaluation.overlay import overlay
from velodrome.evaluation.predict import Classifier
from velodrome.models.summary import Summary
from velodrome.run.answers import Answers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A notebook shows this many of a longer list.
MOST_SHOWN = 40


@dataclass(frozen=True, eq=False)
class Preview:
    """What a recipe would train, on what, before it does; shows itself in a notebook.

    Attributes:
        splits: the images to train on, to choose by and to report on.
        summary: the layers of the network.
        augmented_u8: (B, H, W, 3) uint8, the first training images as the network sees them at first.
        augmented_labels: (B,) int64.
    """

    splits: Splits
    summary: Summary
    augmented_u8: ImagesU8
    augmented_labels: NDArray[np.int64]

    def plot_samples(self) -> Figure:
        """The first ten training images of each class, a matplotlib figure."""
        from velodrome.reporting.image_figure import draw_images, shortened

        train = self.splits.train
        indices = np.concatenate(samples_of_each_class(train))
        captions = [shortened(train.classes[train.labels[index]]) for index in indices]
        return draw_images(train.images_u8[indices], captions, SAMPLES_PER_CLASS)

    def plot_augmented(self) -> Figure:
        """The first training images as the network sees them: cropped, flipped, cut out."""
        from velodrome.reporting.image_figure import draw_images, shortened

        captions = [shortened(self.splits.train.classes[label]) for label in self.augmented_labels]
        return draw_images(self.augmented_u8, captions, SAMPLES_PER_CLASS)

    def __repr__(self) -> str:
        train, test = self.splits.train, self.splits.test
        return (
            f"Preview({self.splits.name}: {len(train):,} training and {len(test):,} test images, "
            f"{len(train.classes)} classes, {self.summary.totals.params:,} parameters)"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.summary._repr_html_()}"


@dataclass(frozen=True, eq=False)
class Mistake:
    """An image that was taken for another class.

    Attributes:
        index: of the image in the test set.
        path: of the image, as the data set names it.
        label: the true class.
        prediction: the class that it was taken for.
        probability: in [0, 1], of the prediction; None where the run has no probabilities.
        loss: cross-entropy in nats.
        image_u8: (H, W, 3) uint8.
    """

    index: int
    path: str
    label: str
    prediction: str
    probability: float | None
    loss: float
    image_u8: ImagesU8 = field(repr=False)


class Mistakes(Sequence[Mistake]):
    """Mistakes of a run, in order; shows itself in a notebook.

    Args:
        rows: the mistakes.
    """

    def __init__(self, rows: Sequence[Mistake]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Mistake]:
        return iter(self._rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """One mistake, or with a slice some of them."""
        return Mistakes(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __repr__(self) -> str:
        return f"Mistakes({len(self)})"

    @property
    def indices(self) -> list[int]:
        """Where the images stand in the test set."""
        return [row.index for row in self]

    def plot(self, columns: int = 8) -> Figure:
        """The images with what they are and what they were taken for, a matplotlib figure."""
        from velodrome.reporting.image_figure import draw_images, shortened

        captions = [
            f"{shortened(row.prediction)}{_percent(row.probability)}\nis {shortened(row.label)}"
            for row in self
        ]
        side = (0, 1, 1, 3)
        images = np.stack([row.image_u8 for row in self]) if self else np.zeros(side, np.uint8)
        return draw_images(images, captions, columns)

    def _repr_html_(self) -> str:
        heading = "<tr><th>image</th><th>is</th><th>taken for</th><th>loss</th><th>index, path</th></tr>"
        rows = "".join(_row(row) for row in self[:MOST_SHOWN])
        more = f"<p>and {len(self) - MOST_SHOWN:,} more</p>" if len(self) > MOST_SHOWN else ""
        return f"<table>{heading}{rows}</table>{more}"


def _row(row: Mistake) -> str:
    file = io.BytesIO()
    Image.fromarray(row.image_u8).save(file, "PNG")
    source = base64.b64encode(file.getvalue()).decode()
    picture = f'<img src="data:image/png;base64,{source}" width="64" style="image-rendering: pixelated">'
    texts = (
        row.label,
        row.prediction + _percent(row.probability),
        f"{row.loss:.2f}",
        f"{row.index}, {row.path}",
    )
    cells = "".join(f"<td><bdi>{html.escape(text)}</bdi></td>" for text in texts)
    return f"<tr><td>{picture}</td>{cells}</tr>"


def _percent(probability: float | None) -> str:
    return "" if probability is None else f" {probability:.1%}"


def collect_mistakes(answers: Answers, indices: NDArray[np.int64], images: ImageSet) -> Mistakes:
    """The mistakes at `indices`, (N,) int64, with their images."""
    probabilities = answers.probabilities
    return Mistakes(
        [
            Mistake(
                index=index,
                path=answers.paths[index],
                label=answers.classes[answers.labels[index]],
                prediction=answers.classes[answers.predictions[index]],
                probability=None
                if probabilities is None
                else float(probabilities[index, answers.predictions[index]]),
                loss=float(answers.losses[index]),
                image_u8=images.images_u8[index],
            )
            for index in indices.tolist()
        ]
    )


@dataclass(frozen=True, eq=False)
class Explanations:
    """Where in N images a network sees what speaks for each of K classes; shows itself in a notebook.

    Attributes:
        images_u8: (N, H, W, 3) uint8.
        captions: N texts that say what the images are.
        classes: N times K names, the classes that are explained.
        probabilities: (N, K) float32 in [0, 1], of these classes.
        maps: (N, K, h, w) float32, Grad-CAM, at least 0.
        layer: the stage that the maps are of.
    """

    images_u8: ImagesU8
    captions: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    probabilities: NDArray[np.float32]
    maps: NDArray[np.float32]
    layer: str

    def __len__(self) -> int:
        return len(self.images_u8)

    def __repr__(self) -> str:
        return f"Explanations({len(self)} images, {self.maps.shape[1]} classes each, {self.layer})"

    def plot(self) -> Figure:
        """A row for each image: the image, and the map of each class over it, a matplotlib figure."""
        from velodrome.reporting.image_figure import draw_images, shortened

        pictures: list[ImagesU8] = []
        captions: list[str] = []
        for image, caption, names, shares, maps in zip(
            self.images_u8, self.captions, self.classes, self.probabilities, self.maps, strict=True
        ):
            pictures += [image, *(_overlaid(image, heat) for heat in maps)]
            captions.append(shortened(caption))
            for name, share, heat in zip(names, shares, maps, strict=True):
                nothing = "" if heat.any() else "\nnothing speaks for it"
                captions.append(f"{shortened(name)} {share:.1%}{nothing}")
        return draw_images(pictures, captions, 1 + self.maps.shape[1])

    def _repr_html_(self) -> str:
        file = io.BytesIO()
        self.plot().savefig(file, format="png")
        return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _overlaid(image_u8: ImagesU8, heat: NDArray[np.float32]) -> ImagesU8:
    """A map over its image, at least 192 pixels high so that it is smooth: (H, W, 3) uint8, (h, w) float."""
    image = Image.fromarray(image_u8)
    zoom = max(1, -(-192 // image.height))
    large = image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST)
    return np.asarray(overlay(large, heat))


def explain(
    classifier: Classifier,
    images_u8: ImagesU8,
    captions: Sequence[str],
    targets: NDArray[np.int64],
    layer: str = DEFAULT_LAYER,
) -> Explanations:
    """Grad-CAM maps of raw images, computed on the CPU in float32.

    Args:
        classifier: of a run.
        images_u8: (N, H, W, 3) uint8, in the size of the classifier's images.
        captions: N texts that say what the images are.
        targets: (N, K) int64, the classes to explain.
        layer: the stage to look at.

    Raises:
        ConfigError: the network has no such stage.
        DataError: the images are of another size.
    """
    shares = classifier.probabilities(images_u8).numpy()
    maps = maps_of(
        classifier.network,
        images_u8,
        targets,
        classifier.normalisation,
        device=torch.device("cpu"),
        precision="fp32",
        layer=layer,
    )
    names = tuple(tuple(classifier.classes[target] for target in row) for row in targets.tolist())
    chosen = np.take_along_axis(shares, targets, 1)
    return Explanations(images_u8, tuple(captions), names, chosen, maps, layer)


def class_numbers(classifier: Classifier, names: Sequence[str]) -> NDArray[np.int64]:
    """The classes of these names, (K,) int64.

    Raises:
        ConfigError: there is no class of a name.
    """
    for name in names:
        if name not in classifier.classes:
            raise ConfigError(f"There is no class {name!r}.", did_you_mean(name, classifier.classes))
    return np.array([classifier.classes.index(name) for name in names], np.int64)
