"""``llm-jax train``: a config file, overridden by dotted keys, run to its end or to the next
interruption.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from llm_jax.api.settings import check_settings
from llm_jax.config import Config
from llm_jax.config.overrides import nearest, override
from llm_jax.config.saved import load_config
from llm_jax.config.sections import flatten
from llm_jax.progress import silence
from llm_jax.types import ConfigError, DataError, NonFiniteError

if TYPE_CHECKING:
    from llm_jax.goodput import Goodput
    from llm_jax.multihost.watchdog import Watchdog


def main(words: list[str]) -> int:
    """``CONFIG [--section.key=value …]``. Returns the exit status: 0, or 128 + signal after an
    interruption.
    """
    if not words or words[0].startswith("-"):
        if "--help" in words or "-h" in words:
            from llm_jax.multihost.join import HELP

            print(
                "usage: llm-jax train CONFIG [--section.key=value …], CONFIG being configs/*.py or"
                " a saved config.json\n"
            )
            print(HELP)
            print(
                "compiled programs stay in ~/.cache/llm_jax; JAX_COMPILATION_CACHE_DIR=FOLDER moves"
                " them,"
            )
            print("  JAX_ENABLE_COMPILATION_CACHE=false keeps none\n")
            parse(Config(), ["--help"])
        raise ConfigError("which config? usage: llm-jax train CONFIG [--section.key=value …]")
    # Neither imports jax, which takes a second.
    from llm_jax.goodput import Goodput
    from llm_jax.multihost.signals import starting

    run = _TrainCommand(words, Goodput())
    with starting(run.end, lambda: run.ledger.to_first_step is not None):
        return run.start()


@dataclasses.dataclass
class _TrainCommand:
    """The part of a run that this process does.

    Attributes:
        words: of the command line.
        ledger: where the wall time is counted.
        watch: the watchdog over the other hosts, once they have been joined.
    """

    words: list[str]
    ledger: Goodput
    watch: Watchdog | None = None

    def start(self) -> int:
        from llm_jax.multihost.join import join, split_flags
        from llm_jax.training.compile_cache import use_compile_cache

        use_compile_cache()
        flags, rest = split_flags(self.words)
        config = parse(load_config(rest[0]), rest[1:])
        return self.with_others(config) if join(flags) else self.train(config)

    def train(self, config: Config) -> int:
        from llm_jax.multihost.signals import Stopped
        from llm_jax.training.run import train

        first = self.watch is None or self.watch.index == 0
        try:
            folder = train(config, self.ledger, self.watch)
        except Stopped as stopped:
            if first:
                print(f"{stopped}\n{self.again}", file=sys.stderr)
            return 128 + stopped.signum
        if first:
            print(f"run in {folder}")
        return 0

    def with_others(self, config: Config) -> int:
        """``train`` under the watchdog of all hosts, which are told of an error before this process
        ends.
        """
        from llm_jax.multihost.watchdog import watch

        self.watch = watch(self.ledger, config.train.hosts.silent, config.train.hosts.stuck)
        if self.watch.index:
            silence()
        try:
            status = self.train(config)
        except BaseException as error:  # noqa: BLE001 – the watchdog reports it and ends the process
            self.watch.leave(error, *_message_and_status(error))
        self.watch.close()
        return status

    @property
    def again(self) -> str:
        return f"to go on: llm-jax train {shlex.join(self.words)}"

    def end(self, signum: int) -> NoReturn:
        """Ends this process before its first step, when there is nothing to save."""
        text = (
            f"stopped by {signal.Signals(signum).name} before the first step; the checkpoints are"
            f" as they were\n{self.again}"
        )
        if self.watch:
            self.watch.leave(KeyboardInterrupt(), text, 128 + signum)
        print(text, file=sys.stderr, flush=True)
        os._exit(128 + signum)


def _message_and_status(error: BaseException) -> tuple[str, int]:
    """The message for an error and the exit status, the same as ``cli`` gives for one process."""
    from llm_jax.checkpoints.checkpoint import CheckpointError
    from llm_jax.training.spikes import SpikeError

    if isinstance(error, ConfigError | DataError | CheckpointError | NonFiniteError | SpikeError):
        return f"llm-jax train: error: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    return "".join(traceback.format_exception(error)), 1


def parse(config: Config, words: list[str]) -> Config:
    """``config`` with the settings of the command line.

    Raises ConfigError for an unknown key, a value that does not fit, or a setting that nothing in
    the run reads.
    """
    import tyro

    keys = [key for word in words if (key := _key(word, config)) is not None]
    parsed = tyro.cli(
        Config, default=dataclasses.replace(config), args=words, prog="llm-jax train CONFIG"
    )
    values = flatten(parsed)
    config = override(config, {key: values[key] for key in keys}, "command line")
    return check_settings(config, keys)


def _key(word: str, config: Config) -> str | None:
    """The dotted key that a word of the command line sets; None if it is no flag."""
    if not word.startswith("--") or word == "--help":
        return None
    known = flatten(config)
    name = word[2:].partition("=")[0].replace("-", "_")
    section, _, leaf = name.rpartition(".")
    positive = f"{section}.{leaf.removeprefix('no_')}"
    if name in known:
        return name
    if leaf.startswith("no_") and isinstance(known.get(positive), bool):
        return positive
    raise ConfigError(f"unknown setting {name!r}{nearest(name, known)}")
