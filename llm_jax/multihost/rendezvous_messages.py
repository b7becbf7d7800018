"""Messages of the rendezvous: lines of JSON, authenticated with the token of the run.

    process 0 -> process:  {"challenge": c0}
    process -> process 0:  {"member": [id, processes, host, pid], "challenge": c1, "proof": …}
    process 0 -> process:  {"problem": "…", "proof": …}

A proof is an HMAC-SHA256 with the token as its key, over the content of the message and the other
side's challenge, so that a recorded message proves nothing later.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
from typing import Any, NamedTuple, TextIO

_MAX_ANSWER = 1 << 20


class Member(NamedTuple):
    """A process of the run, as it introduces itself.

    Attributes:
        process_id: from 0.
        processes: number of processes that it was told.
        host: name of its machine.
        pid: its process id there.
    """

    process_id: int
    processes: int
    host: str
    pid: int

    @classmethod
    def of_this_process(cls, process_id: int, processes: int) -> Member:
        """This process."""
        return cls(process_id, processes, socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid})"


class Introduction(NamedTuple):
    """A process that introduces itself to process 0.

    Attributes:
        member: the process.
        challenge: for process 0 to prove itself.
        proof: of the process.
    """

    member: Member
    challenge: str
    proof: str

    def is_proved(self, challenge: str, token: str) -> bool:
        """Whether the process knows the token; ``challenge`` is the one that it was sent."""
        return _is_equal(self.proof, _member_proof(self.member, challenge, token))


class Answer(NamedTuple):
    """The answer of process 0.

    Attributes:
        problem: why the run cannot start; empty if it can.
        is_proved: whether process 0 knows the token.
    """

    problem: str
    is_proved: bool


def new_challenge() -> str:
    """A random challenge."""
    return secrets.token_hex(16)


def write_challenge(challenge: str) -> bytes:
    """Process 0's first message."""
    return _line({"challenge": challenge})


def read_challenge(lines: TextIO) -> str:
    """The challenge of process 0.

    Raises:
        OSError, ValueError, KeyError, TypeError: the message is another one.
    """
    return str(json.loads(lines.readline(_MAX_ANSWER))["challenge"])


def write_introduction(member: Member, challenge: str, received: str, token: str) -> bytes:
    """The message by which a process introduces itself.

    Args:
        member: the process.
        challenge: for process 0.
        received: the challenge of process 0.
        token: of the run.
    """
    proof = _member_proof(member, received, token)
    return _line({"member": member, "challenge": challenge, "proof": proof})


def read_introduction(line: str) -> Introduction | None:
    """The process that introduces itself; None for another message."""
    try:
        message = json.loads(line)
        process_id, processes, host, pid = message["member"]
        member = Member(process_id, processes, str(host)[:255], pid)
        introduction = Introduction(member, str(message["challenge"]), str(message["proof"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = all(isinstance(number, int) for number in (process_id, processes, pid))
    return introduction if whole and 0 <= process_id < processes else None


def write_answer(problem: str, received: str, token: str) -> bytes:
    """Process 0's last message; ``received`` is the challenge of the process that it answers."""
    return _line({"problem": problem, "proof": _answer_proof(problem, received, token)})


def read_answer(lines: TextIO, challenge: str, token: str) -> Answer:
    """The answer of process 0, which was sent ``challenge``.

    Raises:
        OSError, ValueError, KeyError, TypeError: the message is another one.
    """
    message = json.loads(lines.readline(_MAX_ANSWER))
    problem = str(message["problem"])
    proof = _answer_proof(problem, challenge, token)
    return Answer(problem, _is_equal(str(message["proof"]), proof))


def _member_proof(member: Member, challenge: str, token: str) -> str:
    return _proof(json.dumps(["member", challenge, *member]), token)


def _answer_proof(problem: str, challenge: str, token: str) -> str:
    return _proof(json.dumps(["answer", challenge, problem]), token)


def _proof(content: str, token: str) -> str:
    return hmac.new(token.encode(), content.encode(), "sha256").hexdigest()


def _is_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
