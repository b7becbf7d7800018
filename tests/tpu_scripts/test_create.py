"""create.sh and delete.sh: the request as gcloud gets it, and every way in which it fails."""

from __future__ import annotations

import pytest
from cloud import PLACE_WORDS, failed

pytestmark = pytest.mark.process

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
