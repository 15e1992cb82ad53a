import os

import pytest

from prelu_jax import files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b'{"a"', "not JSON"),
        (b"{}{}", "not JSON"),
        (bytes(8), "NUL bytes"),
        (b"[]", "it holds a list, expected an object"),
        (b"3", "it holds 3, expected an object"),
        (b"null", "it holds None"),
        (b'"\xff"', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5000, "not JSON"),
    ],
)
def test_the_error_about_a_damaged_file_names_it_with_advice(content, reason, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(files.DamagedFileError, match=rf"x.json is damaged.*{reason}.*Do this\.$"):
        files.read_json(tmp_path / "x.json", dict, "Do this.")


def test_a_path_that_is_not_a_file_is_an_error_without_waiting(tmp_path):
    (tmp_path / "x").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, kind in (("x", "a directory"), ("fifo", "not a regular file")):
        with pytest.raises(ValueError, match=f"{name} is {kind}, expected a file"):
            files.read_json(tmp_path / name, dict, "")
    with pytest.raises(FileNotFoundError, match="none"):
        files.read_json(tmp_path / "none", dict, "")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x.json"
    files.write_json(file, {"a": "ü"})
    assert files.read_json(file, dict, "") == {"a": "ü"}
    with pytest.raises(TypeError), files.replacing(file) as stream:
        stream.write("half")
    assert files.read_json(file, dict, "") == {"a": "ü"}


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (order.append(n), r(*a))[1])
    files.write_text(tmp_path / "x", "text")
    assert order == ["fsync", "replace", "fsync"]  # the file, then the directory


@pytest.mark.parametrize(
    "line",
    [
        *(b"[]", b"null", b"{", b"\xff", b"{}", b'{"step": true}', b'{"step": -1}'),
        *(b'{"step": 1.0}', b'{"step": 9, "test_error": "x"}', b'{"step": 9, "a": {"b": null}}'),
        *(b'{"step": 9, "a": NaN}', b'{"step": 9, "a": 1e999}', b'{"step": 0}', bytes(5)),
    ],
)
def test_a_line_that_is_no_record_is_numbered(line, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 2, "a": 1}\n' + line + b'\n{"step": 4, "b": {"c": 1}}\n{"step": 6')
    records, damaged = files.read_records(file)
    assert [record["step"] for record in records] == [2, 4]
    assert damaged == [2]


def test_paths_are_expanded_and_buckets_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(files.local_path("~/x", "--workdir")) == "/home/me/x"
    assert str(files.local_path("a:b/c", "--workdir")) == "a:b/c"
    for address in ("gs://b/x", "s3://b", "gs:/b", "file:///x", "hdfs+x://y"):
        with pytest.raises(ValueError, match=r"--workdir is .*clusters.md"):
            files.local_path(address, "--workdir")
    with pytest.raises(ValueError, match="no home directory ~nobody_here"):
        files.local_path("~nobody_here/x", "--workdir")
    with pytest.raises(ValueError, match="NUL"):
        files.local_path("a\0b", "--workdir")
