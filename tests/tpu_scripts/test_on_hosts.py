"""mount.sh and install.sh, with the commands of a TPU VM replaced by shell lines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cloud import SCRIPTS, failed

pytestmark = pytest.mark.process


def on_host(
    tmp_path: Path, script: str, *words: str, **commands: str
) -> subprocess.CompletedProcess:
    """Runs it where these commands are shell lines; the lines note what they were given in
    ``said``.
    """
    for name, line in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "DRY_RUN": "0",
    }
    return subprocess.run(
        [SCRIPTS / script, *words], env=environment, capture_output=True, text=True, check=False
    )


OPTIONS = (
    "--implicit-dirs --rename-dir-limit=0 --metadata-cache-ttl-secs=0"
    " --metadata-cache-negative-ttl-secs=0"
)
MOUNTS = {
    "mountpoint": "exit 1",
    "sudo": '"$@"',
    "fusermount": "exit 0",
    "gcsfuse": 'echo "gcsfuse $*" >> "$HOME/said"',
}


def test_mount_mounts_once_and_tries_a_rename(tmp_path):
    folder = tmp_path / "mnt"
    done = on_host(tmp_path, "mount.sh", "gs://my-bucket", str(folder), **MOUNTS)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text() == f"gcsfuse {OPTIONS} my-bucket {folder}\n"
    assert list(folder.iterdir()) == []
    served = f"echo 7 gcsfuse --foreground {OPTIONS} my-bucket {folder}"
    mounted = {"mountpoint": "exit 0", "findmnt": "echo my-bucket", "pgrep": served}
    assert on_host(tmp_path, "mount.sh", "gs://my-bucket", str(folder), **mounted).returncode == 0
    assert (tmp_path / "said").read_text().count("gcsfuse") == 1


def test_mounts_that_would_lose_checkpoints(tmp_path):
    folder = str(tmp_path / "mnt")
    done = on_host(tmp_path, "mount.sh", "gs://bb", folder, **MOUNTS, mv="exit 1")
    failed(
        done,
        2,
        "folders of gs://bb cannot be written and renamed in one step, and checkpoints need that",
        "--enable-hierarchical-namespace",
    )
    done = on_host(tmp_path, "mount.sh", "gs://bb", folder, gcsfuse="exit 1")
    failed(
        done,
        2,
        "gs://bb could not be mounted; does it exist, and may the service account of the slice read"
        " and write it?",
    )
    done = on_host(
        tmp_path, "mount.sh", "gs://bb", folder, mountpoint="exit 0", findmnt="echo another"
    )
    failed(done, 2, f"{folder} is 'another' already, not bb; unmount it")
    failed(on_host(tmp_path, "mount.sh", "bb", folder), 2, "usage: mount.sh gs://BUCKET /FOLDER")


@pytest.mark.parametrize(
    "served",
    [
        "exit 1",
        "echo 7 gcsfuse --implicit-dirs bb {folder}",
        "echo 7 gcsfuse --implicit-dirs --rename-dir-limit=200000 bb {folder}",
        f"echo 7 gcsfuse {OPTIONS} bb /another",
        "echo 7 gcsfuse --rename-dir-limit=0 --metadata-cache-ttl-secs=-1 bb {folder}",
    ],
)
def test_a_mount_of_somebody_else_must_have_the_same_options(tmp_path, served):
    """On a large machine it renames folders file by file, and the probe would not see it."""
    folder = str(tmp_path / "mnt")
    words = {"mountpoint": "exit 0", "findmnt": "echo bb", "pgrep": served.format(folder=folder)}
    done = on_host(tmp_path, "mount.sh", "gs://bb", folder, **words)
    failed(done, 2, f"{folder} was mounted without --rename-dir-limit=0", f"fusermount -u {folder}")


NONE = {"python3.12": "exit 127", "python3.11": "exit 127"}


def test_install_brings_a_python_where_the_image_has_an_old_one(tmp_path):
    """As on the images of TPU VMs, whose Python is 3.10."""
    make = (
        'mkdir -p "${@: -1}/bin"; for p in pip llm-jax; do echo "#!/bin/true" > "${@: -1}/bin/$p";'
        ' chmod +x "${@: -1}/bin/$p"; done'
    )
    old = f'echo "$*" >> "$HOME/said"; case "$*" in -c*) exit 1 ;; *"uv venv"*) {make} ;; esac'
    done = on_host(tmp_path, "install.sh", **NONE, python3=old)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "said").read_text().splitlines()[1:]
    assert said == [
        "-m pip install -q --user uv",
        f"-m uv venv -q --seed --python 3.12 {tmp_path}/llm_jax/venv",
    ]
    failed(on_host(tmp_path, "install.sh", "now"), 2, "unexpected 'now'; it takes no arguments")


def test_install_without_any_way_to_a_python(tmp_path):
    done = on_host(tmp_path, "install.sh", **NONE, python3="exit 1")
    failed(done, 2, "no Python 3.11 or newer, and uv could not be installed to bring one")
