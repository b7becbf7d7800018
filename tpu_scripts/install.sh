#!/usr/bin/env bash
# install.sh: runs on a host of the slice; installs this checkout with [tpu,gcs] into ~/llm_jax/venv. setup.sh starts it.
#
# The images of TPU VMs have Python 3.10 and this package needs 3.11: where no newer one is found, uv brings 3.12.
set -euo pipefail
die() { printf 'install.sh on %s: error: %s\n' "$(hostname)" "$1" >&2 && exit 2; }

case ${1:-} in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0" && exit 0 ;; esac
[ $# -eq 0 ] || die "unexpected '$1'; it takes no arguments"
home=$HOME/llm_jax
source=$(cd "$(dirname "$0")/.." && pwd)

[ "${DRY_RUN:-0}" = 0 ] || { printf '%s/venv/bin/pip install -q %s[tpu,gcs]\n' "$home" "$source" && exit 0; }

# The first of the names that runs, is new enough and can make environments.
new_enough() {
  local p
  for p in python3.12 python3.11 python3; do
    if "$p" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$p"
      return
    fi
  done
}

if [ ! -x "$home/venv/bin/pip" ]; then
  python=$(new_enough)
  if [ -n "$python" ]; then
    "$python" -m venv "$home/venv"
  else
    python3 -m pip install -q --user uv || die "no Python 3.11 or newer, and uv could not be installed to bring one; pip's words are above"
    python3 -m uv venv -q --seed --python 3.12 "$home/venv"
  fi
fi
"$home/venv/bin/pip" install -q "${source}[tpu,gcs]" || die "pip could not install ${source}[tpu,gcs]; its words are above"
printf '%s: llm_jax %s\n' "$(hostname)" "$("$home/venv/bin/llm-jax" --version)"
