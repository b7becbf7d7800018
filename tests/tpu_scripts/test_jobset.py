"""jobset.sh: manifests that Kubernetes takes, whose pods and chips are those of the slice, and what
kubectl is told.
"""

from __future__ import annotations

import math
import os
import re
import subprocess

import pytest
import yaml
from cloud import CONFIG, Cloud, failed
from schema import faults

BUCKET = {"BUCKET": "gs://my-bucket"}
NATIVE = ("configs/lm_1b.py", "--train.out=gs://my-bucket/runs/x")


def manifest(cloud: Cloud, *words: str) -> dict:
    """What a dry run prints, without a fault."""
    run = () if CONFIG[0] in words else CONFIG
    mounted = {} if any("gs://" in word for word in words) else BUCKET
    done = cloud.run("jobset.sh", *words, *run, IMAGE="repo/llm_jax:1", DRY_RUN="1", **mounted)
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load(done.stdout)
    assert list(faults(made)) == []
    return made


def job_of(made: dict) -> dict:
    return made["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(made: dict) -> dict:
    return job_of(made)["template"]["spec"]


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
    made = manifest(cloud, "--topology", topology, "--slices", str(slices))
    assert made["metadata"]["name"] == "lm"
    job = job_of(made)
    [container] = pod_of(made)["containers"]
    replicas = made["spec"]["replicatedJobs"][0]["replicas"]
    assert (replicas, job["completions"], job["parallelism"]) == (slices, hosts, hosts)
    assert container["resources"] == {
        "requests": {"google.com/tpu": chips},
        "limits": {"google.com/tpu": chips},
    }
    shape = topology.partition(":")[2]
    assert pod_of(made)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert hosts * chips == math.prod(map(int, shape.split("x")))


@pytest.mark.parametrize(
    ("words", "hosts", "chips", "machine"),
    [
        (["--topology=v5e:2x4"], 2, 4, "ct5lp-hightpu-4t"),
        (["--topology=v5e:2x4", "--machine-type=ct5lp-hightpu-8t"], 1, 8, "ct5lp-hightpu-8t"),
        (["--topology=v6e:2x4", "--machine-type=ct6e-standard-8t"], 1, 8, "ct6e-standard-8t"),
        (["--topology=v6e:4x4", "--machine-type=ct6e-standard-4t"], 4, 4, "ct6e-standard-4t"),
    ],
)
def test_the_machine_is_chosen_where_a_shape_is_on_two_kinds(cloud, words, hosts, chips, machine):
    made = manifest(cloud, *words)
    assert job_of(made)["completions"] == hosts
    assert pod_of(made)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod_of(made)["nodeSelector"]["node.kubernetes.io/instance-type"] == machine


# What Kubernetes does with a manifest -------------------------------------------------------------


def expanded(word: str) -> str:
    """As Kubernetes reads a word of a command: $$ is $, and $(NAME) is a variable."""
    return re.sub(r"\$\$|\$\([A-Za-z_]+\)", lambda m: "$" if m[0] == "$$" else "LOST", word)


def action_after(made: dict, exit_code: int, disrupted: bool = False) -> str:
    """What happens to the JobSet when a pod ends so: its Job's policy, then the JobSet's rules."""
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for i, rule in enumerate(job_of(made)["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {"values": []})["values"]
        if exit_code in codes or (disrupted and "onPodConditions" in rule):
            reason = "PodFailurePolicy"
            what = (
                f"Container train for pod ns/lm-slice-0-0-x2 failed with exit code {exit_code}"
                if exit_code in codes
                else "Pod ns/lm-slice-0-0-x2 has condition DisruptionTarget"
            )
            message = f"{what} matching {rule['action']} rule at index {i}"
            break
    for rule in made["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_it_starts_again_but_not_after_a_bad_setting_and_counts_what_went_wrong(cloud):
    made = manifest(cloud, "--topology=v5e:4x4", "--max-restarts=7")
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert job_of(made)["backoffLimit"] == 0
    # Kubernetes takes a podFailurePolicy with this restart policy only.
    assert pod_of(made)["restartPolicy"] == "Never"
    assert action_after(made, 2) == action_after(made, 2, disrupted=True) == "FailJobSet"
    # The webhook of JobSet takes these letters only, which its schema does not say.
    names = [rule["name"] for rule in made["spec"]["failurePolicy"]["rules"]]
    assert all(re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", name) for name in names)
    for code in (1, 22, 75, 139):
        assert action_after(made, code) == "RestartJobSet"
    assert action_after(made, 143) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action_after(made, 137, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"


def test_exit_statuses_that_do_not_count_are_chosen_and_in_order(cloud):
    made = manifest(cloud, "--topology=v5e:4x4", "--uncounted", "143 75 143")
    assert job_of(made)["podFailurePolicy"]["rules"][2]["onExitCodes"]["values"] == [75, 143]
    assert action_after(made, 75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action_after(made, 1) == "RestartJobSet"


ODD = 'a "quoted": \\ {word} $(HOME) $$ $HOME'


def test_a_run_on_the_bucket_itself_mounts_nothing(cloud):
    made = manifest(cloud, "--topology=v5e:4x4", *NATIVE, ODD)
    container = pod_of(made)["containers"][0]
    words = [*container["command"], *map(expanded, container["args"])]
    assert words == ["llm-jax", "train", *NATIVE, ODD]
    assert "volumes" not in pod_of(made) and "volumeMounts" not in container
    assert "metadata" not in job_of(made)["template"]


def test_a_mounted_bucket_is_exact_and_its_sidecar_unbounded(cloud):
    made = manifest(cloud, "--topology=v5e:4x4", "--mount=/data", CONFIG[0], "--train.out=/data/x")
    pod = pod_of(made)
    assert pod["containers"][0]["volumeMounts"] == [{"name": "bucket", "mountPath": "/data"}]
    [volume] = pod["volumes"]
    options = volume["csi"]["volumeAttributes"].pop("mountOptions").split(",")
    assert volume["csi"]["volumeAttributes"] == {"bucketName": "my-bucket"}
    assert set(options) == {
        "implicit-dirs",
        "file-system:rename-dir-limit:0",
        "metadata-cache:ttl-secs:0",
        "metadata-cache:negative-ttl-secs:0",
    }
    assert job_of(made)["template"]["metadata"]["annotations"] == {
        "gke-gcsfuse/volumes": "true",
        "gke-gcsfuse/cpu-limit": "0",
        "gke-gcsfuse/memory-limit": "0",
        "gke-gcsfuse/ephemeral-storage-limit": "0",
    }


@pytest.mark.process
@pytest.mark.parametrize("renames", [True, False])
def test_the_pod_tries_a_rename_before_it_trains(cloud, renames):
    folder = cloud.place / "mnt"
    out = f"--train.out={folder}/x"
    made = manifest(cloud, "--topology=v5e:4x4", f"--mount={folder}", CONFIG[0], out, ODD)
    container = pod_of(made)["containers"][0]
    tools = {"llm-jax": 'printf "%s\\n" "$@"'} | ({} if renames else {"mv": "exit 1"})
    for name, line in tools.items():
        (cloud.place / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (cloud.place / "bin" / name).chmod(0o755)
    folder.mkdir()
    done = subprocess.run(
        [*map(expanded, container["command"]), *map(expanded, container["args"])],
        env={"PATH": f"{cloud.place / 'bin'}:{os.environ['PATH']}", "HOSTNAME": "pod-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if renames:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == ["train", CONFIG[0], out, ODD]
        assert list(folder.iterdir()) == []
    else:
        failed(done, 2, "renamed in one step", "--enable-hierarchical-namespace")
        assert done.stdout == ""


# Options ------------------------------------------------------------------------------------------


def test_options_of_the_cluster(cloud):
    made = manifest(
        cloud,
        *("--topology=v5e:4x4", "--namespace=team", "--queue=tpus", "--queue-priority=high"),
        *("--priority=urgent", "--service-account=trainer", "--image-pull-secret=registry"),
        *("--pod-env", "A=1 B=x=$(y)", "--secrets", "HF_TOKEN=hf:token all-keys"),
        *("--host-network", "--reservation=ours"),
    )
    assert made["metadata"]["namespace"] == "team"
    assert made["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "tpus",
        "kueue.x-k8s.io/priority-class": "high",
    }
    pod, [container] = pod_of(made), pod_of(made)["containers"]
    assert pod["priorityClassName"] == "urgent" and pod["serviceAccountName"] == "trainer"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["hostNetworkPodKSA"] == "true"
    assert pod["nodeSelector"]["cloud.google.com/reservation-name"] == "ours"
    plain, other, secret = container["env"]
    assert plain == {"name": "A", "value": "1"}
    assert (other["name"], expanded(other["value"])) == ("B", "x=$(y)")
    assert secret["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert container["envFrom"] == [{"secretRef": {"name": "all-keys"}}]


def test_grace_is_what_the_platform_gives(cloud):
    words = ["--topology=v5e:4x4"]
    assert pod_of(manifest(cloud, *words))["terminationGracePeriodSeconds"] == 600
    spot = pod_of(manifest(cloud, *words, "--spot"))
    assert spot["terminationGracePeriodSeconds"] == 15
    assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    longer = pod_of(manifest(cloud, *words, "--spot", "--grace=120"))
    assert longer["terminationGracePeriodSeconds"] == 120
    flexible = pod_of(manifest(cloud, *words, "--flex-start"))["nodeSelector"]
    assert flexible["cloud.google.com/gke-flex-start"] == "true"


def test_a_unique_name_has_the_time(cloud):
    name = manifest(cloud, "--topology=v5e:4x4", "--unique")["metadata"]["name"]
    assert re.fullmatch(r"lm-\d{4}-\d{6}", name)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--topology=v9:4x4"], "known chips are v4 v5e v5p v6e tpu7x, as in v5e:4x4"),
        (["--topology=v5e:4x4x4"], "a shape of v5e has 2 numbers, as in 4x4"),
        (["--topology=v5p:4x4"], "a shape of v5p has 3 numbers, as in 2x2x4"),
        (["--topology=v5e:16"], "a shape of v5e has 2 numbers"),
        (["--topology=v5e:3x3"], "9 chips do not fill hosts of 4"),
        (["--topology=v5e:1x2"], "no machine has 2 chips; a slice has 1, or a multiple of 4"),
        (
            ["--topology=v5e:2x2", "--slices=2"],
            "SLICES is 2 and v5e:2x2 is one host; several slices work together only where each has"
            " several hosts, as in v5e:4x4",
        ),
        (
            ["--topology=v5e:2x4", "--slices=2", "--machine-type=ct5lp-hightpu-8t"],
            "SLICES is 2 and v5e:2x4 is one host",
        ),
        (
            ["--topology=v5e:4x4", "--machine-type=ct5lp-hightpu-8t"],
            "machines of eight chips are v5e:2x4 or v6e:2x4 by themselves, not v5e:4x4",
        ),
        (
            ["--topology=v5p:2x2x2", "--machine-type=ct5p-hightpu-8t"],
            "machines of eight chips are v5e:2x4 or v6e:2x4 by themselves",
        ),
        (
            ["--topology=v5e:2x4", "--machine-type=ct6e-standard-8t"],
            "MACHINE_TYPE is 'ct6e-standard-8t'; v5e:2x4 is on ct5lp-hightpu-4t, on"
            " ct5lp-hightpu-8t where it is 2x4",
        ),
        (["--topology=v5e:4x4", "--grace=soon"], "GRACE is 'soon'; give seconds"),
        (["--topology=v5e:4x4", "--grace=0"], "GRACE is 0, and pods could not save"),
        (
            ["--topology=v5e:4x4", "--spot", "--grace=600"],
            "a spot node gives its pods 15 s, or up to 120",
        ),
        (["--topology=v5e:4x4", "--uncounted=2 143"], "UNCOUNTED has 2, which is a bad setting"),
        (["--topology=v5e:4x4", "--uncounted=256"], "UNCOUNTED has '256'; give exit statuses"),
        (["--topology=v5e:4x4", "--pod-env=A"], "POD_ENV has 'A'; give NAME=VALUE words"),
        (["--topology=v5e:4x4", "--secrets=A=b"], "SECRETS has 'A=b'; give NAME=SECRET:KEY"),
        (["--topology=v5e:4x4", "--queue-priority=p"], "without a QUEUE; give --queue too"),
        (["--topology=v5e:4x4", "--unique", "--replace"], "UNIQUE and REPLACE exclude each other"),
        (["--topology=v5e:4x4", "--name=LM_1"], "NAME is 'LM_1'; Kubernetes takes small letters"),
        (["--topology=v5e:4x4", f"--name={'n' * 50}"], "would have 66 letters and may have 63"),
        (["--topology=v5e:4x4", "--spot", "--flex-start"], "SPOT and FLEX_START exclude"),
        (["--topology=v5e:4x4", "--accelerator-type=v5e"], "unknown flag --accelerator-type"),
    ],
)
def test_job_sets_that_could_not_run(cloud, words, text):
    done = cloud.run("jobset.sh", *words, *CONFIG, IMAGE="i", **BUCKET, DRY_RUN="1")
    failed(done, 2, text)
    assert done.stdout == ""


def test_a_folder_that_nothing_mounts(cloud):
    done = cloud.run("jobset.sh", "--topology=v5e:4x4", "--image=i", *CONFIG, DRY_RUN="1")
    failed(done, 2, "BUCKET is not set: export BUCKET=gs://…")


def test_a_manifest_with_a_fault_is_seen(cloud):
    """The schema is strict: what it is to catch, it catches."""
    made = manifest(cloud, "--topology=v5e:4x4")
    made["spec"]["failurePolicy"]["rules"][0]["action"] = "Fail"
    pod_of(made)["containers"][0]["resources"]["limits"] = {"google.com/tpu": "4 chips"}
    pod_of(made)["terminationGracePeriodSeconds"] = "15"
    pod_of(made)["gracePeriod"] = 15
    del pod_of(made)["containers"][0]["name"]
    found = [fault.partition("template.spec.")[2] or fault for fault in faults(made)]
    assert sorted(found) == [
        ".spec.failurePolicy.rules[0].action: 'Fail' is not allowed",
        "template.spec.containers[0].name is missing",
        "template.spec.containers[0].resources.limits.google.com/tpu: '4 chips' is not allowed",
        "template.spec.gracePeriod is unknown",
        "template.spec.terminationGracePeriodSeconds: '15' is not of type integer",
    ]


# kubectl ------------------------------------------------------------------------------------------


@pytest.fixture
def kubectl(cloud):
    """A kubectl that notes its words and its input, and fails as the file ``kubectl_NAME`` says."""
    (cloud.place / "bin" / "kubectl").write_text(
        "#!/bin/bash\n"
        'echo "$*" >> "$STAND_IN/kubectl"\n'
        '[[ $* != *create* ]] || cat > "$STAND_IN/sent"\n'
        'for word; do [ ! -f "$STAND_IN/kubectl_$word" ] || '
        '{ cat "$STAND_IN/kubectl_$word" >&2; exit 1; }; done\n'
    )
    (cloud.place / "bin" / "kubectl").chmod(0o755)

    def said() -> list[str]:
        return (cloud.place / "kubectl").read_text().splitlines()

    return said


RUN = ["--topology=v5e:4x4", "--image=i", *NATIVE]
STOP = [
    "delete pods --selector jobset.sigs.k8s.io/jobset-name=lm --grace-period 600 --wait=false",
    "delete jobset lm --cascade foreground --wait",
]


def test_the_manifest_is_created_in_its_cluster_and_namespace(cloud, kubectl):
    words = ["jobset.sh", "run", "--context=big", "--namespace=team", *RUN]
    done = cloud.run(*words)
    assert done.returncode == 0, done.stderr
    assert kubectl() == ["--context big --namespace team create --filename -"]
    assert (cloud.place / "sent").read_text() == cloud.run(*words, DRY_RUN="1").stdout


def test_a_name_that_is_taken_names_the_ways_out(cloud, kubectl):
    (cloud.place / "kubectl_create").write_text("Error from server (AlreadyExists): exists\n")
    done = cloud.run("jobset.sh", *RUN)
    failed(done, 1, "there is a JobSet lm already", "--replace", "--unique", "jobset.sh stop")
    (cloud.place / "kubectl_create").write_text("error: strict decoding error\n")
    failed(cloud.run("jobset.sh", *RUN), 1, "strict decoding", "kubectl did not take the manifest")


def test_replace_stops_the_old_one_first(cloud, kubectl):
    assert cloud.run("jobset.sh", "--replace", "--grace=90", *RUN).returncode == 0
    stop = [STOP[0].replace("600", "90"), STOP[1]]
    assert kubectl() == ["get jobset lm --output name", *stop, "create --filename -"]
    (cloud.place / "kubectl").unlink()
    (cloud.place / "kubectl_get").write_text('jobsets "lm" not found\n')
    assert cloud.run("jobset.sh", "--replace", *RUN).returncode == 0
    assert kubectl() == ["get jobset lm --output name", "create --filename -"]


def test_pods_of_a_spot_slice_get_the_whole_time_when_they_are_stopped(cloud):
    """The platform's bound is for nodes that it takes away."""
    done = cloud.run("jobset.sh", "stop", SPOT="1", DRY_RUN="1")
    assert done.stdout.splitlines() == [f"kubectl {command}" for command in STOP]


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        (["stop"], STOP),
        (
            ["status"],
            [
                "get jobset lm",
                "get pods --selector jobset.sigs.k8s.io/jobset-name=lm --output wide",
            ],
        ),
        (
            ["logs", "--tail=5", "--follow"],
            [
                "logs --selector jobset.sigs.k8s.io/jobset-name=lm --container train --prefix"
                " --tail 5 --max-log-requests 1024 --follow"
            ],
        ),
    ],
)
def test_stop_status_and_logs(cloud, kubectl, words, commands):
    dry = cloud.run("jobset.sh", *words, DRY_RUN="1")
    assert dry.stdout.splitlines() == [f"kubectl {command}" for command in commands]
    assert cloud.run("jobset.sh", *words).returncode == 0
    assert kubectl() == ["get jobset lm --output name", *commands]
    (cloud.place / "kubectl_get").write_text('Error from server (NotFound): "lm" not found\n')
    failed(cloud.run("jobset.sh", *words), 1, "there is no JobSet lm; kubectl get jobsets")
    (cloud.place / "kubectl_get").write_text("Unable to connect to the server\n")
    failed(cloud.run("jobset.sh", *words), 1, "Unable to connect", "kubectl could not look for lm")
