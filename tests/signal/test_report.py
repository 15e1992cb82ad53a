import csv
import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from flax import linen as nn
from matplotlib import pyplot as plt
from rich.console import Console
from rich.text import Text

import prelu_jax as pj
from prelu_jax.signal import Coverage, Examples, NotMeasured, Report, verdict
from tests.markdown import read_markdown
from tests.signal.nets import drawn
from tests.signal.rows import NAMES, each, measurement, moments

UNSEEN = (NotMeasured("cell/kernel", 300, ("scan",)),)
FALL = [9.0, 1.0, 0.1, 1e-3, 1e-6]


def broken():
    changes = each("input_second_moment", FALL)
    for name, moment in zip(NAMES, [2, 0.2, 2e-3, 2e-6, 2e-8], strict=True):
        changes[name] |= {"second_moment": moment, "kernel_rms": 0.01, "cosine": None}
    predicted = {name: moments(2 * 0.1**i, 1e-3) for i, name in enumerate(NAMES)}
    return Report("Net", measurement(changes, unseen=UNSEEN, loss=2.3), predicted)


HEALTHY = Report("Net", measurement())


def test_the_table_is_as_it_is_written_down(check_golden):
    text = "\n".join(line.rstrip() for line in f"{broken()}\n{HEALTHY}".splitlines())
    check_golden("report.txt", f"{text}\n")


def test_the_markdown_is_as_it_is_written_down(check_golden):
    check_golden("diagnosis.md", f"{broken().to_markdown()}\n{HEALTHY.to_markdown()}")


def test_the_markdown_has_the_printed_rows_and_every_line_below_them():
    changed = each("input_second_moment", FALL) | {"a": {"path": "block|1/*conv*_<b>"}}
    found = measurement(changed, unseen=UNSEEN, loss=2.3)
    report = Report("Net", dataclasses.replace(found, examples=Examples(16, "as asked")))
    table, items = read_markdown(report.to_markdown())
    printed = report._table()
    assert [row[0] for row in table[1:]] == report._labels()
    assert table[0] == [str(column.header) for column in printed.columns]
    assert list(zip(*table[1:], strict=True)) == [
        tuple(map(str, column.cells)) for column in printed.columns
    ]
    assert items[0].startswith(report.verdict)
    shown = " ".join(str(report).split())
    assert all(" ".join(item.split()) in shown for item in items)
    assert [item for item in items if item.startswith("Advice: ")]
    assert items[-2:] == ["Examples: 16, as asked.", "Weights not seen, inside scan: cell/kernel"]


def test_a_console_and_a_notebook_show_the_same():
    report = broken()
    console = Console(width=125, file=io.StringIO(), record=True)
    console.print(report)
    assert console.export_text() == str(report)
    html = report._repr_html_()
    assert html.startswith("<pre")
    for text in ("E[Δy²]", "c ◀", "vanishing", "cell/kernel", "predicted"):
        assert text in html, text


def test_a_dict_has_everything():
    report = broken()
    found = report.to_dict()
    assert found["verdict"] == "vanishing"
    assert found["loss"] == 2.3
    assert found["unseen"] == ["cell/kernel"]
    (finding,) = found["findings"]
    assert (finding["layer"], finding["direction"]) == ("c", "forward")
    assert finding["factor"] == pytest.approx(0.01)
    assert [row["name"] for row in found["layers"]] == list(NAMES)
    assert found["layers"][1]["predicted_second_moment"] == pytest.approx(0.2)
    assert json.loads(json.dumps(found))["layers"][0]["shape"] == list(report.layers[0].shape)


def test_csv_is_read_back(tmp_path):
    report = broken()
    text = report.to_csv(tmp_path / "report.csv")
    assert (tmp_path / "report.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    for row, original in zip(rows, report.rows(), strict=True):
        assert list(row) == list(original)
        for field, value in original.items():
            assert row[field] == ("" if value is None else str(value))


def test_nothing_unseen_is_called_healthy():
    assert HEALTHY.summary.startswith("healthy: nothing")
    partly = Report("Net", measurement(unseen=UNSEEN))
    assert partly.verdict == "not judged"
    assert partly.summary == "not judged: 25 % of the weights are inside scan: cell/kernel"
    with pytest.raises(AssertionError, match="not judged: 25 % .* cell/kernel"):
        partly.assert_healthy()
    partly.assert_healthy(allow_unseen=True)
    with pytest.raises(AssertionError, match="vanishing"):
        broken().assert_healthy(allow_unseen=True)


@pytest.mark.parametrize(
    ("size", "inside", "expected"),
    [
        (47, (), "healthy"),  # of 947
        (48, (), "not judged"),
        (1, ("remat",), "not judged"),  # whatever its size
    ],
)
def test_a_twentieth_of_the_weights_may_be_multiplied_by_hand(size, inside, expected):
    report = Report("Net", measurement(unseen=(NotMeasured("w", size, inside),)))
    assert report.verdict == expected
    assert "Weights not seen" in str(report)


def test_a_report_names_the_share_and_the_examples():
    found = HEALTHY.measurement
    coverage = dataclasses.replace(found.coverage, elementwise=("norm/scale",), unused=("idle",))
    found = dataclasses.replace(found, coverage=coverage, examples=Examples(16, "as asked"))
    report = Report("Net", found)
    for text in (
        "Weights seen: 100 %",
        "Parameters that the model does not use: idle",
        "elementwise or of one axis: norm/scale",
        "Examples: 16, as asked.",
    ):
        assert text in str(report), text
    told = report.to_dict()
    assert told["coverage"]["share"] == 1.0
    assert told["examples"] == {"number": 16, "chosen": "as asked"}
    assert json.loads(json.dumps(told)) is not None


def styles(report):
    """Return the style of each line of a report's text, by line."""
    parts = report.__rich_console__(Console(), Console().options)
    texts = [part for part in parts if isinstance(part, Text)]
    return {text.plain: text.style for text in texts}


def test_only_what_is_unseen_is_a_note_whatever_a_parameter_is_called():
    coverage = Coverage(NAMES, (180,) * len(NAMES), UNSEEN, elementwise=("not seen/scale",))
    found = styles(Report("Net", dataclasses.replace(measurement(), coverage=coverage)))
    assert found["Weights not seen, inside scan: cell/kernel"] == "yellow"
    assert found["Not counted, elementwise or of one axis: not seen/scale"] == "dim"


NOT_ALONG = "no layer's output has the examples along its first axis"


@pytest.mark.parametrize(("examples", "reason"), [(16, NOT_ALONG), (1, "the batch is one example")])
def test_a_report_states_where_a_collapse_is_not_judged(examples, reason):
    found = measurement(each("cosine", [None] * 5))
    report = Report("Net", dataclasses.replace(found, examples=Examples(examples, "as asked")))
    assert styles(report)[f"Collapse is not judged: {reason}."] == "yellow"
    assert report.to_dict()["collapse_not_judged"] == reason
    assert "Collapse is not judged" not in str(HEALTHY)
    assert HEALTHY.to_dict()["collapse_not_judged"] is None


class Flattened(nn.Module):
    """A model whose layers read examples and positions along one axis."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(4)(nn.Dense(4)(x.reshape(-1, x.shape[-1])))
        return y.reshape(*x.shape[:-1], 4)


def test_a_model_that_joins_examples_and_positions_is_not_judged_for_collapse():
    x = np.ones((8, 3, 4), np.float32)
    report = pj.diagnose(Flattened(), drawn(Flattened(), x), x)
    assert report.measurement.collapse_not_judged == NOT_ALONG


def test_a_dict_has_the_findings_in_the_order_of_the_findings(monkeypatch):
    kinds = ("vanishing", "collapsing", "dead units")  # the first and the last have one remedy
    findings = tuple(verdict.Finding(kind, "forward", "b", 0.1, "") for kind in kinds)
    monkeypatch.setattr(verdict, "judge", lambda *_: findings)
    report = Report("Net", measurement({"b": {"kernel_rms": 0.0}}))
    assert report.summary.count("Advice: ") == 2
    told = report.to_dict()["findings"]
    assert [finding["verdict"] for finding in told] == list(kinds)
    assert told[0]["advice"] == told[2]["advice"] != told[1]["advice"]


def test_only_a_healthy_report_passes_the_assertion():
    HEALTHY.assert_healthy()
    with pytest.raises(AssertionError) as raised:
        broken().assert_healthy()
    message = str(raised.value)
    assert message.startswith("the signal of Net is not healthy.\nvanishing (forward) from c on")
    assert "Advice: " in message


def test_the_figure_shows_what_was_measured_and_predicted():
    before = plt.get_fignums()
    figure = broken().plot()
    assert plt.get_fignums() == before  # nothing of pyplot's state is touched
    above, below = figure.axes
    assert above.get_yscale() == below.get_yscale() == "log"
    measured, predicted, fault = above.lines
    np.testing.assert_allclose(measured.get_ydata(), [2, 0.2, 2e-3, 2e-6, 2e-8])
    np.testing.assert_allclose(predicted.get_ydata(), [2 * 0.1**i for i in range(5)])
    assert list(fault.get_xdata()) == [2, 2]
    assert len(below.lines) == 2
    assert [label.get_text() for label in below.get_xticklabels()] == list(NAMES)
    assert len(HEALTHY.plot().axes[0].lines) == 1


COSINES = [0.2, 0.5, 0.8, 0.9, 0.99]


def test_predicted_cosines_stand_beside_the_measured_ones():
    known = {name: moments(2.0, 1e-3, cosine) for name, cosine in zip(NAMES, COSINES, strict=True)}
    for predicted, expected in (({}, [0.4] * 5), (known, COSINES)):
        report = Report("Net", measurement(), predicted)
        assert [row["predicted_cosine"] for row in report.rows()] == expected
        lines = str(report).splitlines()
        assert "cosine  predicted  change rate" in lines[2]
        assert f"0.5000     {expected[1]:.4f}" in lines[5]
        assert ("predicted cosine: that of the layer's input" in str(report)) == (not predicted)
        (*_, last) = report.plot().axes
        assert last.get_ylabel() == "1 − cosine"
        measured, line = (drawn.get_ydata() for drawn in last.lines)
        np.testing.assert_allclose(measured, 0.5)
        np.testing.assert_allclose(line, 1 - np.array(expected))
    unknown = Report("Net", measurement(each("input_cosine", [None] * 5)))
    assert "cosine  change rate" in str(unknown)
    assert len(unknown.plot().axes[-1].lines) == 1


def test_a_collapse_is_marked_in_the_panel_of_the_cosines():
    report = Report("Net", measurement(each("cosine", [0.5, 0.9, 1.0, 1.0, 1.0])))
    assert report.verdict == "collapsing"
    *others, last = report.plot().axes
    assert [len(axes.lines) for axes in others] == [1, 1]
    assert list(last.lines[-1].get_xdata()) == [2, 2]


def moved(rng, predicts):
    """Return a net whose moments wander, with the spreads of narrow or of wide layers."""
    spread = rng.choice([0.5, 30.0, 200.0])
    walks = np.exp(rng.normal(0, rng.choice([1.0, 3.0]), (3, 5)).cumsum(axis=1))
    changes = {
        name: {
            "input_second_moment": walks[0, i],
            "second_moment": walks[1, i],
            "gradient_second_moment": walks[2, i],
            "channel_spread": spread,
            "input_channel_spread": spread,
            "gradient_channel_spread": spread,
            "shape": (16, 2 ** int(rng.integers(4)), 8, 100),
        }
        for i, name in enumerate(NAMES)
    }
    base = rng.choice([0.01, 100.0])
    predicted = {name: moments(base**i, base ** (4 - i)) for i, name in enumerate(NAMES)}
    kinds = ("Conv", "BatchNorm") if rng.random() < 0.5 else ("Conv",)
    return Report("Net", measurement(changes, kinds=kinds), predicted if predicts else {})


@pytest.mark.parametrize("predicts", [False, True])
def test_a_signal_ends_outside_of_its_range_where_and_only_where_there_is_a_finding(predicts):
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        report = moved(rng, predicts)
        drifts = {f.direction: f.verdict for f in report.findings}
        rows = list(report.rows())
        assert rows[-1]["accepted_least"] is rows[-1]["gradient_accepted_least"] is None
        for direction, row, prefix in (
            ("forward", rows[-2], ""),
            ("backward", rows[0], "gradient_"),
        ):
            moment = row[f"{prefix}second_moment"]
            least, greatest = row[f"{prefix}accepted_least"], row[f"{prefix}accepted_greatest"]
            assert least < row[f"{prefix}accepted_centre"] < greatest
            side = "vanishing" if moment < least else "exploding" if moment > greatest else None
            assert side == drifts.get(direction)
            outcomes.add((direction, side))
    assert len(outcomes) == 6


@pytest.mark.parametrize("two_rows", [False, True])
@pytest.mark.parametrize(
    ("read", "expected"), [(1e-8, "vanishing"), (1.0, None), (0.5, None), (1e8, "exploding")]
)
def test_the_range_is_that_of_the_first_layers_output_where_it_gives_the_finding(
    read, expected, two_rows
):
    found = measurement(each("input_second_moment", [1] + [read] * 4), unseen=UNSEEN)
    if two_rows:
        found = dataclasses.replace(found, layers=found.layers[:2])
    report = Report("Net", found)
    assert [f.verdict for f in report.findings] == ([expected] if expected else [])
    row = list(report.rows())[-2]
    moment, least, greatest = row["second_moment"], row["accepted_least"], row["accepted_greatest"]
    side = "vanishing" if moment < least else "exploding" if moment > greatest else None
    assert side == expected


def test_the_bands_of_the_figure_are_the_criterion_and_the_noise_and_are_named():
    figure = HEALTHY.plot()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "measured",
        "accepted by the verdict: 4.5 σ, or a factor of 100",
        "random weights alone: 2 σ",
        "predicted",
    ]
    rows = list(HEALTHY.rows())[:-1]
    for axes, prefix in zip(figure.axes, ("", "gradient_"), strict=False):
        accepted, noise = (band.get_paths()[0].vertices[:, 1] for band in axes.collections)
        assert accepted.min() == pytest.approx(min(r[f"{prefix}accepted_least"] for r in rows))
        assert accepted.max() == pytest.approx(max(r[f"{prefix}accepted_greatest"] for r in rows))
        sigma = max(row[f"{prefix}log_noise"] for row in rows)
        assert noise.max() == pytest.approx(
            rows[0][f"{prefix}accepted_centre"] * math.exp(2 * sigma)
        )


def test_every_column_of_the_table_is_explained_below_it():
    header, start, explained = str(broken()).partition("E[y²]: ")
    for name in ("E[Δy²]", "predicted", "accepted", "always 0", "cosine", "change rate"):
        assert name in header
        assert f"{name}: " in start + explained


def test_a_signal_of_zero_or_nan_is_shown_as_a_gap():
    values = [1.0, 0.0, math.nan, math.inf, 1.0]
    report = Report("Net", measurement(each("second_moment", values)))
    assert "nan" in str(report)
    data = report.plot().axes[0].lines[0].get_ydata()
    assert np.isnan(data).tolist() == [False, True, True, True, False]


def test_a_long_net_names_some_of_its_layers():
    layers = itertools.chain.from_iterable([measurement().layers] * 20)
    net = Report("Net", dataclasses.replace(measurement(), layers=tuple(layers)))
    assert len(net.plot().axes[-1].get_xticklabels()) == 25
