#!/usr/bin/env bash
# Inside a job: embed the cube (step embed) or its embeddings (step embed-2k), a share on each GPU of each node.
set -euo pipefail
# shellcheck source=deploy/hpc/env.sh
. "$(dirname "$0")/env.sh"
begin_job
store=$GRIDRAD_CUBE run=$GRIDRAD_RUN out=$GRIDRAD_EMBEDDINGS
if [[ $GRIDRAD_STEP == embed-2k ]]; then
  store=$GRIDRAD_EMBEDDINGS run=$GRIDRAD_RUN_2K out=$GRIDRAD_EMBEDDINGS_2K
fi
per=$((GRIDRAD_GPUS ? GRIDRAD_GPUS : ${GRIDRAD_PROCESSES:-1}))
cores=$((GRIDRAD_CORES / per))
export OMP_NUM_THREADS=$cores OPENBLAS_NUM_THREADS=$cores MKL_NUM_THREADS=$cores
export GRIDRAD_GPUS GRIDRAD_GPU_ORDER=${GRIDRAD_GPU_ORDER:-}
command=("${RUN[@]}" gridrad-cube embed --store "$store" --checkpoint "$run/checkpoint.pth" --out "$out"
  "${GRIDRAD_EMBED[@]}")

# Before many start at once, one claims the place (a share of a million has no work in it): a process that finds it
# half claimed by another would take it for something else and refuse.
"${command[@]}" --part 999999 1000000
on_nodes "$per" "$cores"
supervise "${LAUNCH[@]}" "$GRIDRAD_HPC/rank.sh" "${command[@]}" --part @RANK@ @SIZE@
# All shares are there; this finds nothing to do, and fails if that is not so.
"${command[@]}"
