import csv

import pytest

from experiments import learning
from experiments.harness import record
from experiments.harness.testing import TEN_VIEW
from experiments.learning import CENTRE
from tests.experiments.conftest import SHORT, run


@pytest.mark.slow
def test_from_a_flag_to_the_table(tmp_path):
    # The digits in the place of the photos.
    tiny = ["--config.dataset=digits", *(flag for flag in SHORT if "config.arch=" not in flag)]
    tiny += ["--config.archs='tiny',", "--config.learned=0.99,"]
    done = run("learning", "--scale=cifar10", f"--workdir={tmp_path}", *tiny)
    assert done.returncode == 0, done.stderr
    assert "| tiny | 1,102 | 8 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "figure.png").exists()
    middle, ten = csv.DictReader((tmp_path / "errors.csv").open())
    assert (middle["test"], ten["test"]) == ("crop in the middle", "10-view")
    cells = (f"{100 * float(row['top_1_error']):.1f}" for row in (middle, ten))
    assert f"| 8 | {' | '.join(cells)} |" in (tmp_path / "table.md").read_text()
    (claim,) = record.read(tmp_path).claims
    assert claim.statement == "tiny: 10-view error at most 99.0% in every seed"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "model_a"}, "config.arch is set for each run"),
        ({"learned": (0.1,)}, r"config.learned is \(0.1,\), expected one for each of"),
    ],
)
def test_bands_and_nets_have_to_match(fields, message, tmp_path):
    config = learning.EXPERIMENT.config("laptop", **fields)
    with pytest.raises(ValueError, match=message):
        learning.EXPERIMENT.run(config, tmp_path / "runs", 1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("flip", "label"), [(False, "5-view"), (True, "10-view")])
def test_the_views_are_named_by_their_number(flip, label):
    config = learning.EXPERIMENT.config("laptop", flip=flip)
    errors = {name: {CENTRE: [0.0], TEN_VIEW: [0.1]} for name in config.archs}
    assert all(f": {label} error at most" in c.statement for c in learning.judge(config, errors))
    table = learning.markdown(config, errors, dict.fromkeys(config.archs, 1))
    assert f"| crop in the middle | {label} |" in table
    assert ("no image is mirrored" in table) == (not flip)


def test_one_seed_above_the_band_fails_its_net_alone():
    config = learning.EXPERIMENT.config("laptop", learned=(0.1, 0.2))
    first, second = config.archs
    errors = {
        first: {CENTRE: [0.0, 0.0], TEN_VIEW: [0.1, 0.1]},
        second: {CENTRE: [0.0, 0.0], TEN_VIEW: [0.1, 0.21]},
    }
    assert [claim.passed for claim in learning.judge(config, errors)] == [True, False]
    table = learning.markdown(config, errors, {first: 1234, second: 5})
    assert f"| {first} | 1,234 | 1,000 | 0.0, 0.0 | 10.0, 10.0 |" in table
