#!/usr/bin/env bash
# mount.sh: runs on a host of the slice; mounts a bucket with gcsfuse, and installs gcsfuse first where it is missing.
#
#   mount.sh gs://my-bucket /mnt/bucket
#
# A checkpoint is finished by renaming its folder, so that is tried on the mount: a bucket that cannot is refused here, and not
# at the first checkpoint. The options are set explicitly: on large machines gcsfuse otherwise renames folders file by file and caches
# names without end (cloud.google.com/storage/docs/cloud-storage-fuse/automated-configurations).
set -euo pipefail
die() { printf 'mount.sh on %s: error: %s\n' "$(hostname)" "$1" >&2 && exit 2; }

case ${1:-} in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0" && exit 0 ;; esac
[ $# -eq 2 ] && [[ $1 = gs://* ]] && [[ $2 = /* ]] || die "usage: mount.sh gs://BUCKET /FOLDER"
bucket=${1#gs://} folder=$2
options=(--implicit-dirs --rename-dir-limit=0 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0)

[ "${DRY_RUN:-0}" = 0 ] || { printf 'gcsfuse %s %s %s\n' "${options[*]}" "$bucket" "$folder" && exit 0; }

install_gcsfuse() {
  local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" > /dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" | sudo tee "$list" > /dev/null
  # Just after a start the machine's own updates may hold the lock.
  sudo apt-get -q -o DPkg::Lock::Timeout=300 update > /dev/null && sudo apt-get -q -y -o DPkg::Lock::Timeout=300 install gcsfuse > /dev/null
}

# The gcsfuse that serves the folder has each of the options.
mounted_so() {
  local option said
  said=$(pgrep -a gcsfuse | grep -- " $folder\$") || return
  for option in "${options[@]}"; do [[ " $said " = *" $option "* ]] || return; done
}

can_rename_folders() {
  local probe
  probe="$folder/.probe-$(hostname)-$$"
  mkdir -p "$probe.a" && echo probe > "$probe.a/file" && mv "$probe.a" "$probe.b" && [ -f "$probe.b/file" ] && rm -r "$probe.b"
}

if mountpoint -q "$folder"; then
  found=$(findmnt -n -o SOURCE "$folder")
  [ "$found" = "$bucket" ] || die "$folder is '$found' already, not $bucket; unmount it (fusermount -u $folder) or choose another --mount"
  mounted_so || die "$folder was mounted without ${options[*]:1}, so that a checkpoint could be half renamed or seen too late; unmount it (fusermount -u $folder), and this script mounts it"
else
  command -v gcsfuse > /dev/null || install_gcsfuse || die "gcsfuse could not be installed; the words of apt are above"
  # A mount whose gcsfuse has died is no mount point, and in the way.
  fusermount -uz "$folder" 2> /dev/null || true
  sudo mkdir -p "$folder" && sudo chown "$(id -u):$(id -g)" "$folder"
  gcsfuse "${options[@]}" "$bucket" "$folder" > /dev/null || die "gs://$bucket could not be mounted; does it exist, and may the service account of the slice read and write it?"
fi
can_rename_folders || die "folders of gs://$bucket cannot be written and renamed in one step, and checkpoints need that; make a bucket with 'gcloud storage buckets create --uniform-bucket-level-access --enable-hierarchical-namespace', or write to gs://$bucket/… itself"
