import json

import pytest

from experiments.harness import record
from experiments.harness.claims import Claim

CLAIMS = [
    Claim("He converges", True, "3 %"),
    Claim("Xavier stays at chance", False, "2 of 3"),
    Claim("He is better", None, "± 3 %"),
]


def write(folder, resumed):
    record.write(folder, "convergence_30", "laptop", 3, 10.0, resumed, CLAIMS)


def test_a_record_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "--scale=laptop", "--config.arch=a b"])
    write(tmp_path, False)
    found = record.read(tmp_path)
    assert found.claims == tuple(CLAIMS)
    assert found.command == (
        "python -m experiments.convergence_30 --scale=laptop '--config.arch=a b'"
    )
    assert (found.seeds, found.resumed) == (3, False)
    assert found.hardware
    assert "jax" in found.versions


@pytest.mark.parametrize("interrupted", [False, True])
def test_commands_that_finish_in_a_folder_add_up(tmp_path, interrupted):
    write(tmp_path, resumed=interrupted)
    write(tmp_path, resumed=False)
    found = record.read(tmp_path)
    assert found.seconds == 20.0
    assert found.resumed == interrupted


def test_a_longer_command_that_was_stopped_after_a_finished_one_is_told(tmp_path):
    folder = tmp_path / "runs"
    assert not record.mark_started(folder)
    assert not folder.exists()  # the command may be refused
    folder.mkdir()
    write(folder, resumed=False)
    assert not record.mark_started(folder)
    record.clear_mark(folder, False)  # as if it had not been given
    assert not record.mark_started(folder)  # and is killed
    stopped = record.mark_started(folder)
    record.clear_mark(folder, stopped)
    write(folder, resumed=record.mark_started(folder))
    found = record.read(folder)
    assert (found.resumed, found.commands, found.seconds) == (True, 2, 20.0)
    assert not record.mark_started(folder)


def test_a_folder_without_a_record_is_that_of_a_stopped_command(tmp_path):
    assert not record.mark_started(tmp_path)  # made by hand
    (tmp_path / "he").mkdir()
    assert record.mark_started(tmp_path)


def test_a_damaged_record_does_not_lose_what_was_computed(tmp_path):
    (tmp_path / "experiment.json").write_text("{")
    write(tmp_path, resumed=False)
    found = record.read(tmp_path)
    assert (found.claims, found.seconds, found.resumed) == (tuple(CLAIMS), 10.0, True)
    assert [file.name for file in tmp_path.iterdir()] == ["experiment.json"]


def test_a_record_older_than_the_count_of_commands_is_read(tmp_path):
    write(tmp_path, resumed=False)
    file = tmp_path / "experiment.json"
    file.write_text(file.read_text().replace(',\n  "commands": 1', ""))
    assert "commands" not in file.read_text()
    assert record.read(tmp_path).commands == 1


def test_a_claim_that_is_undecided_is_null_and_none_is_a_verdict_of_another_type(tmp_path):
    write(tmp_path, resumed=False)
    file = tmp_path / "experiment.json"
    fields = json.loads(file.read_text())
    assert [claim["passed"] for claim in fields["claims"]] == [True, False, None]
    for verdict in (0, 1, "UNDECIDED", [], 0.5):
        fields["claims"][2]["passed"] = verdict
        file.write_text(json.dumps(fields))
        with pytest.raises(ValueError, match="experiment.json is no record .*passed is"):
            record.read(tmp_path)


def test_records_are_found_at_any_depth(tmp_path):
    for name in ("b", "a/deeper"):
        (tmp_path / name).mkdir(parents=True)
        write(tmp_path / name, False)
    assert record.find(tmp_path) == [tmp_path / "a/deeper", tmp_path / "b"]


@pytest.mark.parametrize(
    "text",
    ["", "\0", "null", "{", "[]", "{}", '{"claims": 3}', '{"claims": [{"statement": "x"}]}'],
)
def test_what_is_no_record_is_named_with_what_to_do(tmp_path, text):
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(ValueError, match="experiment.json is no record.*command again"):
        record.read(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [{"seeds": "3"}, {"seconds": True}, {"name": 3}, {"seeds": 0}, {"seconds": float("nan")}],
)
def test_a_field_of_another_type_is_no_record(tmp_path, fields):
    write(tmp_path, False)
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(ValueError, match="experiment.json is no record"):
        record.read(tmp_path)


@pytest.mark.parametrize("name", ["experiment.json", "experiment.begun"])
def test_a_directory_in_the_place_of_a_record_is_refused_before_anything_runs(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name} is a directory"):
        record.mark_started(tmp_path)
