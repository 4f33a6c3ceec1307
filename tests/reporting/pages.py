"""Run folders that the tests of the report make up, and a look at the page that comes of them."""

import csv
import json
from html.parser import HTMLParser

import numpy as np

from velodrome.run.answers import COLUMNS
from velodrome.run.folder import HISTORY_COLUMNS, RunFolder

CLASSES = ["cat", "dog", "ship"]
STEPS = 4
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=http://evil.example/x.png onerror=alert(1)>",
    "\"double\" 'single' & ampersand",
    "line one\nline two\r\nline three",
    "\u202eright to left\u2028 שלום",
    "x" * 300,
    "{{ 7 * 7 }}{% raw %}",
    "bell \x07 and half a pair \ud800",
]


class Page(HTMLParser):
    """Checks that tags are balanced, and collects text, tags and attributes."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts, self.scripts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), f"an attribute of {tag} comes twice"
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        kind = self.open[-1] if self.open else ""
        if kind == "script":
            self.scripts.append(data)
        elif kind != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def hover_data(self):
        found = [json.loads(script) for script in self.scripts if script.startswith("{")]
        return [data for data in found if "points" in data]

    def gallery_data(self):
        """What the gallery's script is given."""
        (data,) = [json.loads(script) for script in self.scripts if script.startswith('{"chance"')]
        return data

    def find(self, name, **attributes):
        """The attributes of all elements of that name that have these, `class_` among its classes."""
        kind = attributes.pop("class_", None)
        return [
            found
            for tag, found in self.tags
            if tag == name
            and (kind is None or kind in found.get("class", "").split())
            and all(found.get(key.replace("_", "-")) == value for key, value in attributes.items())
        ]

    def path_data(self):
        return [attributes["d"] for tag, attributes in self.tags if tag == "path"]


def history_rows(epochs, **changes):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {
            "epoch": epoch,
            "time_s": 10.0 * epoch,
            "lr": 0.1 / epoch,
            "train_loss": 2.0 / epoch,
            "train_acc": 1 - 0.8 / epoch,
            "val_loss": None,
            "val_acc": None,
            "test_loss": 2.2 / epoch,
            "test_acc": 1 - 0.9 / epoch,
            "images_per_s": 1234.5,
        }
        rows.append({**row, **changes})
    return rows


def write_history(folder, rows):
    with folder.history.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_events(folder, *events):
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def started(**changes):
    names = {"run": "trial", "recipe": "quick", "data": "shapes", "device": "cpu", "precision": "fp32"}
    return {"event": "RunStarted", **names, "params": 4321, "epochs": 3, "steps_per_epoch": STEPS, **changes}


def epoch_done(row, losses=(2.0, 1.5, 1.2, 1.0), lrs=(0.1, 0.2, 0.3, 0.2)):
    return {"event": "EpochDone", **row, "step_losses": losses, "step_lrs": lrs}


def write_predictions(folder, pairs, losses=None):
    """Answers as (label, prediction) pairs; a mistake has a loss of 2, a right answer one of 0.1."""
    with folder.predictions.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, (label, prediction) in enumerate(pairs):
            loss = losses[i] if losses else 0.1 if label == prediction else 2.0
            writer.writerow([i, f"{i}.png", label, prediction, 0.9, loss])


def write_run(path, *, epochs=3, classes=CLASSES):
    """A complete run; the first class is taken for the second once."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    rows = history_rows(epochs)
    folder.config.write_text("recipe: quick\n\n# run: Where.\nseed: 7\n", encoding="utf-8")
    write_history(folder, rows)
    write_events(folder, started(), *(epoch_done(row) for row in rows))
    write_predictions(folder, [*[(name, name) for name in classes] * 3, (classes[0], classes[1])])
    layer = {
        "name": "prep",
        "type": "Conv2d",
        "output_shape": [64, 32, 32],
        "params": 1728,
        "macs": 1769472,
        "receptive_field": 3,
        "stride": 1,
    }
    summary = {"layers": [layer], "totals": {"params": 4321, "macs": 1769472, "receptive_field": [3, 5]}}
    folder.summary.write_text(json.dumps(summary))
    environment = {
        "torch": "2.8.0",
        "git": {"commit": "3be7f7b", "dirty": True},
        "command": "velodrome train quick --seed 7",
    }
    folder.environment.write_text(json.dumps(environment))
    result = {
        "test_accuracy": 0.9353,
        "test_accuracy_tta": 0.9412,
        "test_loss": 0.2387,
        "train_accuracy": 0.9931,
        "train_loss": 0.0304,
        "train_seconds": 343.2,
        "epochs": epochs,
        "params": 4321,
        "images_per_s": 3497.2,
        "device": "cpu",
        "precision": "fp32",
        "seed": 7,
        "data": "shapes",
        "recipe": "quick",
        "classes": classes,
    }
    folder.result.write_text(json.dumps(result))
    return folder


def webp(size=64):
    """Something that begins and is as long as a WebP file."""
    return b"RIFF" + (size - 8).to_bytes(4, "little") + b"WEBP" + bytes(size - 12)


def write_probabilities(folder, rows):
    np.save(folder.probabilities, np.array(rows, np.float16))


def write_mistakes(folder, indices, *, size=(4, 6), map_size=(2, 3), **changes):
    """gallery/mistakes.json and what belongs to it."""
    folder.gallery.mkdir(exist_ok=True)
    about = {"layer": "layer2", "image_size": size, "map_size": map_size, "mistakes": 1, "columns": 2}
    folder.mistakes.write_text(json.dumps({**about, "indices": indices, **changes}))
    folder.mistakes_image.write_bytes(webp())
    values = np.arange(2 * len(indices) * map_size[0] * map_size[1], dtype=np.uint8)
    np.save(folder.maps, values.reshape(len(indices), 2, *map_size))


def write_samples(folder, classes=CLASSES, **changes):
    """gallery/samples.json and its two images."""
    folder.gallery.mkdir(exist_ok=True)
    augmented = {"columns": 2, "labels": [classes[0], classes[1], classes[0]]}
    about = {"image_size": [4, 6], "classes": classes, "columns": 5, "counts": [5, *[2] * (len(classes) - 1)]}
    folder.samples.write_text(json.dumps({**about, "augmented": augmented, **changes}))
    folder.samples_image.write_bytes(webp(80))
    folder.augmented_image.write_bytes(webp(96))


def write_label_errors(folder, *rows):
    """Rows of index, given label and suggested label."""
    with folder.label_errors.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        columns = ["index", "path", "label", "given_label", "suggested_label"]
        writer.writerow([*columns, "given_probability", "suggested_probability", "margin"])
        writer.writerows(
            [index, f"{index}.png", given, given, other, 0.1, 0.8, -0.7] for index, given, other in rows
        )


def write_evaluation(folder, **changes):
    empty = {"low": 0.0, "high": 0.5, "images": 0, "confidence": None, "accuracy": None}
    bins = [
        empty,
        {"low": 0.5, "high": 0.75, "images": 3, "confidence": 0.7, "accuracy": 0.6},
        {"low": 0.75, "high": 1.0, "images": 7, "confidence": 0.99, "accuracy": 0.8},
    ]
    content = {
        "data": "shapes",
        "images": 10,
        "accuracy": 0.9353,
        "accuracy_ci95": [0.91, 0.9512],
        "accuracy_tta": 0.9412,
        "top5_accuracy": 0.9876,
        "nll": 0.2345,
        "brier": 0.1021,
        "calibration": {"ece": 0.0314, "mce": 0.21, "mean_confidence": 0.95, "bins": bins},
        "duplicates": {"images": 0, "examples": []},
    }
    folder.evaluation.write_text(json.dumps({**content, **changes}))


def finding(severity, rule="overfitting", title="It fits the training images better than new ones"):
    evidence = "Train accuracy 99.8%, test accuracy 85.1%: a gap of 14.7 points (rule: above 8)."
    advice = "Try --cutout 12."
    return {"rule": rule, "severity": severity, "title": title, "evidence": evidence, "advice": advice}


def write_diagnosis(folder, *findings, checked=("overfitting", "lr_too_high"), unchecked=None):
    content = {"findings": findings, "checked": checked, "unchecked": unchecked or {}}
    folder.diagnosis.write_text(json.dumps(content))


def write_lr_find(folder, **changes):
    found = {
        "lr_max": 0.21,
        "lr_min": 0.021,
        "suggestions": {"valley": 0.012, "minimum_tenth": 0.034},
        "confidence": {"level": "medium", "reasons": ["The rules put LRMAX between 0.1 and 0.4."]},
        "rule": "LRMAX is the geometric mean.",
        "refusal": None,
        "steps": 90,
        "seconds": 151.2,
    }
    folder.lr_find.write_text(json.dumps(found | changes))
    folder.lr_find_figure.write_bytes(b"\x89PNG and so on")


def write_complete_run(path, *, classes=CLASSES):
    """A run that lacks nothing: `write_run`, evaluated, with a gallery and a diagnosis."""
    folder = write_run(path, classes=classes)
    rights = list(np.eye(len(classes))) * 3
    write_probabilities(folder, [*rights, [0.25, 0.7, 0.05] + [0.0] * (len(classes) - 3)])
    write_mistakes(folder, [9, 0, 1, 2])
    write_label_errors(folder, (9, classes[0], classes[1]))
    write_samples(folder, classes)
    write_evaluation(folder)
    write_diagnosis(folder, finding("warning"))
    return folder
