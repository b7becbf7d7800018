"""create.sh and delete.sh: the request as gcloud gets it, and every way in which it fails."""

from __future__ import annotations

import shlex

import pytest
from cloud import PLACE_WORDS, failed

LITE = ["--accelerator-type", "v5litepod-16", "--runtime-version", "v2-alpha-tpuv5-lite"]
QUEUE_STATE = ["queued-resources", "describe", "lm", "--format=value(state.state)", *PLACE_WORDS]


def node_state(name: str) -> list[str]:
    return ["tpu-vm", "describe", name, "--format=value(state)", *PLACE_WORDS]


def test_one_slice_on_demand(cloud):
    done = cloud.run("create.sh")
    assert done.returncode == 0, done.stderr
    request = ["queued-resources", "create", "lm", *LITE, "--node-id", "lm", *PLACE_WORDS]
    assert cloud.calls() == [request, QUEUE_STATE, node_state("lm")]
    assert "create.sh: lm is ready: lm" in done.stderr


def test_three_spot_slices_wait_in_the_queue_and_for_every_node(cloud):
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        cloud.answer("queued-resources", "describe", "lm", out=f"{state}\n")
    cloud.answer("tpu-vm", "describe", "lm-1", out="CREATING\n")
    cloud.answer("tpu-vm", "describe", "lm-1", out="READY\n")
    done = cloud.run("create.sh", "--spot", "--slices=3")
    assert done.returncode == 0, done.stderr
    request = [
        "queued-resources",
        "create",
        "lm",
        *LITE,
        "--node-count",
        "3",
        "--node-prefix",
        "lm",
        "--spot",
        *PLACE_WORDS,
    ]
    once_more = [
        QUEUE_STATE,
        node_state("lm-0"),
        node_state("lm-1"),
        QUEUE_STATE,
        *map(node_state, ("lm-0", "lm-1", "lm-2")),
    ]
    assert cloud.calls() == [request, QUEUE_STATE, QUEUE_STATE, *once_more]
    for text in (
        "waiting WAITING_FOR_RESOURCES",
        "waiting PROVISIONING",
        "waiting (lm-1 is CREATING)",
        "is ready: lm-0 lm-1 lm-2",
    ):
        assert f"lm{':' * text.startswith('waiting')} {text}" in done.stderr


@pytest.mark.parametrize(
    ("chip", "image"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v2-alpha-tpuv6e"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
    ],
)
def test_each_chip_has_its_image(cloud, chip, image):
    assert cloud.run("create.sh", ACCELERATOR_TYPE=chip).returncode == 0
    assert cloud.calls()[0][3:7] == ["--accelerator-type", chip, "--runtime-version", image]


def test_an_image_of_your_own_is_taken(cloud):
    assert cloud.run("create.sh", "--runtime-version", "my-image", "--reserved").returncode == 0
    assert cloud.calls()[0][5:10] == [
        "--runtime-version",
        "my-image",
        "--node-id",
        "lm",
        "--reserved",
    ]


QUOTA = (
    "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit"
    " 'TPUV5sLitepod' has been exceeded. Limit: 0\n"
)
EXISTS = (
    "ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource 'lm' already"
    " exists\n"
)
DENIED = (
    "ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: tpu.googleapis.com is"
    " not enabled\n"
)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            QUOTA,
            (
                "the quota of proj in us-west4-a does not allow 2 x v5litepod-16 (spot); ask for"
                " more at"
            ),
        ),
        (
            EXISTS,
            (
                "lm exists already; look with tpu_scripts/status.sh, take it away with"
                " tpu_scripts/delete.sh"
            ),
        ),
        (DENIED, "gcloud could not request lm; its words are above"),
    ],
)
def test_a_refused_request_ends_at_once_with_gclouds_words_and_the_fix(cloud, words, text):
    cloud.answer("create", err=words, status=1)
    failed(cloud.run("create.sh", "--spot", "--slices", "2"), 1, words, text)
    assert len(cloud.calls()) == 1


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "SUSPENDING", "DELETING"])
def test_a_request_that_comes_to_nothing_is_shown_and_names_the_way_out(cloud, state):
    cloud.answer("queued-resources", "describe", "lm", out="state:\n  error: no capacity\n")
    cloud.answer("queued-resources", "describe", "state.state", "lm", out=f"{state}\n")
    done = cloud.run("create.sh")
    failed(
        done,
        1,
        "error: no capacity",
        f"lm is {state}; take it away with tpu_scripts/delete.sh and create it again",
    )
    assert cloud.calls()[-1] == ["queued-resources", "describe", "lm", *PLACE_WORDS]


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "STOPPED"])
def test_a_half_made_slice_names_the_node_that_is_missing(cloud, state):
    cloud.answer("tpu-vm", "describe", "lm-1", out=f"{state}\n")
    done = cloud.run("create.sh", "--slices", "2")
    failed(
        done,
        1,
        f"lm is half made: node lm-1 is {state}; take it away with tpu_scripts/delete.sh and create"
        " it again",
    )


def test_a_node_that_is_not_there(cloud):
    cloud.answer(
        "tpu-vm",
        "describe",
        "lm-1",
        err="ERROR: NOT_FOUND: Resource 'lm-1' was not found\n",
        status=1,
    )
    failed(cloud.run("create.sh", "--slices", "2"), 1, "lm is half made: node lm-1 is NOT_FOUND")


def test_a_state_that_cannot_be_read_now_and_then_does_not_matter(cloud):
    cloud.answer("describe", "state.state", err="ERROR: no network\n", status=1, times=9)
    cloud.answer("describe", "state.state", out="ACTIVE\n")
    assert cloud.run("create.sh").returncode == 0


def test_a_state_that_can_never_be_read_ends_it(cloud):
    cloud.answer("describe", "state.state", err="ERROR: no network\n", status=1)
    failed(
        cloud.run("create.sh"),
        1,
        "ERROR: no network",
        "the state of lm cannot be read, ten times in a row",
    )


DELETED = ["queued-resources", "delete", "lm", "--force", "--quiet", *PLACE_WORDS]


def test_what_has_not_come_in_time_is_deleted_and_can_never_come(cloud):
    cloud.answer("describe", "state.state", out="WAITING_FOR_RESOURCES\n")
    done = cloud.run("create.sh", "--timeout", "1")
    failed(done, 1, "lm is not ready after 1 s (WAITING_FOR_RESOURCES) and was deleted")
    create, *_, last = cloud.calls()
    assert last == DELETED
    assert create[create.index("--valid-until-duration") + 1] == "1s"


def test_what_could_not_be_deleted_after_its_time_may_come(cloud):
    cloud.answer("describe", "state.state", out="PROVISIONING\n")
    cloud.answer("delete", err="ERROR: PERMISSION_DENIED\n", status=1)
    failed(cloud.run("create.sh", "--timeout", "1"), 1, "PERMISSION_DENIED", "may come and cost")


def test_a_request_is_kept_in_the_queue_only_where_that_is_asked_for(cloud):
    cloud.answer("describe", "state.state", out="WAITING_FOR_RESOURCES\n")
    done = cloud.run("create.sh", "--timeout=1", "--keep", "--valid-until=2h")
    failed(done, 1, "it stays in the queue and costs when it comes, until 2h after its request")
    assert not [call for call in cloud.calls() if call[1] == "delete"]


# Options ------------------------------------------------------------------------------------------


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


def test_it_says_that_queued_resources_are_only_mended(cloud):
    done = cloud.run("create.sh", DRY_RUN="1")
    assert "get only fixes from Google; --api compute-engine" in done.stderr


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
        (["--boot-disk=size=200GB"], "BOOT_DISK has 'size=200GB'; queued resources take"),
        (["--flex-start"], "FLEX_START needs an end: give --max-run-duration, such as 4h"),
        (["--max-run-duration=4h"], "MAX_RUN_DURATION is '4h'; queued resources have no place"),
        (["--max-run-duration=4"], "MAX_RUN_DURATION has '4'; give a duration"),
        (["--spot", "--flex-start"], "SPOT and FLEX_START exclude each other; keep one"),
        (["--spot", "--reservation=r"], "SPOT and RESERVATION=r exclude each other; keep one"),
        (["--flex-start", "--reserved"], "FLEX_START and a reservation exclude each other"),
        (["--topology=v5e:4x4"], "TOPOLOGY is 'v5e:4x4'; queued resources have no place for it"),
        (["--image-family=f"], "IMAGE_FAMILY is 'f'; queued resources have no place for it"),
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
            "ACCELERATOR_TYPE is 'tpu7x-32'; TPU7x and later are had through Compute Engine (--api"
            " compute-engine --topology tpu7x:2x2x1) or GKE (tpu_scripts/jobset.sh)",
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


def test_delete_takes_the_nodes_along_and_lets_gcloud_ask(cloud):
    assert cloud.run("delete.sh").returncode == 0
    assert cloud.run("delete.sh", "--yes").returncode == 0
    words = ["queued-resources", "delete", "lm", "--force"]
    assert cloud.calls() == [[*words, *PLACE_WORDS], [*words, "--quiet", *PLACE_WORDS]]


def test_what_could_not_be_deleted_may_still_cost(cloud):
    cloud.answer("delete", err="ERROR: PERMISSION_DENIED\n", status=1)
    failed(
        cloud.run("delete.sh"),
        1,
        "PERMISSION_DENIED",
        "lm could not be deleted",
        "It may still cost money",
    )


def test_a_vm_that_was_there_before_is_not_deleted(cloud):
    failed(cloud.run("delete.sh", "--existing", "--yes"), 2, "they do not delete it")
    assert cloud.calls() == []
