"""`--part`: an experiment's runs by several commands in one folder."""

import json

import pytest

from tests.experiments.conftest import SHORT, run


@pytest.mark.slow
def test_parts_and_the_whole_command_after_them(tmp_path):
    command = ("convergence_22", "--scale=laptop", *SHORT, f"--workdir={tmp_path}")
    for part, trained in (("0/3", "he"), ("1/3", "xavier"), ("2/3", None)):
        before = sorted(file.parent.parent.name for file in tmp_path.rglob("status.json"))
        done = run(*command, f"--part={part}")
        assert done.returncode == 0, done.stderr
        assert "The same command without --part ends the experiment." in done.stdout
        assert "Claims:" not in done.stdout
        after = sorted(file.parent.parent.name for file in tmp_path.rglob("status.json"))
        assert after == sorted([*before, *([trained] if trained else [])])
    assert not (tmp_path / "experiment.json").exists()
    metrics = (tmp_path / "he/seed_0/metrics.jsonl").read_bytes()
    whole = run(*command)
    assert "Claims:" in whole.stdout
    assert (tmp_path / "he/seed_0/metrics.jsonl").read_bytes() == metrics
    record = json.loads((tmp_path / "experiment.json").read_text())
    assert record["resumed"]  # the time of the parts is in no record
    assert not (tmp_path / "experiment.begun").exists()

    # A later part is noted beside the record, until a whole command has ended.
    assert run(*command, "--part=0/2").returncode == 0
    assert (tmp_path / "experiment.begun").exists()
    assert json.loads((tmp_path / "experiment.json").read_text()) == record


@pytest.mark.parametrize("part", ["2/2", "1", "-1/2", "0/0", "a/b", "1/2/3"])
def test_there_is_no_such_part(part, tmp_path):
    done = run("convergence_22", "--scale=laptop", f"--workdir={tmp_path / 'w'}", f"--part={part}")
    assert done.returncode == 78
    assert f"--part is {part!r}, expected I/N" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("signal_profile", "--part=0/2"),
        ("ensemble", "--seeds=1", "--config.members=a,b", "--part=0/2"),
    ],
)
def test_an_experiment_in_one_piece_has_no_parts(command, tmp_path):
    done = run(*command, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 78
    assert "give no --part" in done.stderr
