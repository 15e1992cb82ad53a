"""Tests of the campaign in a short form; `make faults` runs the long one."""

import numpy as np
import pytest

from benchmarks import summary
from tests.faults import campaign, command, faults

SHORT = {
    "SIGKILL",
    "SIGKILL inside a save",
    "SIGTERM",
    "newest checkpoint cut short",
    "newest checkpoint deleted",
    "config.json damaged",
    "metrics.jsonl damaged",
    "corrupt record",
    "stalled reader",
}
_FROM_THE_ONE_BEFORE = ("newest checkpoint deleted", "corrupt record", "metrics.jsonl damaged")


@pytest.mark.slow
def test_a_run_that_is_disturbed_again_and_again_ends_as_if_nothing_had_been(tmp_path):
    whole = tmp_path / "whole/run"
    assert campaign.undisturbed(whole) == [0]
    chosen = [fault for fault in faults.FAULTS if fault.name in SHORT]
    assert len(chosen) == len(SHORT)
    outcomes = campaign.disturb(chosen, tmp_path / "one/run", whole, np.random.default_rng(1))
    assert len(outcomes) == len(SHORT)
    for outcome in outcomes:
        assert outcome.same, outcome
        # A save may be in progress, and the newest complete checkpoint may have been deleted. A
        # start that a corrupt record ends before its first step has repeated no steps.
        saves = 3 if outcome.fault.name in _FROM_THE_ONE_BEFORE else 2
        assert outcome.lost < saves * command.EVERY + command.LOG_EVERY, outcome
    stopped = next(o for o in outcomes if o.fault.name == "SIGTERM")
    assert stopped.lost == 0
    text = campaign.table(outcomes, 1)
    assert text.count("1 of 1") == len(SHORT)


def test_another_end_is_seen(tmp_path):
    for name, loss in (("whole", 1.0), ("other", 1.1)):
        for run in command.RUNS:
            folder = tmp_path / name / run
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text(f'{{"step": 2, "train_loss": {loss}}}\n')
            (folder / "status.json").write_text("{}")
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert command.differences(whole, whole, exact=True) == []
    assert len(command.differences(other, whole, exact=True)) == 2
    assert command.differences(other, whole, exact=False) == [
        f"{run}: another curve" for run in command.RUNS
    ]


def test_the_table_goes_between_the_markers_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{campaign.BEGIN}\nold\n{campaign.END}\nafter\n")
    summary.replace_between(campaign.BEGIN, campaign.END, "new", page)
    assert page.read_text() == f"before\n{campaign.BEGIN}\n\nnew\n\n{campaign.END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="once each"):
        summary.replace_between(campaign.BEGIN, campaign.END, "new", page)


def test_files_that_are_being_written_are_read_as_far_as_they_are_whole(tmp_path):
    """States that a slow machine may show: only a folder, an empty file, a part of a line."""
    assert command.logged(tmp_path) == 0
    he, xavier = (tmp_path / run / "metrics.jsonl" for run in command.RUNS)
    he.parent.mkdir(parents=True)
    xavier.parent.mkdir(parents=True)
    for text, step in (
        (b"", 0),
        (b'{"step": 2', 0),
        (b'{"step": 2, "name": "\xe2\x80', 0),  # ends inside a character
        (b'{"step": 2}\n', 2),
        (b'{"step": 2}\n{"step": 40', 2),
        (b'{"step": 2}\n\0\0\n{"step": 4}\n', 4),  # a fault has damaged a line
    ):
        he.write_bytes(text)
        assert command.logged(tmp_path) == step
    xavier.write_text('{"step": 6}\n')
    assert command.logged(tmp_path) == 10
    assert command.checkpoints(tmp_path) == []


def test_a_file_that_becomes_shorter_between_two_looks_is_read(tmp_path, monkeypatch):
    """A run that resumes may cut its metrics between two reads."""
    contents = iter([([{"step": 2}], []), ([], []), ([], []), ([], [])])
    monkeypatch.setattr(command.files, "read_records", lambda file: next(contents))
    assert command.logged(tmp_path) == 2


def test_a_folder_of_checkpoints_that_goes_while_it_is_read_holds_none(tmp_path, monkeypatch):
    (tmp_path / command.RUNS[0] / "checkpoints").mkdir(parents=True)

    def gone(folder):
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr(type(tmp_path), "iterdir", gone)
    assert command.checkpoints(tmp_path) == []
    assert command.saved(tmp_path) == 0
