"""What is in a data set and what is wrong with it: as text, as JSON, and as the error that stops training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from velodrome.data.image_files import Failure
from velodrome.data.own.class_table import class_table
from velodrome.data.own.contents import Contents
from velodrome.data.own.facts import Facts
from velodrome.data.own.finding_rules import LEVELS, RULES, Finding
from velodrome.data.own.listing import counted
from velodrome.data.own.near_duplicates import Indices
from velodrome.data.own.splitting import SPLITS
from velodrome.errors import DataError, visible

# On one line, in words.
MOST_EXAMPLES = 3
COMMON_SIZES = 5


@dataclass(frozen=True, eq=False)
class Findings:
    """What is in a data set, and what is wrong with it.

    Attributes:
        contents: the images, what is known of them, and which of them are alike.
        found: the gravest first.
    """

    contents: Contents
    found: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What stops training."""
        return tuple(finding for finding in self.found if finding.level == "error")

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What something should be done about: errors and warnings."""
        return tuple(finding for finding in self.found if finding.level != "note")

    def warnings(self) -> list[str]:
        """What does not stop training, but spoils what comes of it; a line each."""
        return [_line(finding) for finding in self.found if finding.level == "warning"]

    def assumptions(self) -> list[str]:
        """What is taken for what, held out and ignored; a line each."""
        return [_line(finding) for finding in self.found if finding.rule == "listing"]

    def lines(self) -> list[str]:
        """All findings, a line each: the level, what is the matter, what to do, and some examples."""
        return [f"{finding.level}: {_line(finding)}" for finding in self.found]

    def raise_errors(self) -> None:
        """Do nothing where training may begin.

        Raises:
            DataError: it may not. Names all reasons at once, and every file that cannot be read, one a line.
        """
        if not self.errors:
            return
        lines = ["The data must be mended before a network can learn from them:"]
        for finding in self.errors:
            is_of_files = finding.rule == "unreadable"
            lines.append(f"- {_line(finding, 0 if is_of_files else MOST_EXAMPLES)}")
            lines += [f"    {failure}" for failure in self.contents.failures if is_of_files]
        raise DataError("\n".join([*lines, ""]), "velodrome data check says all that is known about them.")

    def table(self) -> str:
        """Images by class and split, and their sizes, as text for a terminal.

        Of more than 40 classes, only the largest and the smallest are there.
        """
        return "\n".join([*class_table(self.contents), *_sizes_in_words(self.contents)])

    def to_dict(self) -> dict[str, Any]:
        """All that is known, as JSON can hold it; lists are complete."""
        data = self.contents
        return {
            "images": len(data.readable),
            "splits": dict(zip(SPLITS, data.counts.sum(0).tolist(), strict=True)),
            "classes": _classes_to_dict(data),
            "imbalance": data.imbalance,
            "sizes": _sizes_to_dict(data),
            "image_size": data.side,
            "unreadable": [
                {"path": visible(str(failure.path)), "reason": failure.reason} for failure in data.failures
            ],
            "leaks": [
                {
                    "path": data.names[leak.held_out],
                    "split": str(data.splits[leak.held_out]),
                    "train_path": data.names[leak.train],
                    "exact": leak.is_exact,
                }
                for leak in data.leaks
            ],
            "conflicts": [
                {"exact": conflict.is_exact, "images": _labelled(data, conflict.images)}
                for conflict in data.conflicts
            ],
            "exact_duplicates": _names_of(data, data.exact),
            "near_duplicates": _names_of(data, data.near),
            "notes": list(data.notes),
            "findings": [dataclasses.asdict(finding) for finding in self.found],
        }


def examine(
    *,
    classes: Sequence[str],
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    names: Sequence[str],
    facts: Facts,
    failures: Sequence[Failure] = (),
    notes: Sequence[str] = (),
    side: int,
    fit: str = "crop",
    on_bad_image: str = "stop",
    splits_given: bool = False,
) -> Findings:
    """Look through the N images of a data set.

    Args:
        classes: their names.
        labels: (N,) int64, indices into `classes`.
        splits: (N,) of "train", "val" and "test"; what they are does not matter where a file is unreadable.
        names: of the images, each once.
        facts: about their files and pixels.
        failures: of the files that cannot be read, and of folders.
        notes: sentences about what was left out or taken for what.
        side: height and width in pixels that images are brought to.
        fit: "crop", "pad" or "squash".
        on_bad_image: "stop" or "skip", whether unreadable files are errors.
        splits_given: whether the data set itself says what the test images are.
    """
    data = Contents(
        tuple(classes),
        np.asarray(labels, np.int64),
        np.asarray(splits),
        names,
        facts,
        tuple(failures),
        tuple(notes),
        side,
        fit,
        on_bad_image,
        splits_given,
    )
    found = [finding for rule in RULES if (finding := rule(data))]
    found.sort(key=lambda finding: LEVELS.index(finding.level))
    return Findings(data, (*found, *(Finding("listing", "note", note.rstrip(".")) for note in notes)))


def _line(finding: Finding, most: int = MOST_EXAMPLES) -> str:
    """A finding in sentences, with some of its examples."""
    sentences = [f"{finding.title}.", finding.text, finding.remedy]
    if finding.examples and most:
        sentences.append(f"Such as {'; '.join(map(visible, finding.examples[:most]))}.")
    return " ".join(sentence for sentence in sentences if sentence)


def _classes_to_dict(data: Contents) -> list[dict[str, Any]]:
    """For each class its name, its images in each split, and its unreadable files."""
    unreadable = data.unreadable_counts.tolist()
    return [
        {"name": name, **dict(zip(SPLITS, counts, strict=True)), "unreadable": bad}
        for name, counts, bad in zip(data.classes, data.counts.tolist(), unreadable, strict=True)
    ]


def _sizes_to_dict(data: Contents) -> dict[str, Any] | None:
    """Heights, widths and aspect ratios of the files; None where none can be read."""
    if not len(data.sizes):
        return None
    heights, widths = data.sizes.T
    return {
        "height": _spread(heights),
        "width": _spread(widths),
        "aspect_ratio": _spread(data.aspect_ratios),
        "most_common": [
            {"height": height, "width": width, "images": images} for height, width, images in _common(data)
        ],
    }


def _spread(values: NDArray[Any]) -> dict[str, float]:
    return {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}


def _common(data: Contents) -> list[tuple[int, int, int]]:
    """The most common sizes: height, width, and how many images have them."""
    sizes, counts = np.unique(data.sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:COMMON_SIZES]
    return [(*sizes[row].tolist(), int(counts[row])) for row in order]


def _sizes_in_words(data: Contents) -> list[str]:
    if not len(data.sizes):
        return []
    heights, widths = data.sizes.T
    ((height, width, images), *others) = _common(data)
    if not others:
        return [f"All images have {width} × {height} pixels."]
    return [
        f"Widths of {widths.min()} to {widths.max()} pixels (median {np.median(widths):.0f}), heights of "
        f"{heights.min()} to {heights.max()} ({np.median(heights):.0f}); {width} × {height} is most common "
        f"({counted(images, 'image')})."
    ]


def _labelled(data: Contents, images: Sequence[int]) -> list[dict[str, str]]:
    return [{"path": data.names[index], "class": data.classes[data.labels[index]]} for index in images]


def _names_of(data: Contents, groups: Sequence[Indices]) -> list[list[str]]:
    return [[data.names[index] for index in group] for group in groups]
