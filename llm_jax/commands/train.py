"""``llm-jax train``: a config file, overridden by dotted keys, run to its end or to the next
interruption.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import shlex
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from llm_jax.api.settings import check_settings
from llm_jax.config import Config
from llm_jax.config.explain import help_of
from llm_jax.config.old_keys import CONVERTED, RENAMED, tell
from llm_jax.config.overrides import nearest_setting, override, with_sections
from llm_jax.config.saved import load_config
from llm_jax.config.sections import flatten, settings
from llm_jax.progress import silence
from llm_jax.storage.paths import bucket_refusal
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
            print(_alternatives_help())
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
    if bucket_refusal(error):
        return f"llm-jax train: error: {bucket_refusal(error)}", 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    return "".join(traceback.format_exception(error)), 1


def parse(config: Config, words: list[str]) -> Config:
    """``config`` with the settings of the command line.

    Raises ConfigError for an unknown key, a value that does not fit, or a setting that nothing in
    the run reads.
    """
    import tyro

    flags = [_parse_flag(group) for group in _groups(words)]
    # tyro knows one dataclass for each section, so the command line's choices of these come first.
    first = {flag.key: flag.literal for flag in flags if flag.precedes}
    rest = [flag for flag in flags if not flag.precedes]
    config = override(config, first, "command line")
    for flag in rest:
        config = with_sections(config, flag.key, "command line") if flag.key else config
    parsed = tyro.cli(
        tyro.conf.AvoidSubcommands[Config],
        default=dataclasses.replace(config),
        args=[word for flag in rest for word in flag.words],
        prog="llm-jax train CONFIG",
    )
    values = flatten(parsed)
    keys = [flag.key for flag in rest if flag.key]
    config = override(config, {key: values[key] for key in keys}, "command line")
    return check_settings(config, [*first, *keys])


def _alternatives_help() -> str:
    """The sections that can be one of several, and the settings of those that are not the
    default.
    """
    defaults = flatten(Config())
    lines = ["sections that are one of several, and what the others have:"]
    for key, (setting, *_) in settings(Config).items():
        if setting.alternatives:
            choice = "|".join(setting.alternatives)
            lines.append(f"  --{key} {choice}  {help_of(key)} (default: {setting.default})")
        elif key not in defaults:
            section, name = setting.chosen_by[-1]
            shown = f"with {section}={name}: {help_of(key)} (default: {setting.default})"
            lines.append(f"    --{key}  {shown}")
    return "\n".join(lines) + "\n"


def _groups(words: list[str]) -> list[list[str]]:
    """Each flag with the words of its value."""
    out: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not out:
            out.append([])
        out[-1].append(word)
    return out


class _Flag(NamedTuple):
    """A flag of the command line.

    Attributes:
        key: Dotted key of its setting; empty for a word that is no flag, and for --help.
        words: The flag and the words of its value.
        precedes: Whether it chooses the alternative of a section.
    """

    key: str
    words: list[str]
    precedes: bool = False

    @property
    def literal(self) -> Any:
        """The value, as a Python literal where it is one."""
        text = " ".join(self.words[1:]) or self.words[0].partition("=")[2]
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text


def _parse_flag(words: list[str]) -> _Flag:
    """The flag; a setting of an earlier version under its key of today.

    Raises ConfigError for an unknown key.
    """
    word = words[0]
    if not word.startswith("--") or word == "--help":
        return _Flag("", words)
    name, sign, value = word[2:].partition("=")
    name = name.replace("-", "_")
    if name in CONVERTED and name not in settings(Config):
        return _Flag(name, words, precedes=True)
    if name in RENAMED:
        tell(((name, (RENAMED[name],)),))
        name = RENAMED[name]
        words = [f"--{name}{sign}{value}", *words[1:]]
    section, _, leaf = name.rpartition(".")
    key = f"{section}.{leaf.removeprefix('no_')}" if leaf.startswith("no_") else name
    known = settings(Config)
    if key not in known:
        raise ConfigError(f"unknown setting {name!r}{nearest_setting(name, known)}")
    return _Flag(key, words, precedes=bool(known[key][0].alternatives))
