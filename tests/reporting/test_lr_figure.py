"""The figures of a range test: what is marked, and that nothing in a result can break them."""

import pytest

from velodrome.reporting.lr_figure import draw_range_test, draw_schedule, save_figure

SUGGESTIONS = {"valley": 0.02, "slide": 0.5, "steepest": 0.05, "minimum_tenth": 0.03, "minimum": 0.3}


def found(steps=40, **changes):
    lrs = [1e-3 * 10 ** (4 * step / 39) for step in range(steps)]
    losses = [2.3 - 0.5 / (1 + (0.05 / lr) ** 2) + 0.3 * lr for lr in lrs]
    result = {
        "lr_max": 0.2,
        "lr_min": 0.02,
        "suggestions": SUGGESTIONS,
        "edge": 2.0,
        "ending": "diverged",
        "curve": {"lr": lrs, "loss": losses, "smoothed": losses},
        "sweeps": [],
        "recipe": "resnet9",
        "data": "cifar10",
        "optimizer": "sgd",
        "batch_size": 512,
    }
    return result | changes


def texts_of(figure):
    axes = figure.axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
    return [text.get_text() for text in axes.texts] + legend + [axes.get_title(loc="left")]


def test_everything_that_was_found_is_marked_and_named():
    figure = draw_range_test(found())
    words = " | ".join(texts_of(figure))
    for name in ("valley 0.02", "slide 0.5", "steepest 0.05", "minimum / 10 0.03", "minimum 0.3", "edge 2"):
        assert name in words
    assert "LRMIN 0.02 to LRMAX 0.2" in words
    assert "diverged, at 10" in words
    assert "resnet9 on cifar10, sgd, 40 steps of 512 images" in words
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert sorted(dots) == sorted([*SUGGESTIONS.values(), 2.0])
    shaded = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (shaded.x0, shaded.x1) == (pytest.approx(0.02), pytest.approx(0.2))


def test_names_do_not_overlap():
    near = {name: 0.1 * 1.02**rank for rank, name in enumerate(SUGGESTIONS)}
    figure = draw_range_test(found(suggestions=near))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_a_completed_test_has_no_divergence_and_a_refused_one_no_band():
    assert not any("diverged" in words for words in texts_of(draw_range_test(found(ending="completed"))))
    refused = draw_range_test(found(lr_max=None, lr_min=None, suggestions=None))
    assert "no learning rate found" in " ".join(texts_of(refused))
    assert refused.axes[0].patches == [] or len(refused.axes[0].patches) == 0


def test_repeats_are_drawn_each():
    curve = found()["curve"]
    figure = draw_range_test(found(sweeps=[curve, curve, curve]))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 40]
    assert len(lines) == 4


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_curve_of_hardly_any_steps_can_be_drawn(steps, tmp_path):
    refused = found(steps, ending="not finite", lr_max=None, lr_min=None, suggestions=None)
    save_figure(draw_range_test(refused), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_names_are_text_and_never_mathematics(tmp_path):
    figure = draw_range_test(found(recipe="$\\frac{", data="a$b_{"))
    save_figure(figure, tmp_path / "figure.png")
    assert "$\\frac{ on a$b_{" in " ".join(texts_of(figure))


def test_the_schedule_has_its_peak_marked():
    lrs = [0.02 + 0.18 * (1 - abs(step - 20) / 80) for step in range(100)]
    figure = draw_schedule(lrs, steps_per_epoch=10)
    words = " | ".join(texts_of(figure))
    assert "LRMAX 0.2 at step 20 (epoch 2.0)" in words
    assert f"first step: {lrs[0]:.3g}" in words
    assert f"last step: {lrs[-1]:.3g}" in words
    peak = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert (peak.get_xdata()[0], peak.get_ydata()[0]) == (2.0, pytest.approx(0.2))


def test_the_same_figure_is_the_same_file(tmp_path):
    for name in ("one.png", "two.png"):
        save_figure(draw_range_test(found()), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
