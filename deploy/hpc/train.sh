#!/usr/bin/env bash
# Inside a job: train level 256 (step train) or 2k (step train-2k) on all GPUs of all nodes, or go on with a run.
set -euo pipefail
# shellcheck source=deploy/hpc/env.sh
. "$(dirname "$0")/env.sh"
begin_job
site_network
store=$GRIDRAD_CUBE out=$GRIDRAD_RUN
if [[ $GRIDRAD_STEP == train-2k ]]; then store=$GRIDRAD_EMBEDDINGS out=$GRIDRAD_RUN_2K; fi
per=$((GRIDRAD_GPUS ? GRIDRAD_GPUS : ${GRIDRAD_PROCESSES:-1}))
cores=$((GRIDRAD_CORES / per))
# Batches are decompressed by as many threads as a process has cores.
export OMP_NUM_THREADS=$cores OPENBLAS_NUM_THREADS=$cores MKL_NUM_THREADS=$cores
export GRIDRAD_GPUS GRIDRAD_GPU_ORDER=${GRIDRAD_GPU_ORDER:-}

if [[ ${GRIDRAD_STAGE:-} == yes ]]; then
  need GRIDRAD_SCRATCH "the disk of a node, which GRIDRAD_STAGE=yes copies the store to"
  on_nodes 1 "$GRIDRAD_CORES"
  "${LAUNCH[@]}" "$GRIDRAD_HPC/stage.sh" "$store" "$GRIDRAD_SCRATCH/gridrad-cube-$(id -u)"
  store=$GRIDRAD_SCRATCH/gridrad-cube-$(id -u)/$(basename "$store")
fi

on_nodes "$per" "$cores"
supervise "${LAUNCH[@]}" "$GRIDRAD_HPC/rank.sh" "${RUN[@]}" gridrad-cube train --store "$store" --out "$out" \
  --resume auto "${GRIDRAD_TRAIN[@]}"
