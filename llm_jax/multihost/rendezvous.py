"""Roll call: before jax connects, process 0 hears every process once, so that who is missing,
doubled or wrong can be named.

jax's own connecting ends the process without a name when an address is wrong or two processes share
an id. The call is held on the coordinator's port, which is free until jax takes it: each process
sends one line of JSON and gets one back.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Any

from llm_jax.types import ConfigError


def rendezvous(address: str, count: int, index: int, timeout: float) -> None:
    """Returns when all ``count`` processes have been heard; process 0 answers at ``address``.

    Raises ConfigError within ``timeout`` + 10 seconds: an address that cannot be reached, a process
    that did not come, two with one id, processes that disagree on their number.
    """
    host, port = parse(address)
    if index == 0:
        _hold(address, host, port, count, timeout)
    else:
        _answer(address, host, port, count, index, timeout)


def parse(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. ConfigError when it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"coordinator address {address!r} is not HOST:PORT; give the host of process 0 and a"
            " free port on it"
        )
    return host.strip("[]"), int(port)


def _me(index: int, count: int) -> dict[str, Any]:
    return {"id": index, "of": count, "name": socket.gethostname(), "pid": os.getpid()}


def _called(entry: dict[str, Any]) -> str:
    return f"{entry['name']} (pid {entry['pid']})"


def _hold(address: str, host: str, port: int, count: int, timeout: float) -> None:
    deadline, me = time.monotonic() + timeout, _me(0, count)
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        listener = socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=count + 8
        )
    except OSError as error:
        text = (
            f"process 0 cannot take port {port} of coordinator address {address!r}:"
            f" {error.strerror}; choose a free one"
        )
        raise ConfigError(text) from error
    with listener:
        try:
            socket.create_connection((host, port), min(timeout, 10)).close()
        except OSError as error:
            raise ConfigError(
                f"coordinator address {address!r} does not lead to process 0, {_called(me)}:"
                f" {error}; give that host's address"
            ) from error
        roll, heard, problem = {0: me}, [], ""
        while len(roll) < count and not problem and time.monotonic() < deadline:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            with contextlib.suppress(TimeoutError):
                heard.append(listener.accept()[0])
                problem = _enter(roll, heard[-1])
    missing = sorted(set(range(count)) - set(roll))
    if missing and not problem:
        problem = (
            f"after {timeout:g} s at coordinator address {address!r}, process"
            f" {', '.join(map(str, missing))} of {count} had not come; start every process with the"
            " same address and number"
        )
    _reply(heard, problem)
    if problem:
        raise ConfigError(problem)


def _enter(roll: dict[int, dict[str, Any]], connection: socket.socket) -> str:
    """Hears one process; what is wrong with it, if anything. What sends no such line is no process
    of ours.
    """
    connection.settimeout(5.0)
    try:
        entry = json.loads(connection.makefile().readline())
        index, count = entry["id"], entry["of"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if index in roll:
        two = f"{_called(roll[index])} and {_called(entry)}"
        return f"two hosts have process id {index}: {two}; give each its own, from 0 to {count - 1}"
    if count != roll[0]["of"]:
        return (
            f"process {index}, {_called(entry)}, was told of {count} processes, process 0,"
            f" {_called(roll[0])}, of {roll[0]['of']}"
        )
    roll[index] = entry
    return ""


def _reply(heard: list[socket.socket], problem: str) -> None:
    for connection in heard:
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
            # Whoever closes first keeps the port waiting; jax needs it next.
            connection.settimeout(5.0)
            connection.recv(1)
        connection.close()


def _answer(address: str, host: str, port: int, count: int, index: int, timeout: float) -> None:
    connection = _reach(address, host, port, timeout)
    with connection:
        try:
            connection.sendall(json.dumps(_me(index, count)).encode() + b"\n")
            connection.settimeout(timeout + 10)
            reply = json.loads(connection.makefile().readline())["problem"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"coordinator address {address!r} takes no more processes ({type(error).__name__}):"
                f" process id {index} may be another host's, an older run may still hold the port,"
                " or it is no coordinator of llm-jax train"
            ) from error
    if reply:
        raise ConfigError(reply)


def _reach(address: str, host: str, port: int, timeout: float) -> socket.socket:
    """A connection to the coordinator, which may be started later than this process."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host, port), max(deadline - time.monotonic(), 0.1))
        except OSError as error:
            if time.monotonic() + 0.5 > deadline:
                raise ConfigError(
                    f"coordinator address {address!r} could not be reached in {timeout:g} s:"
                    f" {error}; process 0 must run there"
                ) from error
        time.sleep(0.5)
