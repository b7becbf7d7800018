"""jobset.sh: a manifest that is YAML, whose pods and chips are those of the slice."""

from __future__ import annotations

import math

import pytest
import yaml
from cloud import CONFIG, Cloud, failed


def jobset(cloud: Cloud, *words: str, **settings: str) -> dict:
    given = {"IMAGE": "repo/llm_jax:1", "BUCKET": "gs://my-bucket", "DRY_RUN": "1", **settings}
    done = cloud.run("jobset.sh", *words, *([] if set(CONFIG) & set(words) else CONFIG), **given)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize(
    ("topology", "slices", "accelerator", "hosts", "chips"),
    [
        ("v5e:4x4", 2, "tpu-v5-lite-podslice", 4, 4),
        ("v6e:16x16", 1, "tpu-v6e-slice", 64, 4),
        ("v5p:2x2x4", 3, "tpu-v5p-slice", 4, 4),
        ("v4:2x2x1", 1, "tpu-v4-podslice", 1, 4),
        ("v6e:1x1", 1, "tpu-v6e-slice", 1, 1),
        ("tpu7x:4x4x4", 1, "tpu7x", 16, 4),
    ],
)
def test_the_jobset_has_a_pod_for_every_host_and_asks_for_its_chips(
    cloud, topology, slices, accelerator, hosts, chips
):
    made = jobset(cloud, "--topology", topology, "--slices", str(slices))
    assert (made["apiVersion"], made["kind"], made["metadata"]["name"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        "lm",
    )
    [job] = made["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert (job["replicas"], spec["completions"], spec["parallelism"]) == (slices, hosts, hosts)
    assert container["resources"] == {
        "requests": {"google.com/tpu": chips},
        "limits": {"google.com/tpu": chips},
    }
    shape = topology.partition(":")[2]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert hosts * chips == math.prod(map(int, shape.split("x")))


def test_the_jobset_runs_the_same_command_on_the_same_bucket(cloud):
    odd = 'a "quoted": \\ {word}'
    made = jobset(cloud, "--topology=v5e:4x4", "--spot", *CONFIG, odd)
    spec = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["command"] + pod["containers"][0]["args"] == [
        "llm-jax",
        "train",
        *CONFIG,
        odd,
    ]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "bucket", "mountPath": "/mnt/bucket"}]
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_the_jobset_starts_again_but_not_after_a_bad_setting(cloud):
    made = jobset(cloud, "--topology=v5e:4x4", "--max-restarts=7")["spec"]
    spec = made["replicatedJobs"][0]["template"]["spec"]
    assert made["failurePolicy"]["maxRestarts"] == 7
    assert made["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    assert made["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    [rule] = spec["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]},
    }
    # Kubernetes takes a podFailurePolicy with this restart policy only.
    assert spec["template"]["spec"]["restartPolicy"] == "Never" and spec["backoffLimit"] == 0


@pytest.mark.parametrize(
    ("topology", "text"),
    [
        ("v9:4x4", "TOPOLOGY is 'v9:4x4'; known chips are v4 v5e v5p v6e tpu7x, as in v5e:4x4"),
        ("v5e:4x4x4", "a shape of v5e has 2 numbers, as in 4x4"),
        ("v5p:4x4", "a shape of v5p has 3 numbers, as in 2x2x4"),
        ("v5e:16", "a shape of v5e has 2 numbers"),
        ("v5e:3x3", "9 chips do not fill hosts of 4"),
    ],
)
def test_slices_that_do_not_exist(cloud, topology, text):
    done = cloud.run(
        "jobset.sh", "--topology", topology, *CONFIG, IMAGE="i", BUCKET="gs://bb", DRY_RUN="1"
    )
    failed(done, 2, text)
    assert done.stdout == ""


def test_the_jobset_goes_to_kubectl(cloud):
    (cloud.place / "bin" / "kubectl").write_text(
        '#!/bin/sh\necho "$@" > "$STAND_IN/kubectl"\ncat >> "$STAND_IN/kubectl"\n'
    )
    (cloud.place / "bin" / "kubectl").chmod(0o755)
    words = ["jobset.sh", "--topology=v5e:4x4", "--image=i", "--bucket=gs://bb", *CONFIG]
    assert cloud.run(*words).returncode == 0
    assert (cloud.place / "kubectl").read_text() == "apply -f -\n" + cloud.run(
        *words, DRY_RUN="1"
    ).stdout
