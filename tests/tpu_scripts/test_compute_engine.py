"""--api compute-engine: slices as instances and instance groups, and runs on their hosts."""

from __future__ import annotations

import shlex

import pytest
from cloud import Cloud, failed

PLACE = ["--project", "proj", "--zone", "us-west4-a"]
REGION = ["--project", "proj", "--region", "us-west4"]
ENGINE = {"API": "compute-engine", "ACCELERATOR_TYPE": "", "POLL": "0"}
GROUP = {**ENGINE, "TOPOLOGY": "tpu7x:2x2x2"}
ONE = {**ENGINE, "TOPOLOGY": "tpu7x:2x2x1"}
HOST = [
    *("--machine-type", "tpu7x-standard-4t", "--image-family", "ubuntu-accel-2404-amd64-tpu-tpu7x"),
    *("--image-project", "ubuntu-os-accelerator-images", "--maintenance-policy", "TERMINATE"),
    *("--scopes", "cloud-platform"),
]
RUN = ["configs/lm_1b.py", "--train.out=gs://bb/x"]
SUPERVISE = "llm_jax/source/tpu_scripts/supervise.sh"


def printed(cloud: Cloud, script: str, *words: str, **settings: str) -> list[list[str]]:
    """The commands of a dry run."""
    done = cloud.run(script, *words, **settings, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == []
    return [shlex.split(line) for line in done.stdout.splitlines()]


def gcloud(*words: str) -> list[str]:
    return ["gcloud", "compute", *words]


RESOURCES = "projects/proj/regions/us-west4"


def group_of(name: str) -> list[str]:
    words = ["create", name, "--size", "2", "--target-size-policy-mode", "bulk"]
    words += ["--default-action-on-vm-failure", "do-nothing"]
    words += ["--template", f"{RESOURCES}/instanceTemplates/lm"]
    words += ["--workload-policy", f"{RESOURCES}/resourcePolicies/lm"]
    return gcloud("instance-groups", "managed", *words, *PLACE)


def test_a_slice_of_one_host_is_an_instance(cloud):
    create, *_ = printed(cloud, "create.sh", **ONE)
    assert create == gcloud("instances", "create", "lm", *HOST, *PLACE)
    [delete] = printed(cloud, "delete.sh", "--yes", **ONE)
    assert delete == gcloud("instances", "delete", "lm", "--quiet", *PLACE)


def test_a_slice_of_several_hosts_is_a_group_with_its_template_and_topology(cloud):
    policy, template, *groups = printed(cloud, "create.sh", "--slices=2", **GROUP)
    words = ["--type", "HIGH_THROUGHPUT", "--accelerator-topology", "2x2x2", *REGION]
    assert policy == gcloud("resource-policies", "create", "workload-policy", "lm", *words)
    place = ["--project", "proj", "--instance-template-region", "us-west4"]
    assert template == gcloud("instance-templates", "create", "lm", *place, *HOST)
    assert groups[:2] == [group_of("lm-0"), group_of("lm-1")]


def test_what_a_group_was_made_of_is_deleted_after_it(cloud):
    commands = printed(cloud, "delete.sh", "--yes", "--slices=2", **GROUP)
    groups = [
        gcloud("instance-groups", "managed", "delete", name, "--quiet", *PLACE)
        for name in ("lm-0", "lm-1")
    ]
    template = gcloud("instance-templates", "delete", "lm", "--quiet", *REGION)
    policy = gcloud("resource-policies", "delete", "lm", "--quiet", *REGION)
    assert commands == [*groups, template, policy]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--spot"], ["--provisioning-model", "SPOT", "--instance-termination-action", "STOP"]),
        (
            ["--flex-start", "--max-run-duration=4h", "--valid-until=2h"],
            [
                *("--provisioning-model", "FLEX_START", "--max-run-duration", "4h"),
                *("--instance-termination-action", "DELETE"),
                *("--request-valid-for-duration", "2h"),
            ],
        ),
        (
            ["--reservation=r"],
            [
                *("--provisioning-model", "RESERVATION_BOUND"),
                *("--reservation-affinity", "specific", "--reservation", "r"),
            ],
        ),
        (
            ["--network=n", "--subnetwork=s", "--internal-ips"],
            ["--network", "n", "--subnet", f"{RESOURCES}/subnetworks/s", "--no-address"],
        ),
        (["--subnetwork=projects/p/x/s"], ["--subnet", "projects/p/x/s"]),
        (
            ["--service-account=a@b", "--labels=k=v", "--tags=t", "--metadata=a=b"],
            [
                *("--service-account", "a@b", "--labels", "k=v", "--tags", "t"),
                *("--metadata", "a=b"),
            ],
        ),
        (
            ["--boot-disk=size=200GB,type=hyperdisk-balanced"],
            ["--boot-disk-size", "200GB", "--boot-disk-type", "hyperdisk-balanced"],
        ),
        (
            ["--data-disk", "source=projects/p/d mode=read-only,source=e"],
            ["--disk", "name=d,mode=rw", "--disk", "name=e,mode=ro"],
        ),
    ],
)
def test_options_of_an_instance(cloud, words, given):
    create, *_ = printed(cloud, "create.sh", *words, **ONE)
    assert create == gcloud("instances", "create", "lm", *HOST, *given, *PLACE)


def test_scopes_of_your_own_replace_the_usual_one(cloud):
    words = ["--scopes=storage-full", "--metadata-from-file=k=f", "--spot", "--max-run-duration=4h"]
    create, *_ = printed(cloud, "create.sh", *words, **ONE)
    given = ["--provisioning-model", "SPOT", "--instance-termination-action", "STOP"]
    given += ["--max-run-duration", "4h", "--metadata-from-file", "k=f"]
    assert create == gcloud("instances", "create", "lm", *HOST[:-1], "storage-full", *given, *PLACE)


def test_machines_and_images_are_chosen(cloud):
    words = ["--topology=v6e:2x4", "--machine-type=ct6e-standard-8t", "--image-family=mine"]
    create, *_ = printed(cloud, "create.sh", *words, "--image-project=own", **ENGINE)
    image = ["--image-family", "mine", "--image-project", "own"]
    assert create[4:11] == ["lm", "--machine-type", "ct6e-standard-8t", *image]
    create, *_ = printed(cloud, "create.sh", "--topology=v5p:2x2x1", **ENGINE)
    assert create[6:9:2] == ["ct5p-hightpu-4t", "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--topology="], "--topology needs a value"),
        (["--topology=v5e:4x4"], "Compute Engine makes slices of v5p v6e tpu7x"),
        (["--topology=tpu7x:2x2x1", "--slices=2"], "several slices work together only where each"),
        (["--reserved"], "Compute Engine takes a reservation by its name: give --reservation R"),
        (["--valid-until=2h"], "on Compute Engine only a --flex-start instance has it"),
        (
            ["--accelerator-type=v6e-8"],
            "ACCELERATOR_TYPE is 'v6e-8', and --api compute-engine has no",
        ),
        (
            ["--boot-disk=confidential-compute=true"],
            "BOOT_DISK has 'confidential-compute=true'; give size=",
        ),
    ],
)
def test_slices_that_cannot_be_had(cloud, words, text):
    failed(cloud.run("create.sh", *words, **GROUP), 2, text)
    assert cloud.calls() == []


def test_a_topology_is_needed_by_every_script(cloud):
    for script in ("status.sh", "stop.sh"):
        failed(cloud.run(script, **ENGINE), 2, "TOPOLOGY is not set: export TOPOLOGY=…")


# With hosts ---------------------------------------------------------------------------------------


@pytest.fixture
def group(cloud):
    """Two slices of two hosts each."""
    for host in ("lm-0/lm-0-x0", "lm-0/lm-0-x1", "lm-1/lm-1-x0", "lm-1/lm-1-x1"):
        (cloud.place / "hosts" / host).mkdir(parents=True)
    return cloud


@pytest.mark.process
def test_a_group_is_ready_when_all_of_its_hosts_are(cloud):
    done = cloud.run("create.sh", **GROUP)
    assert done.returncode == 0, done.stderr
    assert "lm is ready: lm" in done.stderr and len(cloud.hosts()) == 2


@pytest.mark.process
def test_every_host_is_told_its_place(group):
    group.answer("ssh", status=0)
    done = group.run("launch.sh", "--slices=2", *RUN, **GROUP)
    assert done.returncode == 0, done.stderr
    sent = sorted(call for call in group.calls() if call[1] == "ssh")
    assert [call[2] for call in sent] == ["lm-0-x0", "lm-0-x1", "lm-1-x0", "lm-1-x1"]
    for index, call in enumerate(sent):
        assert call[3] == (
            "--command=cd llm_jax/source && tpu_scripts/supervise.sh start -- env"
            f" JAX_COORDINATOR_ADDRESS=lm-0-x0:8476 JAX_NUM_PROCESSES=4 JAX_PROCESS_ID={index}"
            " MEGASCALE_COORDINATOR_ADDRESS=lm-0-x0:8080 MEGASCALE_NUM_SLICES=2"
            f" MEGASCALE_SLICE_ID={index // 2} ../venv/bin/llm-jax train {' '.join(RUN)}"
        )


@pytest.mark.process
def test_hosts_through_a_tunnel_a_few_at_a_time(group):
    group.answer("ssh", out="w stopped 143\n", status=0)
    done = group.run("stop.sh", "--slices=2", "--iap", "--batch-size=1", **GROUP)
    assert done.stdout == "w stopped 143\n" * 4
    sent = [call for call in group.calls() if call[1] == "ssh"]
    assert [call[2] for call in sent] == ["lm-0-x0", "lm-0-x1", "lm-1-x0", "lm-1-x1"]
    route = [f"--command={SUPERVISE} stop", "--tunnel-through-iap", *PLACE]
    assert all(call[3:] == route for call in sent)


@pytest.mark.process
def test_a_host_that_fails_or_is_missing_is_named(group):
    group.answer("ssh", "lm-", status=0)
    group.answer("ssh", "lm-1-x0", err="no route\n", status=255)
    done = group.run("stop.sh", "--slices=2", **GROUP)
    failed(done, 1, "host lm-1-x0: exit status 255", "ssh-add")
    group.answer("list-instances", "lm-1", out="lm-1-x0\n")
    done = group.run("stop.sh", "--slices=2", **GROUP)
    failed(done, 1, "lm has 3 hosts and not 4; tpu_scripts/status.sh shows them")


@pytest.mark.process
def test_states_of_a_group(group):
    group.answer("ssh", out="w running\n", status=0)
    done = group.run("status.sh", "--slices=2", **GROUP)
    lines = ["instance group lm ACTIVE", "node lm-0 READY", "node lm-1 READY"]
    assert done.stdout.splitlines() == [*lines, *["w running"] * 4]
    group.answer("list-instances", "lm-1", "instanceStatus", out="RUNNING\nTERMINATED\n")
    done = group.run("status.sh", "--slices=2", **GROUP)
    failed(done, 1, "not every node is ready")
    assert "node lm-1 TERMINATED" in done.stdout


@pytest.mark.process
def test_it_waits_for_all_hosts_and_deletes_what_does_not_come(cloud):
    cloud.answer("list-instances", out="RUNNING\n\n")
    done = cloud.run("create.sh", "--timeout=1", **GROUP)
    failed(done, 1, "lm is not ready after 1 s ((lm is CREATING)) and was deleted")
    deleted = [call[1:3] for call in cloud.calls() if "delete" in call]
    assert deleted == [
        ["instance-groups", "managed"],
        ["instance-templates", "delete"],
        ["resource-policies", "delete"],
    ]


@pytest.mark.process
def test_what_is_gone_already_is_no_error_to_delete(cloud):
    gone = "ERROR: The resource 'lm' was not found\n"
    cloud.answer("delete", err=gone, status=1)
    assert cloud.run("delete.sh", "--yes", **GROUP).returncode == 0
    assert len(cloud.calls()) == 3
    cloud.answer("instance-groups", "delete", err="ERROR: forbidden\n", status=1)
    done = cloud.run("delete.sh", "--yes", **GROUP)
    failed(done, 1, "forbidden", "lm could not be deleted")
    assert len(cloud.calls()) == 4, "what hosts may still need is left"


@pytest.mark.process
@pytest.mark.parametrize("made", ["resource-policies", "instance-templates", "instance-groups"])
def test_a_taken_name_says_so_and_nothing_is_deleted(cloud, made):
    cloud.answer(made, "create", err="ERROR: The resource 'lm' already exists\n", status=1)
    failed(cloud.run("create.sh", **GROUP), 1, "lm exists already; look with")
    assert not [call for call in cloud.calls() if "delete" in call]


@pytest.mark.process
def test_a_request_that_fails_halfway_leaves_nothing_that_costs(cloud):
    cloud.answer("instance-groups", "create", "lm-1", err="ERROR: Quota exceeded\n", status=1)
    done = cloud.run("create.sh", "--slices=2", **GROUP)
    failed(done, 1, "the quota of proj in us-west4-a does not allow 2 x tpu7x:2x2x2")
    assert cloud.hosts() == []
    assert [call[1] for call in cloud.calls()[-4:]] == [
        *("instance-groups", "instance-groups", "instance-templates", "resource-policies")
    ]
    cloud.answer("delete", err="ERROR: forbidden\n", status=1)
    done = cloud.run("create.sh", "--slices=2", **GROUP)
    failed(done, 1, "what is half made could not be deleted, and may cost money")


@pytest.mark.process
def test_before_anything_is_made_nothing_is_deleted(cloud):
    cloud.answer("create", err="ERROR: PERMISSION_DENIED\n", status=1)
    failed(cloud.run("create.sh", **GROUP), 1, "gcloud could not request lm")
    assert not [call for call in cloud.calls() if "delete" in call]


@pytest.mark.process
def test_an_instance_that_was_there_before(cloud):
    (cloud.place / "hosts" / "lm" / "lm").mkdir(parents=True)
    cloud.answer("ssh", out="w running\n", status=0)
    cloud.answer("instances", "describe", out="RUNNING\n")
    done = cloud.run("status.sh", "--existing", **ENGINE)
    assert done.stdout.splitlines() == ["instance lm ACTIVE", "node lm READY", "w running"]
