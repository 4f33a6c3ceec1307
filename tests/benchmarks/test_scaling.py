"""The model of the time of a step finds what it was made from, and its figures behave as they must."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    scaling = importlib.import_module("scaling")

ANY = scaling.Computing(0.004, 0.0001)
LINK = scaling.Link(2e-5, 5e9)


def test_the_line_through_points_of_a_line_is_that_line():
    sizes = [4, 8, 64, 512]
    assert scaling.fit_line(sizes, [0.003 + 0.0002 * size for size in sizes]) == pytest.approx(
        (0.003, 0.0002)
    )


def test_small_steps_count_as_much_as_large_ones():
    fixed, each = scaling.fit_line([1, 10, 1000], [0.011, 0.02, 1.2])  # 0.01 + 0.001 x, but for the last
    assert fixed == pytest.approx(0.01, rel=0.1)
    assert each == pytest.approx(0.0011, rel=0.1)


def test_a_link_is_found_from_its_own_all_reduces():
    sizes = [1e4, 1e6, 2.6e7]
    found = scaling.fit_link(sizes, [LINK.all_reduce_s(2, size) for size in sizes])
    assert (found.latency_s, found.bandwidth) == pytest.approx((LINK.latency_s, LINK.bandwidth))


def test_an_all_reduce_by_hand():
    # Of 8 ranks: 7/8 of the bytes go out twice, through a tree of three levels, up and down.
    assert LINK.all_reduce_s(8, 5e9) == pytest.approx(2 * 7 / 8 + 6 * 2e-5)
    assert LINK.all_reduce_s(1, 5e9) == 0


def test_a_rank_alone_is_perfect_and_more_are_less_so():
    found = [scaling.efficiency(ANY, LINK, size, 512, 10**7) for size in scaling.GPUS]
    assert found[0] == 1
    assert all(more < fewer for fewer, more in itertools.pairwise(found))


def test_what_travels_during_the_backward_pass_costs_nothing_but_its_last_piece():
    hidden = scaling.Computing(0.004, 0.0001, hidden=0.5, last=0.1)
    alone_s = hidden.seconds(256)
    assert scaling.step_s(hidden, LINK, 2, 512, 10**7) == alone_s + LINK.all_reduce_s(2, 10**6)
    slow = scaling.Link(2e-5, 1e8)
    took_s = slow.all_reduce_s(2, 10**7)
    assert scaling.step_s(hidden, slow, 2, 512, 10**7) == pytest.approx(took_s + 0.5 * alone_s)


def test_the_most_gpus_are_those_above_which_efficiency_falls_below_four_fifths():
    for batch in (512, 2048):
        most = scaling.most_ranks(scaling.V100, scaling.CARD_EACH, batch)
        above = [size for size in scaling.GPUS if size > most]
        link = scaling.CARD_EACH
        assert above
        assert scaling.efficiency(scaling.V100, link, above[-1], batch, scaling.RESNET9_BYTES) < 0.8


def test_steps_and_all_reduces_are_measured():
    words = ["--data", "shapes", "--width", "2", "--images", "2,4", "--steps", "1", "--first-steps", "1"]
    options = scaling.arguments_of(words)
    found = scaling.measure(options)
    assert [seconds > 0 for seconds in found["step_s"]] == [True, True]
    assert found["reduce_s"] == []  # of a process that is alone
    assert found["bytes"][-1] > found["bytes"][0] > 0


def test_the_table_compares_what_was_computed_with_what_was_measured(monkeypatch, tmp_path):
    sizes, output = [4e6, 2.6e7], tmp_path / "scaling.md"

    def made_up(words, cores, *, talk):
        alone = [ANY.seconds(images) for images in (8, 64)]
        together = [alone_s + LINK.all_reduce_s(2, sizes[-1]) for alone_s in alone]
        reduced = [LINK.all_reduce_s(2, size) for size in sizes]
        one = {"step_s": together if talk else alone, "bytes": sizes, "reduce_s": reduced if talk else []}
        return [one, one]

    monkeypatch.setattr(scaling, "measured", made_up)
    words = ["--data", "shapes", "--images", "8,64", "--rounds", "2", "--output", str(output)]
    assert scaling.main(words) == 0
    text = output.read_text()
    assert (
        "a step takes 4.0 ms and 0.10 ms an image; a message takes 20 us, and gloo carries 5.00 GB/s" in text
    )
    assert "The largest error is 0.0%." in text
    assert text.count("Computed, not measured") == 3
