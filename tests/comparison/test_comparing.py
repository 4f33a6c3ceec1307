"""Runs sorted into variants, named, compared; what cannot be compared is named and left out."""

import csv
import io
import json

import pytest
from run_folders import CLASSES, write_run, write_variants

import velodrome as vd
from velodrome.comparison.comparing import MOST_SHOWN, compare
from velodrome.comparison.tables import MOST_ROWS
from velodrome.errors import EXIT_PARTLY, ConfigError, RunError


@pytest.fixture
def two(tmp_path):
    return write_variants(
        tmp_path, cutout8=[[1, 2, 3, 4], [1, 2, 3], [1, 2]], cutout16=[[1, 2], [1, 5], [1, 5]]
    )


def labels(found):
    return [variant.label for variant in found.variants]


def test_the_table(two):
    found = vd.compare([two / "cutout8-*", two / "cutout16-*"])
    assert str(found) == (
        "6 runs in 2 variants, shapes, 60 test images\n"
        "\n"
        "variant    n  test acc    sd          95% CI  with TTA  train acc  test loss  time\n"
        "baseline   3    95.00%  1.67  90.86 to 99.14    95.00%     95.00%     0.0500  10 s\n"
        "cutout=16  3    96.67%  0.00  96.67 to 96.67    96.67%     96.67%     0.0333  10 s\n"
        "\n"
        "What differs:\n"
        "  cutout  8 (baseline), 16\n"
        "\n"
        "- cutout=16: no difference shown. +1.67 points of test accuracy is within what other seeds alone "
        "bring about (95% CI -2.47 to +5.81; 3 pairs of runs with the same seed; p = 0.23). A true "
        "difference of up to 5.81 points would look like this too.\n"
        "- cutout=16, by the majority of runs: 1 image wrong that the baseline gets right, 2 right that it "
        "gets wrong, 1 wrong in both."
    )


def test_mistakes_go_by_the_majority(two):
    found = compare([two / "cutout8-*", two / "cutout16-*"])
    (mistakes,) = found.mistakes
    # 1: wrong in all; 2: in 3 of 3 and 1 of 3; 3: in 2 of 3 and none; 4: in 1 of 3; 5: in none and 2 of 3.
    assert (mistakes.both, mistakes.only_variant.tolist()) == (1, [5])
    assert mistakes.only_baseline.tolist() == [2, 3]  # both by two thirds of the runs, in order
    ours, theirs = found.listed_mistakes(mistakes)
    assert [(m.index, m.path, m.label, m.taken_for, m.wrong, m.runs, m.right) for m in ours] == [
        (5, "test/00005.png", "sea lion", (("cat", 2),), 2, 3, 3)
    ]
    assert [m.index for m in theirs] == [2, 3]


def test_a_tie_is_no_majority(tmp_path):
    write_variants(tmp_path, cutout8=[[1], []], cutout16=[[2], [2]])
    (mistakes,) = compare(tmp_path).mistakes
    assert (mistakes.only_variant.tolist(), mistakes.only_baseline.tolist(), mistakes.both) == ([2], [], 0)


@pytest.mark.parametrize(
    "setting",
    [
        {"runs_dir": "elsewhere"},
        {"data_root": "/tmp/data"},
        {"checkpoint_every": 5},
        {"score_test": "once"},
        {"cache_by": "contents"},
    ],
)
def test_what_makes_no_difference(tmp_path, setting):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1, **setting)
    assert labels(compare(tmp_path)) == ["baseline"]


def test_names_list_what_differs_from_the_baseline(tmp_path):
    write_run(tmp_path / "a", width=8)
    write_run(tmp_path / "b", cutout=16, flip=False, width=8)
    write_run(tmp_path / "c", cutout=16, crop=2, dropout=0.25, l1=1e-4, label_smoothing=0.1)
    assert labels(compare(tmp_path)) == [
        "baseline",
        "flip=no, cutout=16",
        "crop=2, cutout=16, width=16, and 3 more",
    ]


def test_a_found_learning_rate_is_no_difference(tmp_path):
    """Each seed finds its own; LRMIN is a share of it."""
    for seed, lr in enumerate((0.1, 0.12)):
        run = write_run(tmp_path / str(seed), seed=seed, lr=lr, lr_min=lr / 10, lr_final=lr / 10)
        (run / "lr_find.json").write_text("{}")
    write_run(tmp_path / "set", lr=0.1)
    assert labels(compare(tmp_path)) == ["baseline", "lr=0.1"]


def test_epochs_of_a_time_budget_are_no_difference(tmp_path):
    write_run(tmp_path / "a", time_budget="1m", epochs=3, steps=30)
    write_run(tmp_path / "b", time_budget="1m", epochs=4, steps=33, seed=1)
    assert compare(tmp_path).baseline.n == 2


def test_another_version_is_another_variant(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1, version="0.0.9")
    found = compare(tmp_path)
    assert labels(found) == ["baseline", "velodrome=0.0.9"]
    assert "velodrome  0.1.0 (baseline), 0.0.9" in str(found)


def test_several_ranks_are_another_variant(tmp_path):
    """Batch norm of each sees its own images."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", wrong=[1])
    environment = tmp_path / "b" / "environment.json"
    environment.write_text(json.dumps(json.loads(environment.read_text()) | {"ranks": 2}))
    found = compare(tmp_path)
    assert labels(found) == ["baseline", "ranks=2"]
    assert found.repeated == ()


def test_the_same_seed_counts_once(tmp_path):
    write_run(tmp_path / "a", finished_s=1000)
    write_run(tmp_path / "b", wrong=[1], finished_s=3000)
    write_run(tmp_path / "c", seed=1)
    found = compare(tmp_path)
    assert [trial.run.path.name for trial in found.baseline.trials] == ["b", "c"]
    assert [run.path.name for run in found.repeated] == ["a"]
    words = f"1 run is left out, as a newer one has the same settings and the same seed: {tmp_path / 'a'}."
    assert words in found.notes
    assert found.what_is_missing() is None


# The baseline


@pytest.mark.parametrize("wanted", ["cutout16-1", "cutout=16", " cutout = 16", "PATH"])
def test_the_baseline_can_be_named(two, wanted):
    wanted = str(two / "cutout16-1") + "/" if wanted == "PATH" else wanted
    found = compare(two, baseline=wanted.replace(" = ", "="))
    assert found.baseline.settings["cutout"] == 16
    assert labels(found) == ["baseline", "cutout=8"]


def test_several_settings_name_a_baseline(tmp_path):
    for index, (cutout, crop) in enumerate([(8, 4), (8, 2), (16, 2)]):
        write_run(tmp_path / str(index), cutout=cutout, crop=crop)
    assert compare(tmp_path, baseline="crop=2, cutout=8").baseline.trials[0].run.path.name == "1"
    with pytest.raises(ConfigError, match="fits 2 variants"):
        compare(tmp_path, baseline="cutout=8")


def test_no_such_baseline(two):
    with pytest.raises(ConfigError, match=r"cutout=61 is none of the variants.*Did you mean cutout=16\?"):
        compare(two, baseline="cutout=61")


# What cannot be compared


def test_damaged_runs_are_named_and_left_out(two):
    (two / "cutout8-1" / "result.json").write_text("{")
    (two / "cutout8-2" / "result.json").unlink()
    (two / "empty").mkdir()
    found = compare(two)
    assert [(run.path.name, run.status) for run in found.left_out] == [
        ("cutout8-1", "damaged"),
        ("cutout8-2", "stopped"),
        ("empty", "damaged"),
    ]
    assert len(found.runs) == 4
    missing = found.what_is_missing()
    assert missing.exit_code == EXIT_PARTLY
    assert "3 of 7 runs are left out" in missing.problem
    assert "empty is empty." in str(found)


@pytest.mark.parametrize("rows", [12, 59])
def test_answers_that_do_not_belong_to_the_result_are_damage(two, rows):
    path = two / "cutout8-0" / "predictions.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: rows + 1]))
    if rows == 59:  # nearly the same accuracy, but other images
        with pytest.raises(RunError, match=r"on 60 images of shapes, .*cutout8-0 on 59"):
            compare([two / "cutout8-1", two / "cutout8-0"])
        return
    (left,) = compare(two).left_out
    assert "predictions.csv has 66.67% right answers, but result.json says 93.33%" in left.problem


def test_what_is_no_run_is_named_but_not_missed(two):
    (two / "notes.txt").write_text("")
    found = compare([two / "cutout8-0", two / "notes.txt", two / "cutout16-0"])
    assert [run.status for run in found.left_out] == ["not a run"]
    assert found.what_is_missing() is None


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(RunError, match=r"No run can be compared: .*a is empty\. Nor can 1 more"):
        compare(tmp_path)
    with pytest.raises(RunError, match="no run to compare"):
        compare([])


# Other data


def other_data(place):
    write_run(place / "a", wrong=[1])
    write_run(place / "b", wrong=[1, 2], cutout=16)
    write_run(place / "c", wrong=[1, 2], images=50, limit_test=50)
    write_run(place / "d", data="cifar10")
    return place


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("ac", r"on 60 images of shapes, .*c on 50"),
        ("ad", r"on shapes, .*d on cifar10"),
        ("abcd", r"3 different test sets \(2 and 1 and 1 runs\)"),
    ],
)
def test_other_test_images_are_refused(tmp_path, names, words):
    place = other_data(tmp_path)
    with pytest.raises(RunError, match=words) as error:
        compare([place / name for name in names])
    assert "--across-data" in error.value.remedy


def test_other_labels_are_other_test_images(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", classes=[*CLASSES[1:], CLASSES[0]])
    with pytest.raises(RunError, match="other images, or with other labels"):
        compare(tmp_path)


def test_across_data_nothing_is_said_about_differences(tmp_path):
    found = compare(other_data(tmp_path), across_data=True)
    assert labels(found) == ["baseline", "cutout=16", "limit_test=50", "other test images"]
    assert [one.method for one in found.contrasts] == ["McNemar", "none", "none"]
    assert [one.difference for one in found.contrasts][1:] == [None, None]
    assert len(found.mistakes) == 1
    text = str(found)
    assert "limit_test=50: not compared with the baseline, since it was tested on other images." in text
    assert "a difference between them says nothing" in text
    assert "shapes, 60 test images; shapes, 50 test images; cifar10, 60 test images" in text


# Notes, and what goes out


def test_times_of_several_machines_are_not_compared(tmp_path):
    write_run(tmp_path / "a")
    run = write_run(tmp_path / "b", cutout=16)
    (run / "environment.json").write_text('{"velodrome": "0.1.0", "device_name": "GPU", "threads": 8}')
    assert "2 kinds of machines and cannot be compared: CPU with 2 threads; GPU with 8 threads" in str(
        compare(tmp_path)
    )


def test_one_variant_is_a_table_without_statements(tmp_path):
    write_variants(tmp_path, cutout8=[[1], [2], []])
    found = compare(tmp_path)
    assert found.contrasts == found.mistakes == ()
    assert "There is one variant only, so nothing is compared" in str(found)


def test_json(two):
    found = json.loads(json.dumps(compare(two).to_dict(), allow_nan=False))
    assert found["baseline"] == "baseline"
    assert [variant["n"] for variant in found["variants"]] == [3, 3]
    assert found["variants"][0]["settings"] == {"cutout": 8}
    assert found["variants"][1]["figures"]["test_accuracy"]["mean"] == pytest.approx(58 / 60)
    assert found["contrasts"][0]["method"] == "paired t"
    assert found["mistakes"][0]["only_baseline_images"][0]["path"] == "test/00002.png"


def test_csv_has_a_row_for_every_run(two):
    (two / "cutout8-1" / "result.json").write_text("{")
    write_run(two / "older", cutout=16, finished_s=1000)
    rows = list(csv.DictReader(io.StringIO(compare(two).to_csv())))
    assert len(rows) == 7
    of = {row["run"].rpartition("/")[2]: row for row in rows}
    assert (of["cutout16-1"]["variant"], of["cutout16-1"]["cutout"], of["cutout16-1"]["seed"]) == (
        *("cutout=16", "16", "1"),
    )
    assert float(of["cutout8-2"]["test_accuracy"]) == pytest.approx(58 / 60)
    assert (of["cutout8-1"]["status"], of["cutout8-1"]["test_accuracy"]) == ("damaged", "")
    assert of["older"]["status"] == "repeated"


def test_in_a_notebook(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", labels="<b>.csv")
    html = compare(tmp_path)._repr_html_()
    assert "labels=&lt;b&gt;.csv" in html
    assert "<b>" not in html


def test_many_variants_are_shown_in_part(tmp_path):
    for cutout in range(MOST_ROWS + 6):
        write_run(tmp_path / f"run-{cutout}", cutout=cutout, wrong=range(50 - cutout))
    found = compare(tmp_path)
    assert len(found.contrasts) == MOST_ROWS + 5
    assert [variant.label for variant in found.shown] == [
        "baseline", *(f"cutout={MOST_ROWS + 5 - number}" for number in range(MOST_SHOWN - 1))
    ]  # fmt: skip
    text = str(found)
    assert f"... the baseline and the best {MOST_ROWS - 1} of {MOST_ROWS + 5} others by test accuracy" in text
    assert text.count("\n- cutout=") == MOST_ROWS - 1 + MOST_SHOWN - 1
    assert f"and {MOST_ROWS - 3} more" in text
