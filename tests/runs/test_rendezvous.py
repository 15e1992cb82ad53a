"""Meeting of processes, and the errors of those that cannot meet."""

import socket
import subprocess
import sys
import threading
import time

import pytest

from prelu_jax.runs import rendezvous
from tests.experiments.conftest import ROOT, environment
from tests.waiting import PATIENCE, free_address, wait_until


def meet(address, *processes):
    """Return how each (count, index) ends: None, or its error."""
    ends = ["has not ended"] * len(processes)

    def one(place, count, index):
        try:
            rendezvous.meet(address, count, index)
            ends[place] = None
        except (ValueError, OSError) as error:
            ends[place] = error

    threads = [threading.Thread(target=one, args=(i, *p)) for i, p in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return ends


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_meet_and_leave_the_port(order):
    address = free_address()
    assert meet(address, *((3, index) for index in order)) == [None] * 3
    host, port = address.split(":")
    socket.create_server((host, int(port))).close()


@pytest.mark.parametrize("index", [0, 1])
def test_two_processes_with_one_number_are_refused(index):
    for error in meet(free_address(), (2, index), (2, index)):
        assert isinstance(error, ValueError)
        assert f"Two processes have --process_id={index}: expected each of 0 to 1" in str(error)


def test_others_are_told_of_two_with_one_number(monkeypatch):
    listens, listen = threading.Event(), rendezvous._listen

    def after_process_0(host, port, index):  # else the two may meet and end before it comes
        if index:
            assert listens.wait(PATIENCE)
        listener = listen(host, port, index)
        listens.set()
        return listener

    monkeypatch.setattr(rendezvous, "_listen", after_process_0)
    ends = meet(free_address(), (4, 0), (4, 1), (4, 1))
    assert {str(error).partition(":")[0] for error in ends} == {"Two processes have --process_id=1"}


def test_another_number_of_processes_is_refused():
    for error in meet(free_address(), (2, 0), (3, 2)):
        assert isinstance(error, ValueError)
        assert "expected the same in all" in str(error)


def test_who_is_missing_is_said_and_the_wait_ends(monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "_TIMEOUT", 5.0)
    monkeypatch.setattr(rendezvous, "_PATIENCE", 1.0)
    ends = meet(free_address(), (4, 0), (4, 2))
    for error in ends:
        assert isinstance(error, TimeoutError)
        assert "Of 4 processes, processes 1, 3 did not come" in str(error)
    assert "Waiting for processes 1, 3 of 4" in capsys.readouterr().err


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_process_that_ended_is_awaited_until_it_is_started_again(order):
    address = free_address()
    host, port = address.split(":")
    ends = []
    first = threading.Thread(target=lambda: ends.append(meet(address, (3, 0))))
    first.start()

    def dead_has_come():
        try:
            with socket.create_connection((host, int(port))) as dead:
                dead.sendall(b'{"process_id": 1, "num_processes": 3}\n')
        except OSError:
            return False
        return True

    wait_until(dead_has_come)
    ended = []
    others = [
        threading.Thread(target=lambda i=i: ended.extend(meet(address, (3, i)))) for i in order
    ]
    for other in others:  # one after the other
        other.start()
        time.sleep(0.5)
    for other in others:
        other.join(PATIENCE)
    assert ended == [None, None]
    first.join(PATIENCE)
    assert ends == [[None]]


def test_a_port_that_somebody_else_has_passes(monkeypatch):
    monkeypatch.setattr(rendezvous, "_TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"

        def answer():
            connection, _ = other.accept()
            connection.sendall(b"220 mail\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        (error,) = meet(address, (2, 0))
        thread.join(PATIENCE)
    assert isinstance(error, OSError)  # no ValueError: a launcher starts again, on another port
    assert "is the port taken" in str(error)


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:x", "host:70000", "host:0"])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        rendezvous.meet(address, 2, 0)


@pytest.mark.slow
def test_the_command_refuses_two_processes_with_one_number(tmp_path):
    command = [sys.executable, "-m", "experiments.convergence_30", f"--workdir={tmp_path / 'w'}"]
    command += [f"--coordinator_address={free_address()}", "--num_processes=2", "--process_id=1"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) for _ in range(2)]
    for process in started:
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 78, said
        assert "Two processes have --process_id=1" in said
        assert "Traceback" not in said
