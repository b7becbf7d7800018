"""Rendezvous: before jax connects, process 0 hears every process once, so that one that is missing,
duplicated or misconfigured is named.

jax's coordination service cannot say this. Experiments with jax 0.10.2 and 0.12.0: ``connect()``
aborts the process if a task is missing, two tasks have one id or nobody answers, and names task
numbers only (with a callback it raises ``std::bad_cast`` instead); a second task with an id
replaces the first; before ``connect()`` the key-value store aborts the process ("wrong service
incarnation"); two services listen on one port without an error.

The rendezvous uses the coordinator's port, which is free until jax takes it, and listens on the
coordinator's own address only. Processes prove that they know the token of the run by
challenge and response (HMAC-SHA256); the token is never sent.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import selectors
import socket
import time
from contextlib import ExitStack
from typing import Any

from llm_jax.multihost.rendezvous_messages import (
    Answer,
    Introduction,
    Member,
    new_challenge,
    read_answer,
    read_challenge,
    read_introduction,
    write_answer,
    write_challenge,
    write_introduction,
)
from llm_jax.types import ConfigError

TOKEN_VARIABLE = "LLM_JAX_RUN_TOKEN"
BIND_VARIABLE = "JAX_COORDINATOR_BIND_ADDRESS"
# The address is of another host, or of a kind that this host does not have.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_MAX_LINE = 4096
_RETRY_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
_OTHER_TOKEN = "another token"


def rendezvous(
    address: str, count: int, index: int, timeout: float, *, token: str = "", bind: str = ""
) -> None:
    """Return when process 0 has heard all processes.

    Args:
        address: ``HOST:PORT`` of process 0.
        count: number of processes.
        index: of this process, from 0.
        timeout: seconds for all processes to come.
        token: shared by the processes of the run. Whoever does not know it is refused.
        bind: ``HOST:PORT`` that process 0 listens on, where it is reached through another address;
            empty for ``address``.

    Raises:
        ConfigError: within ``timeout`` + 10 seconds; an address that cannot be reached, a process
            that did not come, two with one id, processes that disagree on their number, another
            token.
    """
    me = Member.of_this_process(index, count)
    if index == 0:
        _coordinate(address, bind or address, me, timeout, token)
    else:
        _report_to(address, me, timeout, token)


def parse(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``.

    Raises:
        ConfigError: it has another form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"coordinator address {address!r} is not HOST:PORT; give the host of process 0 and a"
            " free port on it"
        )
    return host.strip("[]"), int(port)


# Process 0 ----------------------------------------------------------------------------------------


def _coordinate(address: str, bind: str, me: Member, timeout: float, token: str) -> None:
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in _listen(address, bind, me)]
        roll = _Roll(me, token)
        _hear_all(roll, listeners, deadline)
        hint = _loopback_hint(bind, listeners)
    if not roll.problem and roll.missing:
        roll.problem = (
            f"after {timeout:g} s at coordinator address {address!r}, process"
            f" {', '.join(map(str, roll.missing))} of {me.processes} had not come{roll.refusals}"
            f"{hint}; start every process with the same address and number"
        )
    roll.answer_all()
    if roll.problem:
        raise ConfigError(roll.problem)


def _listen(address: str, bind: str, me: Member) -> list[socket.socket]:
    """A listening socket for each network address of the coordinator's host name."""
    host, port = parse(bind)
    try:
        places = dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except OSError as error:
        raise ConfigError(_cannot_listen(address, bind, me, error)) from error
    listeners: list[socket.socket] = []
    failures: list[OSError] = []
    for family, _, _, _, where in places:
        try:
            listeners.append(_server(where, family, me.processes))
        except OSError as error:
            failures.append(error)
    # A host name may have addresses besides those of this host; one at least must be here.
    serious = [error for error in failures if error.errno not in _NOT_HERE]
    if not listeners:
        serious += failures
    if serious:
        for listener in listeners:
            listener.close()
        raise ConfigError(_cannot_listen(address, bind, me, serious[0])) from serious[0]
    return listeners


def _server(where: tuple[Any, ...], family: int, processes: int) -> socket.socket:
    # jax's form of "every address".
    everywhere = where[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        where, family=family, backlog=processes + 8, dualstack_ipv6=everywhere
    )


def _cannot_listen(address: str, bind: str, me: Member, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno in _NOT_HERE:
        fix = "give an address of that host"
        if bind == address:
            fix += f" (or its own address as {BIND_VARIABLE}, if it is reached through another one)"
        return f"coordinator address {bind!r} does not lead to process 0, {me}: {error}; {fix}"
    return (
        f"process 0 cannot take port {parse(bind)[1]} of coordinator address {bind!r}:"
        f" {error.strerror}; choose a free one"
    )


def _loopback_hint(bind: str, listeners: list[socket.socket]) -> str:
    """A hint where a host name resolves to an address that only this machine reaches."""
    host, _ = parse(bind)
    names = sorted({listener.getsockname()[0] for listener in listeners})
    if host in ("localhost", *names) or not all(map(_is_loopback, names)):
        return ""
    return (
        f" ({host!r} is {', '.join(names)} on this host, which no other host can reach: give the"
        " address in the network)"
    )


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class _Connection:
    """A connection to process 0, of which not all has been received yet."""

    def __init__(self, connected: socket.socket):
        self.socket = connected
        self.challenge = new_challenge()
        self.other_challenge = ""
        self._received = b""
        connected.setblocking(False)

    def receive(self) -> str | None:
        """Receive what is there.

        Returns:
            The line, once it is complete; None before.

        Raises:
            OSError: the connection ended, or the line is too long.
        """
        try:
            data = self.socket.recv(_MAX_LINE)
        except BlockingIOError:
            return None
        self._received += data
        if b"\n" in self._received:
            return self._received.partition(b"\n")[0].decode(errors="replace")
        if not data or len(self._received) >= _MAX_LINE:
            raise ConnectionError("no complete line")
        return None

    def answer(self, problem: str, token: str) -> None:
        """Send the result of the rendezvous."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(_ANSWER_SECONDS)
            self.socket.sendall(write_answer(problem, self.other_challenge, token))


class _Roll:
    """The processes that process 0 has heard.

    Attributes:
        problem: why the run cannot start; empty while it can.
    """

    def __init__(self, me: Member, token: str):
        self.problem = ""
        self._me = me
        self._token = token
        self._members = {0: me}
        self._heard: list[_Connection] = []
        self._refused: list[str] = []

    @property
    def missing(self) -> list[int]:
        """Ids of the processes that have not come."""
        return sorted(set(range(self._me.processes)) - set(self._members))

    @property
    def refusals(self) -> str:
        """The refused processes, as a part of an error."""
        if not self._refused:
            return ""
        return f" ({', '.join(self._refused)} came with another {TOKEN_VARIABLE})"

    def enter(self, connection: _Connection, line: str) -> None:
        """Enter the process that sent a line. Other lines are of strangers, and ignored."""
        introduction = read_introduction(line)
        if introduction is None:
            connection.socket.close()
            return
        connection.other_challenge = introduction.challenge
        if not introduction.is_proved(connection.challenge, self._token):
            self._refuse(connection, introduction)
            return
        self._heard.append(connection)
        self.problem = self._problem_of(introduction.member)
        self._members.setdefault(introduction.member.process_id, introduction.member)

    def _refuse(self, connection: _Connection, introduction: Introduction) -> None:
        member = introduction.member
        if len(self._refused) < 8:
            self._refused.append(f"process {member.process_id}, {member}")
        connection.answer(_OTHER_TOKEN, self._token)
        connection.socket.close()

    def _problem_of(self, member: Member) -> str:
        index = member.process_id
        known = self._members.get(index)
        if known is not None:
            return (
                f"two hosts have process id {index}: {known} and {member}; give each its own,"
                f" from 0 to {self._me.processes - 1}"
            )
        if member.processes != self._me.processes:
            return (
                f"process {index}, {member}, was told of {member.processes} processes, process 0,"
                f" {self._me}, of {self._me.processes}"
            )
        return ""

    def answer_all(self) -> None:
        """Send the result to every process that was heard."""
        for connection in self._heard:
            connection.answer(self.problem, self._token)
        deadline = time.monotonic() + _ANSWER_SECONDS
        for connection in self._heard:
            # The side that closes first keeps the port in TIME_WAIT, and jax needs it next.
            with contextlib.suppress(OSError):
                connection.socket.settimeout(max(deadline - time.monotonic(), 0.01))
                connection.socket.recv(1)
            connection.socket.close()


def _hear_all(roll: _Roll, listeners: list[socket.socket], deadline: float) -> None:
    """Hear processes until all have come, a problem is found, or the deadline."""
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ, listener)
        while roll.missing and not roll.problem:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for key, _ in selector.select(left):
                if not isinstance(key.data, _Connection):
                    _accept(selector, key.data)
                elif not roll.problem:
                    _receive(selector, key.data, roll)
        # A connection without a complete message is a stranger's.
        for key in list(selector.get_map().values()):
            if isinstance(key.data, _Connection):
                key.data.socket.close()


def _accept(selector: selectors.BaseSelector, listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection = _Connection(listener.accept()[0])
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.socket.sendall(write_challenge(connection.challenge))


def _receive(selector: selectors.BaseSelector, connection: _Connection, roll: _Roll) -> None:
    try:
        line = connection.receive()
    except OSError:
        selector.unregister(connection.socket)
        connection.socket.close()
        return
    if line is not None:
        selector.unregister(connection.socket)
        roll.enter(connection, line)


# The other processes ------------------------------------------------------------------------------


def _report_to(address: str, me: Member, timeout: float, token: str) -> None:
    """Introduce this process to process 0 and wait for its answer."""
    with _reach(address, timeout) as connection:
        connection.settimeout(timeout + 2 * _ANSWER_SECONDS)
        challenge = new_challenge()
        try:
            lines = connection.makefile("r", encoding="utf-8", errors="replace")
            introduction = write_introduction(me, challenge, read_challenge(lines), token)
            connection.sendall(introduction)
            answer = read_answer(lines, challenge, token)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"coordinator address {address!r} takes no more processes ({type(error).__name__}):"
                f" process id {me.process_id} may be another host's, an older run may still hold"
                " the port, or it is no coordinator of llm-jax train"
            ) from error
    _check(answer, address)


def _check(answer: Answer, address: str) -> None:
    if not answer.is_proved or answer.problem == _OTHER_TOKEN:
        raise ConfigError(
            f"coordinator address {address!r} is of a run with another {TOKEN_VARIABLE}; set it to"
            " the same text for every process, or choose another port"
        )
    if answer.problem:
        raise ConfigError(answer.problem)


def _reach(address: str, timeout: float) -> socket.socket:
    """A connection to the coordinator, which may start later than this process."""
    where = parse(address)
    deadline = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection(where, max(deadline - time.monotonic(), 0.1))
        except OSError as error:
            if time.monotonic() + _RETRY_SECONDS > deadline:
                raise ConfigError(
                    f"coordinator address {address!r} could not be reached in {timeout:g} s:"
                    f" {error}; process 0 must run there"
                ) from error
        time.sleep(_RETRY_SECONDS)
