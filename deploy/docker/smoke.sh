#!/bin/sh
# What an image must be able to do, from files to a cube, as the user that it gives; runs inside a container:
#   docker run --rm -i --entrypoint sh gridrad-cube -s < deploy/docker/smoke.sh
set -eu
[ "$(id -u)" != 0 ] || { echo "runs as root" >&2 && exit 1; }
python -c 'import gridrad_cube; gridrad_cube.show_versions()'
work=$(mktemp -d)
cd "$work"
gridrad-cube --version
gridrad-cube synthesize files --scenes 2 --shape 96 160
gridrad-cube preprocess files --store patches.zarr --patch 32 --workers 2
gridrad-cube info patches.zarr
gridrad-cube verify patches.zarr
cd /
rm -r "$work"
