import logging
import shutil

import numpy as np
import pytest

from prelu_jax.runs.checkpoint import Checkpoints
from tests.training.conftest import assert_trees_equal, make_state


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1, 2 and 3, of which the newest two are kept."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = make_state()
    for step in (1, 2, 3):
        state = state.replace(step=state.step + 1, params=make_state(seed=step).params)
        checkpoints.save(state)
    assert checkpoints.wait() is None
    return checkpoints, tmp_path / "checkpoints", state


def test_a_state_comes_back_bit_for_bit(saved):
    checkpoints, folder, state = saved
    assert checkpoints.steps() == [2, 3]
    restored = Checkpoints(folder).restore(make_state())
    assert_trees_equal(restored, state)


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1)
    state, errors = make_state(), (0.9, 0.3, None, 0.5, 0.4, None)
    for error in errors[:4]:
        state = state.replace(step=state.step + 1)
        checkpoints.save(state, error)
    assert checkpoints.wait() is None
    checkpoints.close()
    again = Checkpoints(tmp_path, keep_last=2, keep_best=1)  # as in a run that continues
    assert again.steps() == [2, 3, 4]
    for error in errors[4:]:
        state = state.replace(step=state.step + 1)
        again.save(state, error)
    assert again.wait() is None
    assert sorted(int(folder.name) for folder in tmp_path.iterdir()) == [2, 5, 6]
    assert int(again.restore(make_state()).step) == 6


def test_a_folder_that_cannot_be_written_is_said_and_the_next_save_does_better(saved, caplog):
    checkpoints, folder, state = saved
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("no folder")
    with caplog.at_level(logging.WARNING):
        checkpoints.save(state.replace(step=state.step + 1))
        assert checkpoints.wait()
    assert "checkpoint of step 4 cannot be written" in caplog.text
    folder.unlink()  # and nothing is there: as if somebody had removed it
    checkpoints.save(state.replace(step=state.step + 2))
    assert checkpoints.wait() is None
    assert checkpoints.steps() == [5]
    assert int(Checkpoints(folder).restore(make_state()).step) == 5


def test_what_a_killed_process_was_writing_is_no_checkpoint_and_is_removed(saved):
    _, folder, state = saved
    shutil.copytree(folder / "3", folder / "9.orbax-checkpoint-tmp")
    again = Checkpoints(folder)
    assert again.steps() == [2, 3]
    again.save(state.replace(step=state.step + 1))
    assert again.wait() is None
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4"]


def test_a_checkpoint_of_a_newer_version_is_named_and_left_where_it_is(saved, monkeypatch):
    _, folder, _ = saved
    monkeypatch.setattr("prelu_jax.runs.checkpoint.FORMAT", 0)
    for read in (lambda: Checkpoints(folder).restore(make_state()), Checkpoints(folder).arrays):
        with pytest.raises(ValueError, match=r"step 3 .* written by prelu_jax .* in format 1"):
            read()
    assert Checkpoints(folder).steps() == [2, 3]


def test_saving_a_step_twice_is_harmless(saved):
    checkpoints, _, state = saved
    checkpoints.save(state)
    assert checkpoints.steps() == [2, 3]


def cut_short(folder, step):
    files = [p for p in (folder / str(step)).rglob("*") if p.is_file() and p.stat().st_size > 1000]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_checkpoint_cut_short_is_passed_over_for_the_one_before(saved, caplog):
    _, folder, _ = saved
    cut_short(folder, 3)
    with caplog.at_level(logging.WARNING):
        restored = Checkpoints(folder).restore(make_state())
    assert int(restored.step) == 2
    assert_trees_equal(restored.params, make_state(seed=2).params)
    assert "checkpoint of step 3" in caplog.text
    assert Checkpoints(folder).steps() == [2]
    assert [p.name for p in folder.with_name("unreadable_checkpoints").iterdir()] == ["3_0"]


def test_whichever_file_is_cut_short_the_state_is_right_or_the_one_before(saved):
    _, folder, state = saved
    checkpoints = Checkpoints(folder)  # one with a test error, too
    checkpoints.save(state.replace(step=state.step + 1), 0.5)
    assert checkpoints.wait() is None
    checkpoints.close()
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    seen = []
    for file in sorted(p.relative_to(whole) for p in (whole / "4").rglob("*") if p.is_file()):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])
        restored = Checkpoints(folder).restore(make_state())
        seen.append(int(restored.step))
        assert_trees_equal(restored.params, state.params)
    assert set(seen) == {3, 4}
    assert seen.count(3) >= 2


def test_whichever_bit_flips_the_state_is_right_or_the_one_before(saved):
    _, folder, state = saved
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    files = sorted(p.relative_to(whole) for p in (whole / "3").rglob("*/d/*"))
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(40):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        file = folder / files[rng.integers(len(files))]
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        restored = Checkpoints(folder).restore(make_state())
        seen.append(int(restored.step))
        expected = state.params if seen[-1] == 3 else make_state(seed=2).params
        assert_trees_equal(restored.params, expected)
    assert set(seen) == {2, 3}


def test_an_empty_checkpoint_folder_is_passed_over_too(saved, caplog):
    _, folder, _ = saved
    shutil.rmtree(folder / "3")
    (folder / "3").mkdir()
    restored = Checkpoints(folder).restore(make_state())
    assert int(restored.step) == 2


def test_when_none_can_be_read_the_error_says_so(saved):
    _, folder, _ = saved
    cut_short(folder, 2)
    cut_short(folder, 3)
    for _ in range(2):  # a second call raises the same error
        with pytest.raises(OSError, match="None of the checkpoints in .* can be read"):
            Checkpoints(folder).restore(make_state())
    assert Checkpoints(folder).steps() == [2, 3]


def test_sound_checkpoints_of_another_network_are_left_where_they_are(saved):
    _, folder, _ = saved
    with pytest.raises(OSError, match="None of the checkpoints"):
        Checkpoints(folder).restore(make_state("relu"))
    assert Checkpoints(folder).steps() == [2, 3]
    assert int(Checkpoints(folder).restore(make_state()).step) == 3


def test_a_new_folder_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(make_state()) is None
