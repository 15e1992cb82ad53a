import numpy as np
import pytest

from experiments.harness import drawing, figures, intervals, slope_figures, takeoff_figures
from experiments.harness.slopes import Slopes
from tests.experiments.curves import curve

CONVERGES, STALLS = [0.9, 0.4, 0.05], [0.9, 0.9, 0.9]


def lost(errors=(), arm="He"):
    return curve(errors, arm, status="diverged")


NAN = float("nan")


def axes_of(function, *args):
    """The axes of the figure that a function draws."""
    return function(*args, "caption").axes


def crosses(axes):
    """The crosses of diverged runs on the scales, and those outside of the frame."""
    drawn = [line for line in axes.lines if line.get_marker() == "x"]
    assert not any(line.get_clip_on() for line in drawn)
    outside = [line for line in drawn if line.get_transform() != axes.transData]
    on = [line.get_xydata()[0].tolist() for line in drawn if line not in outside]
    return on, [line.get_xydata()[0].tolist() for line in outside]


def labels_of(axes):
    return [text.get_text() for text in axes.figure.legends[0].get_texts()]


def heights(axes):
    """All values that are drawn on the scale."""
    return np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])


def test_the_figure_is_drawn_for_one_seed_and_for_one_that_diverged(tmp_path):
    he = [curve(CONVERGES, seed=s) for s in range(3)]
    xavier = [curve(STALLS[:2], "Xavier", status="diverged"), curve(STALLS, "Xavier", 1)]
    for name, curves in (("several", he + xavier), ("one", [he[0], xavier[1]])):
        figure = figures.error_curves(curves, "title", "caption")
        written = drawing.save(figure, tmp_path / name)
        assert [file.suffix for file in written] == [".png", ".pdf"]
        assert all(file.stat().st_size > 5000 for file in written)


@pytest.mark.parametrize(
    "drawn",
    [
        (figures.errors_by_test, {"A": {"10-view": [0.0, 0.0]}}),
        (figures.final_errors, {"A": [curve([0.0])] * 2}, "title"),
        (figures.method_errors, {"c": {"He": [curve([0.9, 0.0])] * 2}}),
    ],
)
def test_a_mark_at_no_error_is_whole_and_its_interval_ends_at_the_frame(drawn):
    axes = axes_of(*drawn)[0]
    marks = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    assert marks
    assert not any(mark.get_clip_on() for mark in marks)
    assert all(bar.get_clip_on() for bar in axes.collections)


NEVER = float("inf")
TAKEOFF = {
    "He": {14: [200.0, 300.0, 250.0], 30: [200.0, 300.0, 400.0]},
    "Xavier": {14: [500.0, NEVER, 700.0], 30: [NEVER, NEVER, 9000.0]},
}


def test_take_off_shows_every_seed_the_medians_and_who_did_not_train():
    predicted = {"theory": {14: 500.0, 30: 128_000.0}}
    figure = takeoff_figures.takeoff(TAKEOFF, predicted, "title", "caption", limit=10_000)
    (axes,) = figure.axes
    drawn = [(line.get_marker(), line.get_color(), line.get_ydata()) for line in axes.lines]

    def values(marker, colour):
        lines = [y for m, c, y in drawn if (m, c) == (marker, colour)]
        return np.concatenate(lines).tolist()

    assert sorted(values("o", "red")) == [200, 200, 250, 300, 300, 400]
    assert sorted(values("s", "blue")) == [500, 700, 9000]
    assert values("^", "blue") == [10_000] * 3
    assert values("_", "red") == [250, 300]
    np.testing.assert_array_equal(values("_", "blue"), [700, np.nan])  # two of three did not train
    assert values("None", "black") == [500, 128_000]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[1] < 20_000  # a prediction that no run can reach leaves the frame
    (limit,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert set(limit.get_ydata()) == {10_000}
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["He: 3 seeds, median", "Xavier: 3 seeds, median", *predicted, labels[-1]]
    assert labels[-1] == "not in 10,000 steps"
    places = [x for line in axes.lines if line.get_marker() in "os^" for x in line.get_xdata()]
    assert len(set(places)) == len(places)  # no seed hides another


def test_take_off_is_drawn_for_one_seed_one_depth_and_no_prediction(tmp_path):
    for name, points in (("one", {"He": {30: [200.0]}}), ("lost", {"LSUV": {30: [NEVER]}})):
        figure = takeoff_figures.takeoff(points, {}, "title", "caption", limit=1000)
        written = drawing.save(figure, tmp_path / name)
        assert [file.suffix for file in written] == [".png", ".pdf"]
        assert all(file.stat().st_size > 5000 for file in written)


def test_seeds_in_a_caption():
    assert intervals.seeds(range(3, 8)) == "seeds 3 to 7, n = 5"
    assert intervals.seeds([3]) == "seed 3, n = 1"


def test_the_median_ends_with_the_first_run_that_has_trained():
    runs = [curve([0.9, 0.1]), curve([0.9, 0.8, 0.2]), curve([0.9, 0.05])]
    assert drawing.median(runs).tolist() == [0.9, 0.1]


def test_runs_of_very_different_lengths_are_on_a_logarithmic_scale():
    he, stalled = curve([0.9, 0.4, 0.1]), [0.9] * 22
    for longer, scale in ((stalled, "symlog"), (stalled[:21], "linear")):
        figure = figures.error_curves([he, curve(longer, arm="Xavier")], "a title", "a caption")
        (axes,) = figure.axes
        assert axes.get_xscale() == scale
        assert len(axes.lines[1].get_xdata()) == len(he.errors)  # the median, bold


def test_he_and_xavier_have_the_papers_colours_and_no_other_arm_has():
    arms = ["Gaussian", "He", *"abcdefg", "Xavier"]
    colours = drawing.colours(arms)
    assert (colours["He"], colours["Xavier"]) == ("red", "blue")
    assert len(set(colours.values())) == len(arms)


def test_a_run_that_diverged_is_a_cross_and_not_in_the_median():
    he = [curve(CONVERGES), curve([0.9, 0.6, 0.15]), lost([0.8, 0.7])]
    (axes,) = axes_of(figures.error_curves, [*he, lost(arm="Xavier")], "title")
    # Without an evaluation, where the other curves begin.
    assert crosses(axes) == ([[0.5, 0.7], [0.0, 0.9]], [])
    assert 1.0 not in heights(axes)
    (bold,) = (line.get_ydata() for line in axes.lines if line.get_linewidth() == 2.5)
    np.testing.assert_allclose(bold, [0.9, 0.5, 0.1])
    assert labels_of(axes) == [
        "He, median of 2 seeds, 1 diverged",
        "Xavier, 1 seed, diverged",
        "diverged (last evaluation)",
    ]


def test_a_figure_without_a_diverged_run_speaks_of_none():
    (axes,) = axes_of(figures.error_curves, [curve(CONVERGES), curve(CONVERGES)], "title")
    assert labels_of(axes) == ["He, median of 2 seeds"]
    assert crosses(axes) == ([], [])


@pytest.mark.parametrize(
    ("arms", "colours", "dashes"),
    [
        (("He", "Xavier"), ["red", "blue"], ["-", "--"]),
        (("Xavier", "He"), ["blue", "red"], ["--", "-"]),
    ],
)
def test_he_is_red_and_xavier_blue(arms, colours, dashes):
    (axes,) = axes_of(figures.error_curves, [curve(CONVERGES, arm) for arm in arms], "title")
    bold = [line for line in axes.lines if line.get_linewidth() == 2.5]
    assert [line.get_color() for line in bold] == colours
    assert [line.get_linestyle() for line in bold] == dashes


def test_other_arms_have_neither_the_colours_of_he_and_xavier_nor_one_of_their_own_twice():
    arms = ("small_14_reduced", "model_a_reduced", "third")
    curves = [curve(CONVERGES, arm) for arm in arms for _ in range(2)]
    (axes,) = axes_of(figures.error_curves, curves, "title")
    bold = [line for line in axes.lines if line.get_linewidth() == 2.5]
    assert len({line.get_color() for line in bold}) == len(bold) == 3
    assert not {"red", "blue"} & {line.get_color() for line in bold}
    assert [line.get_color() for line in bold[:2]] == ["0.15", "tab:orange"]


def test_methods_that_diverged_are_crosses_and_the_title_has_their_number():
    by_method = {
        "He": [curve(CONVERGES), curve([0.9, 0.6, 0.15])],
        "within": [curve([0.9, 0.8, 0.7]), lost([0.95, 0.9]), lost()],
        "LSUV": [lost(), lost()],
    }
    one, other = axes_of(
        figures.method_errors, {"one": by_method, "other": {"He": by_method["He"]}}
    )
    assert crosses(one) == ([[10.0, 0.9], *3 * [[0.0, 0.9]]], [])
    assert 1.0 not in heights(one)
    title = "one\n× diverged: within 2 of 3, LSUV 2 of 2"
    assert (one.get_title(), other.get_title()) == (title, "other")
    medians = [line for line in one.lines if line.get_marker() in ("o", "s")]
    np.testing.assert_allclose([m.get_ydata() for m in medians], [[0.9, 0.5, 0.1], [0.9, 0.8, 0.7]])
    assert labels_of(one) == [*by_method, "diverged (last\nevaluation)"]
    assert labels_of(axes_of(figures.method_errors, {"c": {"He": by_method["He"]}})[0]) == ["He"]


def test_lines_that_lie_on_each_other_are_told_apart():
    flat = [0.9, *5 * [0.926]]
    by_method = {
        "He": [curve([0.9, 0.7, 0.5, 0.3, 0.1, 0.05])],
        "Xavier": [curve(flat)],
        "Gaussian 0.01": [curve([0.88, *flat[1:]])],
        "orthogonal": [curve([0.9, 0.92, 0.9, 0.925, 0.925, 0.928])],
    }
    (axes,) = axes_of(figures.method_errors, {"condition": by_method})
    he, *together = axes.lines
    assert (he.get_linestyle(), he.get_linewidth(), he.get_markevery()) == ("-", 2, (0, 1))
    widths = [line.get_linewidth() for line in together]
    assert widths == sorted(set(widths), reverse=True)  # the upper ones do not hide the lower
    assert [line.is_dashed() for line in together] == [False, True, True]
    assert [line.get_markevery() for line in together] == [(0, 3), (1, 3), (2, 3)]
    for line, (_, (one,)) in zip(axes.lines, by_method.items(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), one.errors)  # moved nowhere


def test_final_errors_of_runs_that_diverged_are_crosses():
    arms = {
        "trained: plain": [curve([0.9, 0.24]), curve([0.9, 0.26]), lost([0.9, 0.6])],
        "trained: both": [lost(), lost()],
        "scratch": [curve([0.9, 0.1])],
    }
    (axes,) = axes_of(figures.final_errors, arms, "title")
    on, outside = crosses(axes)
    assert on == [[0.6, 0.0]]
    assert {x for x, _ in outside} == {figures._OUTSIDE}
    np.testing.assert_allclose(sorted(y for _, y in outside), [0.85, 1.15])
    shown = np.concatenate([line.get_xdata() for line in axes.lines])
    assert 1.0 not in shown
    assert axes.get_xlim()[1] < 0.7
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(means, [0.25, 0.1])  # of the runs that came to their end
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["trained: plain\n1 of 3 diverged", "trained: both\n2 of 2 diverged", "scratch"]
    assert "×: diverged" in axes.figure.get_supxlabel().replace("\n", " ")


def test_errors_by_test_of_runs_that_diverged_are_crosses_above_the_frame():
    errors = {
        "A": {"5-view": [0.19, 0.21, NAN], "multi-scale": [0.29, 0.31, NAN]},
        "B": {"5-view": [NAN], "multi-scale": [NAN]},
        "C": {"5-view": [0.1], "multi-scale": [0.1]},
    }
    (axes,) = axes_of(figures.errors_by_test, errors)
    on, outside = crosses(axes)
    assert not on
    assert [y for _, y in outside] == 4 * [figures._OUTSIDE]
    assert axes.get_ylim()[1] < 0.6
    large = [line for line in axes.lines if line.get_markersize() == 8]
    means = [line.get_ydata()[0] for line in large if line.get_marker() in ("o", "s", "D")]
    assert np.isfinite(heights(axes)).all()
    np.testing.assert_allclose(sorted(set(means)), [0.1, 0.2, 0.3])
    assert labels_of(axes) == [
        "A, mean of 2 seeds, 1 diverged",
        "B, 1 seed, diverged",
        "C",
        "diverged (not tested)",
    ]


@pytest.mark.parametrize(
    ("n", "diverged", "shown"),
    [
        (5, 1, "median of 4 seeds, 1 diverged"),
        (5, 0, "median of 5 seeds"),
        (5, 4, "1 seed, 4 diverged"),
        (5, 5, "all 5 seeds diverged"),
        (1, 0, "1 seed"),
        (1, 1, "1 seed, diverged"),
    ],
)
def test_labels_count_seeds(n, diverged, shown):
    assert drawing.count("median", n, diverged) == shown


def slopes_of(layers, seed=0, status="done"):
    names = tuple(f"conv{i}" for i in range(layers))
    steps = np.array([9, 19, 29])
    values = 0.25 + 0.01 * (seed + 1) * np.outer([1, 2, 3], np.arange(layers))
    return Slopes(seed, status, names, steps, values)


@pytest.mark.parametrize("layers", [5, 13, 30])
@pytest.mark.parametrize("arms", [("shared",), ("shared", "channel-wise")])
def test_slopes_over_training_are_a_small_panel_for_each_layer(layers, arms):
    slopes = {arm: [slopes_of(layers, seed) for seed in range(2)] for arm in arms}
    slopes[arms[0]].append(slopes_of(layers, status="diverged"))
    panels = axes_of(slope_figures.over_training, slopes, 0.25)
    assert [axes.get_title() for axes in panels] == list(slopes[arms[0]][0].layers)
    ((_, top),) = {axes.get_ylim() for axes in panels}  # layers compare by eye
    largest = slopes[arms[0]][1].values.max()
    assert largest < top < 1.3 * largest  # though a band of two seeds is many times wider
    for i, axes in enumerate(panels):
        *means, dotted = axes.lines
        assert (dotted.get_linestyle(), set(dotted.get_ydata())) == (":", {0.25})
        assert len({(line.get_color(), line.get_linestyle()) for line in means}) == len(arms)
        assert len(axes.collections) == len(arms)  # a band each
        for line in means:
            np.testing.assert_allclose(line.get_ydata(), 0.25 + 0.015 * i * np.array([1, 2, 3]))
    expected = [f"{arm}, mean of 2 seeds" for arm in arms]
    assert labels_of(panels[0]) == [f"{expected[0]}, 1 diverged", *expected[1:]]


def test_captions_fit_the_width_of_their_figure():
    for width in (4, 8):
        figure, _ = drawing.subplots(1, 1, (width, 4))
        drawing.caption(figure, 40 * "many words ")
        lines = figure.get_supxlabel().split("\n")
        assert max(map(len, lines)) <= 12 * width
