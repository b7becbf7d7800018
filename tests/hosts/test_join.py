"""Joining: the place that a process is given, and the rendezvous over real sockets. Errors name the
address, the ids and the hosts.
"""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from multihost import free_port

from llm_jax.multihost.jax_service import ServiceStore, knows_cluster
from llm_jax.multihost.join import Place, place, split_flags
from llm_jax.multihost.rendezvous import rendezvous
from llm_jax.multihost.rendezvous_messages import Member, read_introduction, write_introduction
from llm_jax.types import ConfigError

pytestmark = pytest.mark.process


def call(
    index: int,
    count: int,
    port: int,
    timeout: float,
    host: str = "127.0.0.1",
    token: str = "",
    bind: str = "",
) -> str:
    """The error of one process's rendezvous; empty if it succeeds."""
    try:
        rendezvous(f"{host}:{port}", count, index, timeout, token=token, bind=bind)
    except ConfigError as error:
        return str(error)
    return ""


def calls(*who: tuple[int, int], timeout: float = 10.0, tokens: tuple[str, ...] = ()) -> list[str]:
    """The same for several processes at once, each an (id, number of processes)."""
    port = free_port()
    out = [""] * len(who)

    def run(number: int) -> None:
        token = tokens[number] if tokens else ""
        out[number] = call(*who[number], port, timeout, token=token)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(who))]
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


def test_strangers_do_not_delay_the_processes():
    port, out = free_port(), []
    thread = threading.Thread(target=lambda: out.append(call(0, 2, port, 10.0)))
    thread.start()
    time.sleep(0.3)
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    strangers[1].sendall(b"[" * 5000)
    strangers[2].sendall(b'{"member": [1, "2", 3, 4], "challenge": 5, "proof": 6}\n')
    began = time.monotonic()
    assert call(1, 2, port, 10.0) == ""
    thread.join()
    assert out == [""] and time.monotonic() - began < 4
    for stranger in strangers:
        stranger.close()


def test_processes_with_the_same_token_meet():
    assert calls((0, 2), (1, 2), tokens=("secret", "secret")) == ["", ""]


@pytest.mark.parametrize("tokens", [("secret", "guess"), ("secret", ""), ("", "guess")])
def test_another_token_is_refused_and_named(tokens):
    me = f"{socket.gethostname()} (pid {os.getpid()})"
    first, second = calls((0, 2), (1, 2), timeout=1.5, tokens=tokens)
    assert f"(process 1, {me} came with another LLM_JAX_RUN_TOKEN)" in first
    assert "process 1 of 2 had not come" in first
    assert "is of a run with another LLM_JAX_RUN_TOKEN; set it to the same text" in second


def test_a_coordinator_that_does_not_know_the_token_is_not_believed():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection = server.accept()[0]
            connection.sendall(b'{"challenge": "c"}\n')
            connection.recv(4096)
            connection.sendall(b'{"problem": "", "proof": "' + b"0" * 64 + b'"}\n')
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        port = server.getsockname()[1]
        assert "another LLM_JAX_RUN_TOKEN" in call(1, 2, port, 2.0, token="secret")
        thread.join()


def test_a_proof_is_of_the_member_the_challenge_and_the_token():
    member = Member(1, 2, "node", 7)
    line = write_introduction(member, "mine", "theirs", "secret").decode()
    assert "secret" not in line
    found = read_introduction(line)
    assert found.member == member and found.challenge == "mine"
    assert found.is_proved("theirs", "secret")
    assert not found.is_proved("replayed", "secret") and not found.is_proved("theirs", "guess")
    assert not found._replace(member=Member(0, 2, "node", 7)).is_proved("theirs", "secret")
    # echo -n '["member", "theirs", 1, 2, "node", 7]' | openssl dgst -sha256 -hmac secret
    assert found.proof == "f14e325f1a4d71e16ef45b19a1352d837c21f7a00eb88edccbb42f5293c2dc9c"


def test_process_0_listens_on_the_address_of_the_coordinator_only():
    port, out = free_port(), []
    thread = threading.Thread(target=lambda: out.append(call(0, 2, port, 10.0)))
    thread.start()
    time.sleep(0.3)
    # 127.0.0.2 is an address of the same machine.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), 2.0)
    assert call(1, 2, port, 10.0) == ""
    thread.join()
    assert out == [""]


def test_an_address_of_another_host_is_named_at_once():
    port, began = free_port(), time.monotonic()
    # 192.0.2.0/24 is reserved for documentation.
    error = call(0, 2, port, 10.0, "192.0.2.1")
    assert f"'192.0.2.1:{port}' does not lead to process 0, {socket.gethostname()} (pid" in error
    assert "JAX_COORDINATOR_BIND_ADDRESS" in error
    assert time.monotonic() - began < 5
    # Process 0 may be reached through another host's address.
    error = call(0, 2, port, 0.5, "192.0.2.1", bind=f"127.0.0.1:{port}")
    assert "process 1 of 2 had not come" in error


def test_a_name_that_only_this_host_can_reach_is_explained(monkeypatch):
    port = free_port()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    error = call(0, 2, port, 0.2, "node")
    assert "('node' is 127.0.0.1 on this host, which no other host can reach" in error


def test_a_jax_that_lacks_a_private_name_is_refused(monkeypatch):
    from jax._src import distributed
    from jax._src.clusters import ClusterEnv

    with pytest.raises(ConfigError, match="this process has joined no others"):
        ServiceStore()
    with monkeypatch.context() as patch:
        patch.delattr(distributed, "global_state")
        with pytest.raises(ConfigError, match=r"jax \d.* has changed what joining"):
            ServiceStore()
    monkeypatch.delattr(ClusterEnv, "_cluster_types")
    with pytest.raises(ConfigError, match=r"_cluster_types.*; install a version of jax from 0\.10"):
        knows_cluster()


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
