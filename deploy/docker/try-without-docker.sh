#!/usr/bin/env bash
# Build the image and try it where no Docker engine runs: with buildah, in a chroot, as CI machines allow it.
#
#   deploy/docker/try-without-docker.sh BASE [ARGUMENTS OF buildah bud ...]
#
# BASE is an image that buildah has, or may pull, with python3 >= 3.11 and venv. One can be made of Debian's packages:
#
#   debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm ROOT
#   image=$(buildah from scratch); buildah add "$image" ROOT /; buildah commit "$image" localhost/base
#
# Needs root, or a user with subordinate ids. Layers are whole copies here (vfs): count on 6 GB in the storage,
# which STORAGE_OPTIONS may place elsewhere ("--root DIR --runroot DIR").
set -euo pipefail
cd "$(dirname "$0")/../.."
base=${1:?usage: $0 BASE [ARGUMENTS OF buildah bud ...]}
shift
read -ra options <<<"${STORAGE_OPTIONS:-}"
buildah=(buildah --storage-driver vfs "${options[@]}")

"${buildah[@]}" bud --isolation chroot --pull-never --build-arg "BASE=$base" "$@" \
  --file deploy/docker/Dockerfile --tag gridrad-cube .
container=$("${buildah[@]}" from --pull-never gridrad-cube)
trap '"${buildah[@]}" rm "$container" >/dev/null' EXIT
"${buildah[@]}" run --isolation chroot "$container" -- sh -s -- no-root <deploy/docker/smoke.sh
