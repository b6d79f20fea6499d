#!/bin/sh
# What every installation can do, from files to a cube. In an image, as the user that it gives, who is not root:
#   docker run --rm -i --entrypoint sh gridrad-cube -s -- no-root < deploy/docker/smoke.sh
set -eu
if [ "${1:-}" = no-root ] && [ "$(id -u)" = 0 ]; then
  echo "runs as root" >&2
  exit 1
fi
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
