#!/usr/bin/env bash
# rank.sh COMMAND...: one process of many. Gives it its GPU, before Python starts and sees them all, and puts its
# rank and their number where the command says @RANK@ and @SIZE@.
set -euo pipefail
rank=${PMI_RANK:-${SLURM_PROCID:-}}
size=${PMI_SIZE:-${SLURM_NTASKS:-}}
local_rank=${PALS_LOCAL_RANKID:-${PMI_LOCAL_RANK:-${SLURM_LOCALID:-}}}
if [[ -z $rank || -z $size || -z $local_rank ]]; then
  echo "rank.sh: neither mpiexec (PMI_RANK) nor srun (SLURM_PROCID) started this" >&2
  exit 2
fi
gpus=${GRIDRAD_GPUS:-0}
if ((gpus)); then
  # Slurm may have given this job some of the GPUs, by a list of them.
  IFS=, read -ra seen <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((gpus - 1)))}"
  mine=$((local_rank % ${#seen[@]}))
  if [[ ${GRIDRAD_GPU_ORDER:-} == reversed ]]; then mine=$((${#seen[@]} - 1 - mine)); fi
  export CUDA_VISIBLE_DEVICES=${seen[mine]}
fi
words=("${@//@RANK@/$rank}")
words=("${words[@]//@SIZE@/$size}")
exec "${words[@]}"
