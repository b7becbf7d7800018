"""One process of a group: ``llm-jax`` as it is, with the fault named in FAULT put into the reading
of data.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import count

from llm_jax.cli import main
from llm_jax.data.loading.loader import Loader
from llm_jax.multihost.watchdog import Watchdog
from llm_jax.types import DataError


def put(fault: str) -> None:
    """``slow SECONDS``: each batch takes so long. ``stuck STEP``, ``broken STEP``, ``ends STEP``:
    from that step on. ``differs``: not here.

    Prints when it begins; a difference begins when the hosts compare.
    """
    kind, _, number = fault.partition(" ")
    batch, iterate, barrier_check = Loader.batch, Loader.iterate, Watchdog.barrier_check

    def begins():
        print(f"FAULT {time.time()}", file=sys.stderr, flush=True)

    def faulty(self, step):
        if kind == "slow":
            time.sleep(float(number))
        elif kind == "stuck" and step == int(number):
            time.sleep(3600)
        elif kind == "broken" and step == int(number):
            raise DataError("shard 'tokens-train.array_record-00000' is damaged")
        return batch(self, step)

    def reading(self, start=0):
        """Batches are made ahead: the fault begins when one is waited for."""
        items, first = iterate(self, start), start if kind == "slow" else int(number)
        try:
            for step in count(start):
                if step == first:
                    begins()
                if kind == "ends" and step == first:
                    return
                yield next(items)
        finally:
            items.close()

    def agreeing(self, stage, fingerprint):
        begins()
        barrier_check(self, stage, fingerprint)

    if kind == "differs":
        Watchdog.barrier_check = agreeing
    else:
        Loader.batch, Loader.iterate = faulty, reading


if __name__ == "__main__":
    if os.environ.get("FAULT"):
        put(os.environ["FAULT"])
    sys.exit(main(sys.argv[1:]))
