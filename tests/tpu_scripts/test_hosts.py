"""setup, launch, logs, status, profile and stop: what runs on which hosts, and what is said when
one of them fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile

import pytest
from cloud import PLACE_WORDS, SCRIPTS, Cloud, failed

pytestmark = pytest.mark.process

SUPERVISE = "llm_jax/source/tpu_scripts/supervise.sh"
RUN = ["configs/lm_1b.py", "--data.path=/mnt/bucket/shards", "--train.out=/mnt/bucket/runs/lm_1b"]
OFFLINE = {
    "err": "##### Command execution on worker 1 failed with exit status 255. Continuing.\n",
    "status": 255,
}


def ssh(node: str, command: str, worker: str = "all") -> list[str]:
    return ["tpu-vm", "ssh", node, f"--worker={worker}", f"--command={command}", *PLACE_WORDS]


def quiet(cloud: Cloud) -> Cloud:
    """Every command on hosts succeeds and does nothing."""
    cloud.answer("tpu-vm", "ssh", status=0)
    cloud.answer("tpu-vm", "scp", status=0)
    return cloud


# setup --------------------------------------------------------------------------------------------


def test_setup_copies_installs_and_mounts_on_all_hosts_of_all_slices(cloud):
    done = quiet(cloud).run("setup.sh", "--bucket", "gs://my-bucket", "--slices", "2")
    assert done.returncode == 0, done.stderr
    calls = cloud.calls()
    archive = calls[2][2]
    unpack = (
        "rm -rf llm_jax/source && mkdir -p llm_jax/source && tar xzf llm_jax.tar.gz -C"
        " llm_jax/source"
    )
    stages = [
        lambda node: ssh(node, f"test ! -x {SUPERVISE} || {SUPERVISE} idle"),
        lambda node: ["tpu-vm", "scp", archive, f"{node}:", "--worker=all", *PLACE_WORDS],
        lambda node: ssh(node, f"{unpack} && llm_jax/source/tpu_scripts/install.sh"),
        lambda node: ssh(node, "llm_jax/source/tpu_scripts/mount.sh gs://my-bucket /mnt/bucket"),
    ]
    assert len(calls) == 2 * len(stages)
    for i, stage in enumerate(stages):
        assert sorted(calls[2 * i : 2 * i + 2]) == [stage("lm-0"), stage("lm-1")]
    assert archive.endswith("/llm_jax.tar.gz") and re.search(
        r"lm is set up with tree [0-9a-f]{40}\n", done.stderr
    )


def test_setup_without_a_bucket_mounts_nothing(cloud):
    assert quiet(cloud).run("setup.sh", "--no-bucket").returncode == 0
    assert not [call for call in cloud.calls() if "mount.sh" in str(call)]


def test_a_host_that_cannot_be_reached_names_its_slice_and_the_usual_cause(cloud):
    quiet(cloud)
    cloud.answer("ssh", "lm-1", **OFFLINE)
    done = cloud.run("setup.sh", "--no-bucket", "--slices", "2")
    failed(
        done,
        1,
        "on worker 1 failed",
        "setup.sh: slice lm-1: exit status 255",
        "ssh-add ~/.ssh/google_compute_engine",
    )
    assert "slice lm-0" not in done.stderr
    assert not [call for call in cloud.calls() if call[1] == "scp"], "nothing was changed"


def test_a_package_that_cannot_be_installed_on_one_host(cloud):
    quiet(cloud)
    cloud.answer(
        "install.sh",
        err="ERROR: No matching distribution\n##### Command execution on worker 3 failed\n",
        status=2,
    )
    done = cloud.run("setup.sh", "--bucket", "gs://my-bucket")
    failed(
        done,
        1,
        "No matching distribution",
        "slice lm: exit status 2",
        "could not be installed on all hosts; run setup.sh again",
    )
    assert not [call for call in cloud.calls() if "mount.sh" in str(call)]


# launch -------------------------------------------------------------------------------------------


def start_command(words: str = " ".join(RUN)) -> str:
    mount = "tpu_scripts/mount.sh gs://my-bucket /mnt/bucket"
    return (
        f"cd llm_jax/source && {mount} && tpu_scripts/supervise.sh start -- ../venv/bin/llm-jax"
        f" train {words}"
    )


def test_launch_starts_the_config_with_its_settings_on_all_hosts(cloud):
    done = quiet(cloud).run("launch.sh", "--slices=2", *RUN, BUCKET="gs://my-bucket")
    assert done.returncode == 0, done.stderr
    assert sorted(cloud.calls()) == [ssh("lm-0", start_command()), ssh("lm-1", start_command())]


def test_settings_reach_the_hosts_as_they_are(cloud):
    odd = ['--name=it\'s a "run" @ $HOME', "--optimizer.decay=['kernel']", "--slices=9"]
    assert quiet(cloud).run("launch.sh", *RUN, *odd, BUCKET="gs://my-bucket").returncode == 0
    command = cloud.calls()[0][4].removeprefix("--command=")
    words = command[command.index("train ") :]
    told = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True, check=True
    ).stdout
    assert told.splitlines() == ["train", *RUN, *odd]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "which config? usage: launch.sh [FLAGS] CONFIG --train.out=/mnt/bucket/runs/NAME"),
        (["configs/lm_2b.py"], "there is no config 'configs/lm_2b.py'"),
        (
            ["configs/lm_1b.py"],
            "train.out is ''; give --train.out=/mnt/bucket/… or --train.out=gs://BUCKET/…, a folder"
            " that all hosts see",
        ),
        (
            ["configs/lm_1b.py", "--train.out=runs/x"],
            "train.out is 'runs/x'; give --train.out=/mnt/bucket/…",
        ),
        (["configs/lm_1b.py", "--train.out", "runs/x"], "write --train.out=FOLDER as one word"),
        (["configs/lm_1b.py", "--train.out=gs:/bb/x"], "train.out is 'gs:/bb/x'; give"),
        (["configs/lm_1b.py", "--train.out=gs://bb"], "train.out is 'gs://bb'; give"),
        (["configs/lm_1b.py", "--train.out=s3://bb/x"], "train.out is 's3://bb/x'; give"),
        (
            ["--supervise", "--accelerator-type=", "configs/lm_1b.py"],
            "--accelerator-type needs a value",
        ),
    ],
)
def test_runs_that_would_be_lost_or_never_start_are_refused(cloud, words, text):
    failed(cloud.run("launch.sh", *words, BUCKET="gs://my-bucket"), 2, f"launch.sh: error: {text}")
    assert cloud.calls() == []


def test_a_run_that_does_not_start_on_one_host(cloud):
    quiet(cloud)
    cloud.answer(
        "ssh", "lm-1", err="supervise.sh on w-3: error: a run is going (process 7)\n", status=1
    )
    done = cloud.run("launch.sh", "--slices=2", *RUN, BUCKET="gs://my-bucket")
    failed(
        done,
        1,
        "on w-3: error: a run is going",
        "slice lm-1: exit status 1",
        "the run was not started on every host",
    )


NATIVE = ["configs/lm_1b.py", "--data.path=gs://bb/shards", "--train.out=gs://bb/runs/x"]


def test_a_run_on_the_bucket_itself_needs_no_mount(cloud):
    assert quiet(cloud).run("launch.sh", *NATIVE).returncode == 0
    start = "cd llm_jax/source && tpu_scripts/supervise.sh start -- ../venv/bin/llm-jax train "
    assert cloud.calls() == [ssh("lm", start + " ".join(NATIVE))]
    mixed = cloud.run("launch.sh", *NATIVE, "--data.path=/mnt/bucket/shards")
    failed(mixed, 2, "BUCKET is not set: export BUCKET=gs://…")


# ssh through a tunnel and in batches --------------------------------------------------------------

ALL = ["--node=all", "--worker=all"]


def by_request(command: str, *route: str) -> list[str]:
    words = ["queued-resources", "ssh", "lm", *ALL, f"--command={command}"]
    return [*words, *route, *PLACE_WORDS]


def test_all_nodes_are_reached_by_one_command_through_a_tunnel(cloud):
    cloud.answer("queued-resources", "ssh", out="w-0 stopped 143\n", status=0)
    done = cloud.run("stop.sh", "--slices=2", "--iap", "--batch-size=8")
    assert (done.returncode, done.stdout) == (0, "w-0 stopped 143\n")
    route = ["--tunnel-through-iap", "--batch-size", "8"]
    assert cloud.calls() == [by_request(f"{SUPERVISE} stop", *route)]
    assert cloud.run("stop.sh", "--iap", "--internal-ips").returncode == 0
    assert cloud.calls()[1] == by_request(f"{SUPERVISE} stop", "--tunnel-through-iap")


def test_internal_addresses_are_reached_from_the_same_network(cloud):
    assert quiet(cloud).run("stop.sh", "--internal-ips").returncode == 0
    words = ["tpu-vm", "ssh", "lm", "--worker=all", f"--command={SUPERVISE} stop", "--internal-ip"]
    assert cloud.calls() == [[*words, *PLACE_WORDS]]


def test_a_node_that_gcloud_leaves_out_is_no_success(cloud):
    """gcloud's exit status is 0 then: it only warns."""
    warning = "WARNING: Could not prepare all 2 nodes, attempting to ssh into the rest.\n"
    cloud.answer("queued-resources", "ssh", out="w-0 stopped 143\n", err=warning, status=0)
    done = cloud.run("stop.sh", "--slices=2", "--iap")
    failed(done, 1, warning, "gcloud left out a node that it could not reach", "ssh-add")
    assert done.stdout == "w-0 stopped 143\n"


def test_setup_and_profile_go_through_the_tunnel(cloud, tmp_path):
    cloud.answer("queued-resources", "ssh", status=0)
    cloud.answer("queued-resources", "scp", status=0)
    done = cloud.run("setup.sh", "--no-bucket", "--iap")
    assert done.returncode == 0, done.stderr
    archive = cloud.calls()[1][2]
    copy = ["queued-resources", "scp", archive, "lm:", *ALL, "--tunnel-through-iap", *PLACE_WORDS]
    assert cloud.calls()[1] == copy
    words = ["--iap", "--out=/mnt/bucket/x", f"--to={tmp_path}"]
    assert cloud.run("profile.sh", *words).returncode == 0
    back = ["queued-resources", "scp", "lm:/mnt/bucket/x/profile", str(tmp_path), "--recurse"]
    route = ["--node=0", "--worker=0", "--tunnel-through-iap", *PLACE_WORDS]
    assert cloud.calls()[-1] == [*back, *route]


def test_a_vm_that_was_there_before_is_set_up_and_run_on(cloud):
    quiet(cloud)
    for script, *words in (["setup.sh", "--no-bucket"], ["launch.sh", *NATIVE], ["status.sh"]):
        done = cloud.run(script, "--existing", *words)
        assert done.returncode == 0, done.stderr
    assert {call[0] for call in cloud.calls()} == {"tpu-vm"}
    assert cloud.run("stop.sh", "--existing", "--iap").returncode == 0
    tunnel = ["tpu-vm", "ssh", "lm", "--worker=all", f"--command={SUPERVISE} stop"]
    alpha = ["alpha", "compute", "tpus", *tunnel, "--tunnel-through-iap", *PLACE_WORDS]
    assert cloud.calls()[-1] == alpha


# logs, status, profile, stop ----------------------------------------------------------------------


def test_logs_of_all_hosts(cloud):
    cloud.answer("ssh", out="[w-0] step 1\n[w-1] step 1\n", status=0)
    assert cloud.run("logs.sh").stdout == "[w-0] step 1\n[w-1] step 1\n"
    assert cloud.run("logs.sh", "--follow", "--tail", "5").returncode == 0
    assert cloud.calls() == [ssh("lm", f"{SUPERVISE} log 100"), ssh("lm", f"{SUPERVISE} log 5 -F")]


def test_logs_where_there_are_none(cloud):
    cloud.answer("ssh", err="tail: cannot open\n", status=1)
    failed(
        cloud.run("logs.sh"),
        1,
        "the log of some host could not be read; where no run was launched there is none",
    )
    failed(cloud.run("logs.sh", "--tail", "all"), 2, "TAIL is 'all'; give a number of lines")


def test_status_of_resource_nodes_and_hosts(cloud):
    cloud.answer("ssh", "lm-0", out="w-0 running\n", status=0)
    cloud.answer("ssh", "lm-1", out="w-0 waiting\n", status=0)
    done = cloud.run("status.sh", "--slices", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["queued resource lm ACTIVE", "node lm-0 READY", "node lm-1 READY"]
    assert sorted(lines[3:]) == ["w-0 running", "w-0 waiting"]


def test_status_of_a_preempted_node(cloud):
    cloud.answer("tpu-vm", "describe", "lm-1", out="PREEMPTED\n")
    done = cloud.run("status.sh", "--slices", "2")
    failed(done, 1, "not every node is ready; tpu_scripts/delete.sh and create.sh make them anew")
    assert "node lm-1 PREEMPTED\n" in done.stdout
    assert "ssh supervise.sh state" not in cloud.short()


def test_stop_says_what_every_host_says(cloud):
    cloud.answer("ssh", out="w-0 stopped 143\nw-1 stopped 143\n", status=0)
    assert cloud.run("stop.sh").stdout == "w-0 stopped 143\nw-1 stopped 143\n"
    assert cloud.calls() == [ssh("lm", f"{SUPERVISE} stop")]


def test_a_host_that_does_not_stop(cloud):
    cloud.answer("ssh", **OFFLINE)
    failed(cloud.run("stop.sh"), 1, "the run was not stopped on every host; it may still be going")


def test_profile_is_fetched_from_the_shared_folder_by_one_host(cloud, tmp_path):
    out, mine = "/mnt/bucket/runs/lm_1b", tmp_path / "mine"
    assert (
        quiet(cloud).run("profile.sh", "--slices=2", "--out", out, "--to", str(mine)).returncode
        == 0
    )
    copy = [
        "tpu-vm",
        "scp",
        f"lm-0:{out}/profile",
        str(mine),
        "--recurse",
        "--worker=0",
        *PLACE_WORDS,
    ]
    assert cloud.calls() == [ssh("lm-0", f"test -d {out}/profile", worker="0"), copy]
    assert mine.is_dir()


def test_a_profile_in_the_bucket_is_copied_from_there(cloud, tmp_path):
    assert cloud.run("profile.sh", "--out=gs://bb/x", f"--to={tmp_path}").returncode == 0
    copy = ["storage", "cp", "--recursive", "gs://bb/x/profile", str(tmp_path), "--project", "proj"]
    assert cloud.calls() == [copy]
    cloud.answer("storage", "cp", err="ERROR: matched no objects\n", status=1)
    failed(cloud.run("profile.sh", "--out=gs://bb/x"), 1, "matched no objects", "was the run told")


def test_profiles_that_are_not_there(cloud):
    cloud.answer("ssh", status=1)
    failed(
        cloud.run("profile.sh", "--out", "/mnt/bucket/runs/x"),
        1,
        "there is no /mnt/bucket/runs/x/profile on the first host",
    )
    failed(
        cloud.run("profile.sh", "--out", "runs/x"),
        2,
        "OUT is 'runs/x'; give the run's train.out, a folder in /mnt/bucket or gs://BUCKET/…",
    )


# The real commands on hosts that are folders ------------------------------------------------------


@pytest.fixture
def two_hosts(tmp_path):
    cloud = Cloud(tmp_path, workers=2)
    cloud.answer("create")
    assert cloud.run("create.sh").returncode == 0
    return cloud


def test_setup_puts_the_checkout_and_the_package_on_every_host(two_hosts):
    done = two_hosts.run("setup.sh", "--no-bucket")
    assert done.returncode == 0, done.stderr
    from llm_jax import __version__

    for home in two_hosts.hosts():
        assert (home / "pip").read_text() == f"install -q {home}/llm_jax/source[tpu,gcs]\n"
        with tarfile.open(home / "llm_jax.tar.gz") as archive:
            names = set(archive.getnames())
        assert {
            "setup.py",
            "llm_jax/cli.py",
            "configs/lm_1b.py",
            "tpu_scripts/supervise.sh",
        } <= names
        assert not [name for name in names if "__pycache__" in name or name.startswith(".git/")]
    assert done.stdout.count(f"llm_jax {__version__}\n") == 2


def test_setup_copies_what_git_would_commit_now(two_hosts, tmp_path):
    root = tmp_path / "checkout"
    shutil.copytree(SCRIPTS, root / "tpu_scripts")
    for name, text in {
        ".gitignore": "runs/\n",
        "kept": "before",
        "deleted": "",
        "runs/ignored": "",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "."],
    ):
        subprocess.run(["git", *words], cwd=root, check=True)
    (root / "kept").write_text("edited")
    (root / "new").write_text("")
    (root / "deleted").unlink()
    environment = two_hosts.environment(NO_BUCKET="1")
    subprocess.run(
        [root / "tpu_scripts" / "setup.sh"], env=environment, check=True, capture_output=True
    )
    there = two_hosts.hosts()[1] / "llm_jax" / "source"
    assert sorted(p.name for p in there.iterdir()) == [".gitignore", "kept", "new", "tpu_scripts"]
    assert (there / "kept").read_text() == "edited"
    staged = subprocess.run(
        ["git", "diff", "--cached", "--name-only"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert staged == "", "what is staged here stays as it is"


def test_setup_outside_a_checkout(cloud, tmp_path):
    shutil.copytree(SCRIPTS, tmp_path / "copy" / "tpu_scripts")
    script = [tmp_path / "copy" / "tpu_scripts" / "setup.sh", "--no-bucket"]
    environment = cloud.environment(GIT_CEILING_DIRECTORIES=str(tmp_path))
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    failed(done, 2, "is no git checkout; clone the repository")


def test_setup_leaves_hosts_alone_where_a_run_is_going(two_hosts):
    assert two_hosts.run("setup.sh", "--no-bucket").returncode == 0
    busy = two_hosts.hosts()[1]
    script, environment = busy / SUPERVISE, two_hosts.environment(HOME=str(busy))
    subprocess.run([script, "start", "--", "sleep", "60"], env=environment, check=True)
    (busy / "llm_jax" / "source" / "mine").touch()
    failed(
        two_hosts.run("setup.sh", "--no-bucket"),
        1,
        "a run is going",
        "stop it first",
        "nothing was changed",
    )
    assert (busy / "llm_jax" / "source" / "mine").exists()
    assert two_hosts.run("stop.sh").stdout.splitlines()[1].endswith(" stopped 143")
    assert two_hosts.run("setup.sh", "--no-bucket").returncode == 0
