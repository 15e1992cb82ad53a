"""Tests of the campaign in a short form; `make faults` runs the long one."""

import numpy as np
import pytest

from tests.faults import campaign, command, faults

SHORT = {
    "SIGKILL inside a save",
    "SIGTERM",
    "newest checkpoint deleted",
    "corrupt record",
    "stalled reader",
}
_FROM_THE_ONE_BEFORE = ("newest checkpoint deleted", "corrupt record")


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
