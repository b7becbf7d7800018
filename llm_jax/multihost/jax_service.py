"""jax's coordination service and cluster detection: all of this package's private API of jax.

jax has no public name for its key-value store, which orbax uses in the same way, nor for the
question whether it knows the cluster that it runs in. A version of jax that lacks one of the names
used here is refused with an error.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import jax

from llm_jax.types import ConfigError

_PREFIX = "llm_jax"
_CONNECT_SECONDS = 1.0
_CLIENT_METHODS = ("key_value_set", "key_value_dir_get", "key_value_delete")


class ServiceStore:
    """The key-value store of jax's coordination service, with JSON values.

    Any method may raise RuntimeError (``jax.errors.JaxRuntimeError``) after the service has ended.

    Raises:
        ConfigError: this process has not joined others, or this version of jax has another
            service.
    """

    def __init__(self) -> None:
        with _private_names():
            from jax._src.distributed import global_state

            client: Any = global_state.client
            address: str | None = global_state.coordinator_address
            if client is None or address is None:
                raise ConfigError("this process has joined no others; call join before")
            for name in _CLIENT_METHODS:
                getattr(client, name)
        self._client = client
        self._address = address

    def put(self, key: str, value: Any) -> None:
        """Set a key; replaces its value."""
        self._client.key_value_set(f"{_PREFIX}/{key}", json.dumps(value), allow_overwrite=True)

    def folder(self, key: str) -> dict[str, Any]:
        """The values of the keys below ``key``/, by the last part of the key."""
        found = self._client.key_value_dir_get(f"{_PREFIX}/{key}/")
        return {name.rsplit("/", 1)[1]: json.loads(value) for name, value in found}

    def drop(self, key: str) -> None:
        """Delete all keys below ``key``/."""
        self._client.key_value_delete(f"{_PREFIX}/{key}/")

    def refused(self) -> bool:
        """Whether nothing listens at the coordinator's address any more.

        Its machine refuses a connection at once, where calls of the service wait for long.
        """
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            # Without an answer it is not known.
            return False
        return False


def knows_cluster() -> bool:
    """Whether jax finds the processes of the run by itself: on TPU pods, under Slurm, Open MPI, …

    ``jax.distributed.initialize()`` asks the same before it starts.

    Raises:
        ConfigError: this version of jax asks in another way.
    """
    with _private_names():
        from jax._src.clusters import ClusterEnv

        kinds = ClusterEnv._cluster_types
        return any(not kind.opt_in_only_method and kind.is_env_present() for kind in kinds)


@contextlib.contextmanager
def _private_names() -> Iterator[None]:
    """Raise ConfigError where jax lacks a private name."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"jax {jax.__version__} has changed what joining several hosts needs ({error}); install"
            " a version of jax from 0.10 to 0.12"
        ) from error
