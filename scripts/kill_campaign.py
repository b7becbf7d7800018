"""Kill a training run at random moments, again and again, and compare it bit for bit with an
uninterrupted one.

    python scripts/kill_campaign.py --kills 50

The same code as ``tests/training/test_kill.py`` runs five times. 50 kills take about five minutes
on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import jobs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="how many times the run is killed")
    parser.add_argument(
        "--seed", type=int, default=None, help="decides the moments; random if not given"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="where to work; a new temporary folder if not given",
    )
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill_campaign_"))
    steps = jobs.steps_for(options.kills)
    print(f"seed {seed}, {options.kills} kills, {steps} steps, in {folder}", flush=True)
    shards = jobs.make_shards(folder / "data")
    whole, killed = (
        jobs.make_job(folder / name, shards, folder / "cache", steps)
        for name in ("whole", "killed")
    )
    if whole.finish(timeout=1800):
        print(f"the uninterrupted run failed; see {whole.log}", file=sys.stderr)
        return 1
    jobs.kill_until_done(killed, options.kills, seed, say=lambda text: print(text, flush=True))
    a, b = jobs.result(killed), jobs.result(whole)
    different = [key for key in b if a[key] != b[key]]
    if different:
        print(
            f"NOT EQUAL in {', '.join(different)}: seed {seed}; look at {folder}", file=sys.stderr
        )
        return 1
    print(
        f"equal: {steps} steps, {len(b['eval'])} evaluations, {len(b['checksums'])} arrays of the"
        " final state"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
