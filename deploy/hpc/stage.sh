#!/usr/bin/env bash
# stage.sh STORE FOLDER: copy a finished local store into a folder of this node's disk, unless its copy is there.
set -euo pipefail
store=$1 copy=$2/$(basename "$1")
[[ -f $store/zarr.json ]] || { echo "stage.sh: $store: no finished store on a file system" >&2 && exit 2; }
if cmp -s "$store/zarr.json" "$copy/zarr.json"; then exit 0; fi # its identity is among the root's attributes
need=$(du -sk --apparent-size --exclude=_build "$store" | cut -f1)
mkdir -p "$2"
free=$(df -Pk "$2" | awk 'NR == 2 { print $4 }')
((need < free)) || { echo "stage.sh: $store has $need KiB, $(hostname):$2 has $free free. Unset GRIDRAD_STAGE" >&2 && exit 2; }
rm -rf "$copy"
partial=$(mktemp -d "$2/partial.XXXXXX")
trap 'rm -rf "$partial"' EXIT
# The folders first, by one: several copies that make the same one get in each other's way.
(cd "$store" && find . -type d -not -path './_build*' -print0 | xargs -0 -I{} mkdir -p "$partial/{}")
# Eight at a time: one reader alone does not fill a parallel file system.
(cd "$store" && find . -type f -not -path './_build/*' -print0 | xargs -0 -n 32 -P 8 cp --parents -t "$partial")
# It appears whole or not at all; another job of this node may have been faster.
mv -T "$partial" "$copy" 2>/dev/null || cmp -s "$store/zarr.json" "$copy/zarr.json"
echo "$(hostname): staged $((need / 1024)) MiB at $copy"
