"""Labels that are likely wrong, from label_errors.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

from velodrome.reporting.gaps import damaged, data_uri, read_bytes
from velodrome.run.answers import Answers
from velodrome.run.folder import RunFolder

# A longer file stays where it is: a page should be small enough to be sent.
LARGEST_DOWNLOAD = 2**19


@dataclass(frozen=True)
class LabelErrors:
    """Labels that are likely wrong.

    Attributes:
        count: how many they are.
        suggested: the class that an image rather is, as a number, by the image's index.
        uri: the file as a data URI, to be downloaded; None where there is nothing in it or too much.
    """

    count: int
    suggested: Mapping[int, int]
    uri: str | None


def gather_label_errors(folder: RunFolder, answers: Answers) -> LabelErrors:
    """What label_errors.csv says.

    Raises:
        Gap: it is missing or damaged, or is not of these answers.
    """
    path = folder.label_errors
    content = read_bytes(folder, path)
    numbers = {name: number for number, name in enumerate(answers.classes)}
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        suggested = {int(row["index"]): numbers[row["suggested_label"]] for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        problem = f"it lacks or misnames {error}" if isinstance(error, KeyError) else error
        raise damaged(folder, path, problem) from error
    if any(not 0 <= index < len(answers) for index in suggested):
        raise damaged(folder, path, f"it names images that are not among the {len(answers):,} answers")
    fits = len(rows) > 0 and len(content) <= LARGEST_DOWNLOAD
    return LabelErrors(len(rows), suggested, data_uri("text/csv", content) if fits else None)
