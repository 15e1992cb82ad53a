import csv
import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from matplotlib import pyplot as plt
from rich.console import Console

from prelu_jax.signal import Report
from tests.signal.rows import NAMES, each, measurement, moments

FALL = [9.0, 1.0, 0.1, 1e-3, 1e-6]


def broken():
    changes = each("input_second_moment", FALL)
    for name, moment in zip(NAMES, [2, 0.2, 2e-3, 2e-6, 2e-8], strict=True):
        changes[name] |= {"second_moment": moment, "kernel_rms": 0.01, "cosine": None}
    predicted = {name: moments(2 * 0.1**i, 1e-3) for i, name in enumerate(NAMES)}
    return Report("Net", measurement(changes, unseen=("cell/kernel",), loss=2.3), predicted)


HEALTHY = Report("Net", measurement())


def test_the_table_is_as_it_is_written_down(check_golden):
    text = "\n".join(line.rstrip() for line in f"{broken()}\n{HEALTHY}".splitlines())
    check_golden("report.txt", f"{text}\n")


def test_a_console_and_a_notebook_show_the_same():
    report = broken()
    console = Console(width=105, file=io.StringIO(), record=True)
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


def test_healthy_is_said_of_what_is_seen():
    assert HEALTHY.summary.startswith("healthy: nothing")
    partly = Report("Net", measurement(unseen=("cell/kernel",)))
    assert partly.summary.startswith("healthy, in what is seen: nothing")


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


def test_a_signal_of_zero_or_nan_is_shown_as_a_gap():
    values = [1.0, 0.0, math.nan, math.inf, 1.0]
    report = Report("Net", measurement(each("second_moment", values)))
    assert "nan" in str(report)
    data = report.plot().axes[0].lines[0].get_ydata()
    assert np.isnan(data).tolist() == [False, True, True, True, False]


def test_a_long_net_names_some_of_its_layers():
    layers = itertools.chain.from_iterable([measurement().layers] * 20)
    net = Report("Net", dataclasses.replace(measurement(), layers=tuple(layers)))
    assert len(net.plot().axes[1].get_xticklabels()) == 25
