"""What create.sh asks of the Cloud TPU API by option, and what it refuses before it asks."""

from __future__ import annotations

import shlex

import pytest
from cloud import PLACE_WORDS, failed

LITE = ["--accelerator-type", "v5litepod-16", "--runtime-version", "v2-alpha-tpuv5-lite"]


def requested(cloud, *words: str) -> list[str]:
    """The words of the request, as a dry run prints them."""
    done = cloud.run("create.sh", *words, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[0])


PLAIN = ["queued-resources", "create", "lm", *LITE, "--node-id", "lm"]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--network=n", "--subnetwork=s"], ["--network", "n", "--subnetwork", "s"]),
        (["--internal-ips", "--iap"], ["--internal-ips"]),
        (
            ["--service-account=a@b", "--scopes=cloud-platform"],
            ["--service-account", "a@b", "--scopes", "cloud-platform"],
        ),
        (["--labels=team=a,job=b"], ["--labels", "team=a,job=b"]),
        (["--tags=ssh,iap"], ["--tags", "ssh,iap"]),
        (["--metadata=k=v w,x=y"], ["--metadata", "k=v w,x=y"]),
        (["--metadata-from-file=k=f.sh"], ["--metadata-from-file", "k=f.sh"]),
        (["--valid-until=1h30m"], ["--valid-until-duration", "1h30m"]),
        (["--timeout=90"], ["--valid-until-duration", "90s"]),
        (["--timeout=90", "--valid-until=2h"], ["--valid-until-duration", "2h"]),
        (
            ["--data-disk", "source=d source=e,mode=read-only"],
            ["--data-disk", "source=d", "--data-disk", "source=e,mode=read-only"],
        ),
    ],
)
def test_options_that_go_to_gcloud(cloud, words, given):
    assert requested(cloud, *words) == ["gcloud", "compute", "tpus", *PLAIN, *given, *PLACE_WORDS]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--reservation=r"], ["--reservation", "r"]),
        (
            ["--flex-start", "--max-run-duration=4h"],
            ["--provisioning-model", "flex-start", "--max-run-duration", "4h"],
        ),
        (
            ["--boot-disk=confidential-compute=true,kms-key=k"],
            ["--boot-disk", "confidential-compute=true,kms-key=k"],
        ),
    ],
)
def test_options_of_the_alpha_commands(cloud, words, given):
    alpha = ["gcloud", "alpha", "compute", "tpus", *PLAIN]
    assert requested(cloud, *words) == [*alpha, *given, *PLACE_WORDS]


def test_it_says_that_queued_resources_are_in_maintenance(cloud):
    done = cloud.run("create.sh", DRY_RUN="1")
    assert "in maintenance; --api compute-engine" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--valid-until=soon"], "VALID_UNTIL has 'soon'; give a duration, such as 90m or 2h"),
        (["--labels=Team=a"], "LABELS has 'Team=a'; give KEY=VALUE,KEY=VALUE of small letters"),
        (["--tags=a,B"], "TAGS has 'B'; give TAG,TAG of small letters"),
        (["--metadata=k"], "METADATA has 'k'; give KEY=VALUE,KEY=VALUE"),
        (["--metadata-from-file=k="], "METADATA_FROM_FILE has 'k='; give KEY=FILE"),
        (["--data-disk=d"], "DATA_DISK has 'd'; give source=DISK"),
        (["--data-disk=source=d,mode=rw"], "DATA_DISK has 'source=d,mode=rw'"),
        (["--boot-disk=size=200GB"], "BOOT_DISK has 'size=200GB'; give confidential-compute=true"),
        (["--flex-start"], "FLEX_START needs an end: give --max-run-duration, such as 4h"),
        (["--max-run-duration=4h"], "MAX_RUN_DURATION is '4h', and --api queued-resources has no"),
        (["--max-run-duration=4"], "MAX_RUN_DURATION has '4'; give a duration"),
        (["--spot", "--flex-start"], "SPOT and FLEX_START exclude each other; keep one"),
        (["--spot", "--reservation=r"], "SPOT and RESERVATION=r exclude each other; keep one"),
        (["--flex-start", "--reserved"], "FLEX_START and a reservation exclude each other"),
        (["--topology=v5e:4x4"], "TOPOLOGY is 'v5e:4x4', and --api queued-resources has no"),
        (["--image-family=f"], "IMAGE_FAMILY is 'f', and --api queued-resources has no"),
        (["--batch-size=0"], "BATCH_SIZE is '0'; give a number of connections, 1 or more"),
        (["--api=gke"], "API is 'gke'; on GKE use tpu_scripts/jobset.sh"),
        (["--api=tpu"], "API is 'tpu'; there are queued-resources and compute-engine"),
        (["--existing"], "lm is a VM that exists; there is nothing to create"),
        (["--existing", "--slices=2"], "EXISTING is one VM, and SLICES is 2"),
    ],
)
def test_options_that_are_wrong(cloud, words, text):
    failed(cloud.run("create.sh", *words), 2, f"create.sh: error: {text}")
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"ACCELERATOR_TYPE": "v9-8"},
            "ACCELERATOR_TYPE is 'v9-8'; known are v4-N v5litepod-N v5p-N v6e-N, as v5litepod-16",
        ),
        (
            {"ACCELERATOR_TYPE": "v5litepod"},
            "ACCELERATOR_TYPE is 'v5litepod'; its size is missing, as in v5litepod-16",
        ),
        (
            {"ACCELERATOR_TYPE": "tpu7x-32"},
            "ACCELERATOR_TYPE is 'tpu7x-32'; TPU7x and later are available through Compute Engine"
            " (--api compute-engine --topology tpu7x:2x2x1) or GKE (tpu_scripts/jobset.sh)",
        ),
        (
            {"RUNTIME_VERSION": "v2-alpha-tpuv6e"},
            "RUNTIME_VERSION is 'v2-alpha-tpuv6e', made for another chip than v5litepod-16",
        ),
        ({"TIMEOUT": "1h"}, "TIMEOUT is '1h'; give seconds"),
    ],
)
def test_requests_that_cannot_be_met(cloud, settings, text):
    failed(cloud.run("create.sh", **settings), 2, f"create.sh: error: {text}")
    assert cloud.calls() == []
