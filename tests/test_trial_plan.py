"""What trials try: grids and single changes, read from flags, checked by the rules of the settings."""

from pathlib import Path

import pytest

import velodrome as vd
from velodrome.errors import ConfigError, RunError
from velodrome.trial_plan import Variant, adopt, parse_also, parse_vary, plan_variants


def base(**changes: object) -> vd.Config:
    return vd.recipes.quick(**{"data": "shapes", **changes})


def labels(*vary: str, also: tuple[str, ...] = ()) -> list[str]:
    return [one.label for one in plan_variants(base(), parse_vary(vary), parse_also(also), 3)]


def test_without_changes_the_recipe_itself_is_the_only_variant() -> None:
    (only,) = plan_variants(base(), {}, [], 1)
    assert only == Variant("baseline", "baseline", {})
    assert only.config(base()) == base()


def test_a_grid_is_every_combination_and_single_changes_follow() -> None:
    assert labels("optimizer=sgd,adam", "cutout=0,16", also=("l1=1e-5", "dropout=0.2,lr=auto")) == [
        "optimizer=sgd, cutout=0",
        "optimizer=sgd, cutout=16",
        "optimizer=adam, cutout=0",
        "optimizer=adam, cutout=16",
        "l1=1e-05",
        "dropout=0.2, lr=auto",
    ]
    assert labels(also=("cutout=16",)) == ["baseline", "cutout=16"]


def test_values_are_converted_by_the_rules_of_the_settings() -> None:
    texts = ["ghost-batch=none,32", "--flip=yes,off", "lr=auto,1/8"]
    variants = plan_variants(base(), parse_vary(texts), [], 1)
    changes = [dict(one.changes) for one in variants]
    assert changes[0] == {"ghost_batch": None, "flip": True, "lr": "auto"}
    assert changes[-1] == {"ghost_batch": 32, "flip": False, "lr": 0.125}
    config = variants[-1].config(base())
    assert (config.model.ghost_batch, config.augment.flip, config.train.lr) == (32, False, 0.125)
    assert variants[-1].label == "ghost_batch=32, flip=no, lr=0.125"
    assert variants[0].label == "ghost_batch=none, flip=yes, lr=auto"


def test_values_with_commas_are_for_single_changes() -> None:
    (change,) = parse_also(["resolutions=20:2,32:1,cutout=8"])
    assert change == {"resolutions": "20:2,32:1", "cutout": "8"}
    with pytest.raises(ConfigError, match="commas in each"):
        parse_vary(["resolutions=20:2,32:1"])


def test_slugs_are_folder_names_and_differ() -> None:
    a, b, c = (f"/data/{name}" for name in ("a b", "a:b", "A*b"))
    variants = plan_variants(base(), {"labels": [a, b, c]}, [{"batch_size": 64, "cutout": 8}], 1)
    slugs = [one.slug for one in variants]
    assert slugs == ["labels-data-a-b", "labels-data-a-b-2", "labels-data-A-b-3", "batch-size-64_cutout-8"]
    (long,) = plan_variants(base(), {}, [{"labels": "/x" * 400}], 1)[1:]
    assert len(long.slug) <= 80
    name = f"{long.slug}-seed-{2**32 - 1}"
    assert vd.override(base(), {"name": name}).run.name == name


def test_the_network_of_a_run_to_start_from_comes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velodrome.trial_plan.network_of", lambda _: {"width": 8})
    start, own = plan_variants(base(), {"init": ["runs/a", "none"]}, [], 1)
    assert (start.config(base()).model.width, str(start.config(base()).model.init)) == (8, "runs/a")
    assert own.config(base()) == base()


def test_a_run_to_start_from_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        plan_variants(base(), {"init": [str(tmp_path / "none")]}, [], 1)


# Going on.


def test_what_is_known_keeps_its_name_however_it_is_written() -> None:
    known = plan_variants(base(cutout=4), {"cutout": [4, 8]}, [], 1)
    wanted = plan_variants(base(cutout=4), {}, [{"cutout": 8}, {"cutout": 12}], 1)
    found = adopt(base(cutout=4), known, wanted)
    assert [one.label for one in found] == ["cutout=4", "cutout=8", "cutout=12"]


def test_what_is_new_gets_a_slug_of_its_own() -> None:
    known = plan_variants(base(), {"labels": ["/a b"]}, [], 1)
    wanted = plan_variants(base(), {"labels": ["/a:b"]}, [], 1)
    assert [one.slug for one in adopt(base(), known, wanted)] == ["labels-a-b-2"]


# Bad input.

BAD = [
    (["cutot=8"], [], "--vary: cutot is not a setting. Did you mean cutout?"),
    (["cutout"], [], "--vary is 'cutout', but must name a setting and say what it is to be. For instance"),
    (["cutout="], [], "--vary is 'cutout='"),
    (["=8"], [], "--vary is '=8'"),
    (["cutout=8,,16"], [], "--vary cutout=8,,16 has an empty value."),
    (["cutout=8,x"], [], "--vary: cutout is 'x', but must be auto or a whole number at least 0."),
    (["optimizer=sgd,adm"], [], "--vary: optimizer is 'adm', but must be sgd, adam, adamw or muon. Did you"),
    (["cutout=8,8.0"], [], "--vary: cutout is '8.0'"),
    (["lr=0.1,1e-1"], [], "--vary: lr has the value 0.1 twice."),
    (["cutout=8", "cutout=16"], [], "--vary names cutout twice. Give all of its values at once"),
    ([], ["cutout=8,cutout=16"], "--also cutout=8,cutout=16 names cutout twice."),
    ([], ["cutout"], "--also is 'cutout', but must name"),
    ([], ["8,cutout=16"], "--also is '8'"),
    (["cutout=8,16"], ["cutout=16"], "Variant cutout=16 is the same as cutout=16."),
    ([], ["width=4"], "Variant width=4 is the same as baseline."),
    (["seed=0,1"], [], "--vary: seed cannot be tried, as it differs within each variant. For more seeds"),
    (["name=a,b"], [], "--vary: name cannot be tried, as it makes no difference to what comes of a run."),
    ([], ["data_root=x"], "--also: data_root cannot be tried, as it makes no difference"),
    (
        ["recipe=quick,speed94"],
        [],
        "--vary: recipe cannot be tried, as it is no setting but sets all others.",
    ),
    (
        ["lr=0.1", "lr_min=0.01,0.2"],
        [],
        "Variant lr=0.1, lr_min=0.2: lr_min is 0.2, but must not be above lr",
    ),
    ([f"seed_{n}=1" for n in range(2)], [], "--vary: seed_0 is not a setting."),
    (
        [f"cutout={','.join(map(str, range(100)))}", f"crop={','.join(map(str, range(100)))}"],
        [],
        "10,000 variants with 2 seeds make 20,000 runs, but at most 10,000 are taken on at once.",
    ),
]


@pytest.mark.parametrize(("vary", "also", "expected"), BAD, ids=[expected[:40] for *_, expected in BAD])
def test_bad_input_is_named_with_its_rule(vary: list[str], also: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_variants(base(width=4), parse_vary(vary), parse_also(also), 2)
    assert expected in str(error.value)


@pytest.mark.parametrize("values", ["adam", []])
def test_values_must_be_a_list(values: object) -> None:
    with pytest.raises(ConfigError, match=r"optimizer has .* but must have a list of values"):
        plan_variants(base(), {"optimizer": values}, [], 1)  # type: ignore[dict-item]


def test_seeds_must_be_seeds() -> None:
    with pytest.raises(ConfigError, match="seeds is 0, but must be at least 1"):
        plan_variants(base(), {}, [], 0)
    with pytest.raises(ConfigError, match="seed is 4294967296"):
        plan_variants(base(seed=2**32 - 1), {}, [], 2)
