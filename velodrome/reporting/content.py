"""What the report shows, gathered from a run folder as plain values with all figures written out.

The templates decide how it looks. What the folder lacks is None or empty, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velodrome.errors import RunError
from velodrome.reporting import text
from velodrome.reporting.citation import Citation, cite
from velodrome.reporting.confusion import Predictions, count_answers
from velodrome.reporting.curves import Chart, Drawing, Series, draw
from velodrome.reporting.diagnosis import Diagnosis, gather_diagnosis
from velodrome.reporting.evaluation import Evaluation, gather_evaluation, gather_other_evaluations
from velodrome.reporting.gallery import Gallery, gather_gallery
from velodrome.reporting.gaps import name_of, read_object, unless_gap
from velodrome.reporting.learning_rate import LearningRate, gather_learning_rate
from velodrome.reporting.own_images import OwnImages, gather_own_images
from velodrome.reporting.samples import Samples, gather_samples
from velodrome.reporting.tables import Column, Fact, Table, listing, mapping, tabulate, with_values
from velodrome.run.answers import Answers, read_answers
from velodrome.run.folder import RunFolder, epochs_told, last_start, number

Events = Sequence[Mapping[str, Any]]
History = Sequence[Mapping[str, float | None]]

_HISTORY_COLUMNS: tuple[Column, ...] = (
    ("epoch", "Epoch", text.count),
    ("time_s", "Time", text.duration),
    ("lr", "Learning rate", text.rate),
    ("train_loss", "Train loss", text.loss),
    ("train_acc", "Train accuracy", text.percent),
    ("val_loss", "Validation loss", text.loss),
    ("val_acc", "Validation accuracy", text.percent),
    ("test_loss", "Test loss", text.loss),
    ("test_acc", "Test accuracy", text.percent),
    ("images_per_s", "Images/s", text.count),
)
_LAYER_COLUMNS: tuple[Column, ...] = (
    ("name", "Layer", text.words),
    ("type", "Type", text.words),
    ("output_shape", "Output shape", text.pixels),
    ("params", "Parameters", text.count),
    ("macs", "MACs", text.count),
    ("receptive_field", "Receptive field", text.pixels),
    ("stride", "Stride", text.pixels),
)


@dataclass(frozen=True)
class Model:
    """What summary.json says."""

    totals: tuple[Fact, ...]
    layers: Table


@dataclass(frozen=True)
class Content:
    """All that the page shows.

    `gaps` says, for each of the parts diagnosis, evaluation and samples that is None, which file is why.
    """

    name: str
    trained: tuple[Fact, ...]
    as_of: str | None
    unfinished: str | None
    headline: Fact | None
    facts: tuple[Fact, ...]
    diagnosis: Diagnosis | None
    charts: tuple[Drawing, ...]
    learning_rate: LearningRate | None
    predictions: Predictions | None
    gallery: Gallery | None
    evaluation: Evaluation | None
    other_evaluations: Table | None
    other_pages: tuple[str, ...]
    own_images: OwnImages | None
    samples: Samples | None
    model: Model | None
    history: Table | None
    citation: Citation
    command: str | None
    config: str | None
    environment: tuple[Fact, ...]
    gaps: Mapping[str, str]
    is_of_other_images: bool = False


def gather(folder: RunFolder) -> Content:
    """All that the report shows.

    Raises:
        RunError: a file that every run has is damaged.
    """
    events, history = folder.read_events(), folder.read_history()
    _check_epochs(folder, history)
    result = folder.read_json(folder.result)
    known = {**last_start(events), **(result or {})}
    environment = folder.read_json(folder.environment) or {}
    gaps: dict[str, str] = {}
    evaluated = mapping(unless_gap({}, "", lambda run: read_object(run, run.evaluation), folder))
    answers = answers_of(gaps, folder, known.get("classes") or evaluated.get("classes"))
    evaluation = unless_gap(gaps, "evaluation", gather_evaluation, folder)
    name = folder.path.resolve().name
    return Content(
        name=name,
        trained=tuple(Fact(key, text.words(known[key])) for key in ("recipe", "data") if known.get(key)),
        as_of=_as_of(events),
        unfinished=None if result is not None else _why_unfinished(events),
        headline=_headline(result, history, evaluation),
        facts=_facts(known, history, evaluation),
        diagnosis=unless_gap(gaps, "diagnosis", gather_diagnosis, folder),
        charts=_charts(events, history),
        learning_rate=gather_learning_rate(folder),
        predictions=count_answers(answers) if answers else None,
        gallery=gather_gallery(folder, answers, gaps.get("probabilities", "")) if answers else None,
        evaluation=evaluation,
        other_evaluations=gather_other_evaluations(folder),
        other_pages=tuple(name_of(folder, path) for path in sorted(folder.evaluations.glob("*/report.html"))),
        own_images=unless_gap({}, "", gather_own_images, folder),
        samples=unless_gap(gaps, "samples", gather_samples, folder),
        model=_model(folder.read_json(folder.summary)),
        history=tabulate(_HISTORY_COLUMNS, history, numbers=1) if history else None,
        citation=cite(name, known, environment),
        command=text.command_line(environment.get("command")),
        config=_read_config(folder),
        environment=tuple(Fact(key, value) for key, value in text.flattened(environment)),
        gaps=gaps,
    )


def answers_of(gaps: dict[str, str], folder: RunFolder, classes: object) -> Answers | None:
    """The answers of the run; without probabilities where those are damaged, which the page then says.

    Raises:
        RunError: predictions.csv is damaged.
    """
    try:
        return read_answers(folder, classes)
    except RunError as error:
        answers = read_answers(folder, classes, with_probabilities=False)
        gaps["probabilities"] = error.problem.replace(f"{folder.path}/", "")
        return answers


def _check_epochs(folder: RunFolder, history: History) -> None:
    """Check that the epochs of the history can be an axis."""
    epochs = [number(row["epoch"]) for row in history]
    pairs = zip([0.0, *epochs], epochs, strict=False)
    if not all(before is not None and after is not None and before < after for before, after in pairs):
        raise RunError(
            f"{folder.history} is damaged: its epochs do not count upwards from 1.",
            "Restore it from a copy, or make the run again.",
        )


def _as_of(events: Events) -> str | None:
    """When the last thing happened, to the minute; None where the log does not say."""
    told = text.words(events[-1].get("time")) if events else text.NONE
    return None if told == text.NONE else f"{told[:16].replace('T', ' ')} UTC"


def _why_unfinished(events: Events) -> str:
    last = events[-1] if events else {}
    if last.get("event") == "RunStopped":
        reason = text.words(last.get("reason")).rstrip(".")
        return f"It stopped at step {text.count(last.get('step'))}: {reason}."
    return "It is still going on, or it was ended from outside."


def _headline(
    result: Mapping[str, Any] | None, history: History, evaluation: Evaluation | None
) -> Fact | None:
    """The figure to print large: that of the latest evaluation, the result, or the latest epoch."""
    if evaluation is not None:
        return Fact("Test accuracy", evaluation.accuracy)
    if result is not None:
        return Fact("Test accuracy", text.percent(result.get("test_accuracy")))
    last = history[-1] if history else {}
    for key, name in (("test_acc", "Test"), ("val_acc", "Validation"), ("train_acc", "Train")):
        if last.get(key) is not None:
            return Fact(f"{name} accuracy after epoch {text.count(last['epoch'])}", text.percent(last[key]))
    return None


def _facts(known: Mapping[str, Any], history: History, evaluation: Evaluation | None) -> tuple[Fact, ...]:
    """The other headline figures; those that are not known are left out."""
    last = history[-1] if history else {}
    ours = (
        Fact("Test accuracy, TTA", text.percent(known.get("test_accuracy_tta"))),
        Fact("Test loss", text.loss(known.get("test_loss", last.get("test_loss")))),
    )
    return with_values(
        [
            *(evaluation.facts if evaluation else ours),
            Fact("Train accuracy", text.percent(known.get("train_accuracy", last.get("train_acc")))),
            Fact("Train loss", text.loss(known.get("train_loss", last.get("train_loss")))),
            Fact("Training time", text.duration(known.get("train_seconds", last.get("time_s")))),
            Fact("Images per second", text.count(known.get("images_per_s", last.get("images_per_s")))),
            Fact("Parameters", text.count(known.get("params"))),
            Fact("Epochs", _epochs(known.get("epochs"), last.get("epoch"))),
            Fact("Device", text.words(known.get("device"))),
            Fact("Precision", text.words(known.get("precision"))),
            Fact("Seed", text.words(known.get("seed"))),
        ]
    )


def _epochs(planned: object, done: object) -> str:
    """How many epochs there are: "24", or "7 of 24" where not all are done."""
    texts = (text.count(done), text.count(planned))
    return texts[1] if texts[0] in {texts[1], text.NONE} else " of ".join(texts)


def _charts(events: Events, history: History) -> tuple[Drawing, ...]:
    if not history:
        return ()
    epochs = [row["epoch"] or 0.0 for row in history]
    roles = (("train", "Train"), ("val", "Validation"), ("test", "Test"))
    losses = [Series(role, name, [row[f"{role}_loss"] for row in history]) for role, name in roles]
    accuracies = [Series(role, name, [row[f"{role}_acc"] for row in history]) for role, name in roles]
    charts = [
        Chart("accuracy", "Accuracy", "epoch", epochs, accuracies, text.percent, percent=True),
        Chart("loss", "Loss", "epoch", epochs, losses, text.loss, from_zero=True),
        *_step_charts(events, epochs),
    ]
    return tuple(drawing for chart in charts if (drawing := draw(chart)))


def _step_charts(events: Events, epochs: Sequence[float]) -> Iterator[Chart]:
    """Learning rate and loss of every step, where the event log has them."""
    told = epochs_told(events)
    # The last epoch may be cut short, by --steps or a time budget.
    per_epoch = max((len(event.get("step_losses") or ()) for event in told.values()), default=0)
    steps: list[float] = []
    losses: list[float | None] = []
    rates: list[float | None] = []
    for epoch in epochs:
        event = told.get(epoch, {})
        found = event.get("step_losses") or ()
        steps += [(epoch - 1) * per_epoch + number for number in range(1, len(found) + 1)]
        losses += [number(loss) for loss in found]
        rates += [number(rate) for rate in event.get("step_lrs") or ()]
    if steps and len(rates) == len(steps):
        line = Series("rate", "Learning rate", rates)
        yield Chart("rate", "Learning rate", "step", steps, [line], text.rate, from_zero=True)
    if steps:
        window = max(2, len(steps) // 50)
        mean = Series("train", f"Mean of the last {window}", _trailing_mean(losses, window))
        lines = [Series("step", "Each step", losses), mean]
        yield Chart("steps", "Train loss of every step", "step", steps, lines, text.loss, from_zero=True)


def _trailing_mean(values: Sequence[float | None], window: int) -> list[float | None]:
    means: list[float | None] = []
    for end in range(1, len(values) + 1):
        found = [value for value in values[max(0, end - window) : end] if value is not None]
        means.append(sum(found) / len(found) if found else None)
    return means


def _model(summary: Mapping[str, Any] | None) -> Model | None:
    layers = listing(mapping(summary).get("layers"))
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    totals = mapping(mapping(summary).get("totals"))
    facts = (
        Fact("Parameters", text.count(totals.get("params"))),
        Fact("MACs per image", text.count(totals.get("macs"))),
        Fact("Receptive field", text.pixels(totals.get("receptive_field"))),
    )
    return Model(with_values(facts), tabulate(_LAYER_COLUMNS, layers, numbers=3))


def _read_config(folder: RunFolder) -> str | None:
    if not folder.config.exists():
        return None
    try:
        return folder.config.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(
            f"{folder.config} cannot be read: {error.strerror or error}.", "Mend its permissions."
        ) from error
