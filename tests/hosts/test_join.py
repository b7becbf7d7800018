"""Joining: what is told to a process, and the roll call over real sockets. Errors name the address,
the ids, the hosts.
"""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from multihost import free_port

from llm_jax.multihost.join import Place, place, split_flags
from llm_jax.multihost.rendezvous import rendezvous
from llm_jax.types import ConfigError

pytestmark = pytest.mark.process


def call(index: int, count: int, port: int, timeout: float, host: str = "127.0.0.1") -> str:
    """What the roll call of one process comes to: its error, or nothing."""
    try:
        rendezvous(f"{host}:{port}", count, index, timeout)
    except ConfigError as error:
        return str(error)
    return ""


def calls(*who: tuple[int, int], timeout: float = 10.0) -> list[str]:
    """The same for several processes at once, each an (id, number of processes)."""
    port, out = free_port(), [""] * len(who)
    threads = [
        threading.Thread(target=lambda i=i, p=p: out.__setitem__(i, call(*p, port, timeout)))
        for i, p in enumerate(who)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return out


def test_all_present():
    assert calls((0, 3), (1, 3), (2, 3)) == ["", "", ""]
    assert calls((2, 3), (1, 3), (0, 3)) == ["", "", ""]


def test_the_port_is_free_for_jax_right_after():
    port = free_port()
    other = threading.Thread(target=call, args=(1, 2, port, 10.0))
    other.start()
    assert call(0, 2, port, 10.0) == ""
    socket.create_server(("", port)).close()
    other.join()


def test_two_hosts_with_one_id_are_both_named_to_everybody():
    me = f"{socket.gethostname()} (pid {os.getpid()})"
    expected = f"two hosts have process id 1: {me} and {me}; give each its own, from 0 to 2"
    assert calls((0, 3), (1, 3), (1, 3)) == [expected] * 3
    expected = f"two hosts have process id 0: {me} and {me}; give each its own, from 0 to 1"
    first, second = calls((0, 2), (0, 2), timeout=1.5)
    # The second cannot take the port where both are on one machine; on two machines the address
    # leads to one of them.
    assert "process 0 cannot take port" in second and "had not come" in first


def test_a_missing_process_is_named():
    first, second = calls((0, 4), (2, 4), timeout=1.0)
    assert (
        first == second
        and "process 1, 3 of 4 had not come" in first
        and "after 1 s at coordinator address '127.0.0.1:" in first
    )


def test_processes_that_disagree_on_their_number():
    first, second = calls((0, 3), (1, 4))
    assert (
        first == second
        and "process 1" in first
        and "was told of 4 processes" in first
        and first.endswith("of 3")
    )


def test_a_wrong_address_is_named_in_time():
    port, began = free_port(), time.monotonic()
    assert f"coordinator address '127.0.0.1:{port}' could not be reached in 1 s" in call(
        1, 2, port, 1.0
    )
    assert "'nowhere.invalid:80' could not be reached in 1 s" in call(
        1, 2, 80, 1.0, "nowhere.invalid"
    )
    assert "does not lead to process 0" in call(0, 2, port, 1.0, "nowhere.invalid")
    assert time.monotonic() - began < 10


def test_what_is_no_coordinator_is_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection = server.accept()[0]
            connection.sendall(b"HTTP/1.1 400\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert "takes no more processes" in call(1, 2, port, 2.0)
        thread.join()


def test_a_stranger_on_the_port_does_not_count():
    port, out = free_port(), []
    thread = threading.Thread(target=lambda: out.append(call(0, 2, port, 10.0)))
    thread.start()
    time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n")
    assert call(1, 2, port, 10.0) == ""
    thread.join()
    assert out == [""]


def test_flags_and_environment():
    told, rest = split_flags(
        [
            "c.py",
            "--process-id=2",
            "--train.steps=5",
            "--num_processes",
            "4",
            "--coordinator-address=a:1",
        ]
    )
    assert rest == ["c.py", "--train.steps=5"]
    assert place(told, {}) == Place("a:1", 4, 2)
    environment = {
        "JAX_COORDINATOR_ADDRESS": "b:2",
        "JAX_NUM_PROCESSES": "3",
        "JAX_PROCESS_ID": "0",
        "LLM_JAX_COORDINATOR_TIMEOUT": "7",
    }
    assert place({}, environment) == Place("b:2", 3, 0, 7.0)
    assert place(told, environment) == Place("a:1", 4, 2, 7.0)
    assert place({}, {}) is None and place({}, {"JAX_COORDINATOR_ADDRESS": "b:2"}) is None
    assert place({"num-processes": "1"}, {}) == Place()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"num-processes": "2"}, "--num-processes=2 without --coordinator-address"),
        (
            {"num-processes": "2", "coordinator-address": "a:1"},
            "without --process-id; give it, or JAX_PROCESS_ID",
        ),
        ({"process-id": "1"}, "--process-id=1 without --num-processes"),
        ({"num-processes": "two", "process-id": "0"}, "--num-processes='two'"),
        (
            {"num-processes": "2", "process-id": "2", "coordinator-address": "a:1"},
            "--process-id=2 of --num-processes=2",
        ),
        (
            {"num-processes": "2", "process-id": "0", "coordinator-address": "a"},
            "'a' is not HOST:PORT",
        ),
        (
            {"num-processes": "2", "process-id": "0", "coordinator-address": "a:99999"},
            "'a:99999' is not HOST:PORT",
        ),
    ],
)
def test_half_of_it_is_refused(told, message):
    with pytest.raises(ConfigError, match=message):
        place(told, {})
