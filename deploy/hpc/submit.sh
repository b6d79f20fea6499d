#!/usr/bin/env bash
# submit.sh [-n] SETTINGS STEP [STEP ...]: queue steps, each after the one before it.
#
#   deploy/hpc/submit.sh my.sh preprocess train embed
#   deploy/hpc/submit.sh my.sh train train train      # three times the wall time: each goes on with what is left
#
# Steps: preprocess, train, embed, train-2k, embed-2k. A step waits for the success of the one before, or, if that is
# the same step, for its end, whatever it was. -n says what would be submitted. Settings that are missing are refused
# here, before anything waits in a queue.
set -euo pipefail
dry=
if [[ ${1:-} == -n ]]; then dry=yes && shift; fi
if (($# < 2)); then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
GRIDRAD_SETTINGS=$(realpath "$1")
shift
GRIDRAD_STEP=$1
# shellcheck source=deploy/hpc/env.sh
. "$(dirname "$0")/env.sh"
for GRIDRAD_STEP in "$@"; do # all of them, before the first is submitted
  read_settings
  need GRIDRAD_ACCOUNT "the project that pays"
  need GRIDRAD_QUEUE "the queue of PBS, or Slurm's partition"
  need GRIDRAD_NODES "the number of nodes"
  need GRIDRAD_WALLTIME "hours:minutes:seconds"
done
if [[ -z ${GRIDRAD_SCHEDULER:-} ]]; then
  if type -P sbatch >/dev/null; then GRIDRAD_SCHEDULER=slurm; elif type -P qsub >/dev/null; then GRIDRAD_SCHEDULER=pbs; fi
fi
need GRIDRAD_SCHEDULER "pbs or slurm; neither qsub nor sbatch is here"
passed=GRIDRAD_HPC=$GRIDRAD_HPC,GRIDRAD_SETTINGS=$GRIDRAD_SETTINGS
[[ $GRIDRAD_HPC$GRIDRAD_SETTINGS$GRIDRAD_WORK != *[,\ ]* ]] || die "the paths of this folder, the settings and GRIDRAD_WORK may hold no comma or space"
logs=$GRIDRAD_WORK/logs
mkdir -p "$logs"

before='' previous=''
for GRIDRAD_STEP in "$@"; do
  read_settings
  after=afterok
  if [[ $GRIDRAD_STEP == "$before" ]]; then after=afterany; fi
  script=${GRIDRAD_STEP%-2k}
  if [[ $GRIDRAD_SCHEDULER == pbs ]]; then
    command=(qsub -A "$GRIDRAD_ACCOUNT" -q "$GRIDRAD_QUEUE" -l "walltime=$GRIDRAD_WALLTIME"
      -l "select=$GRIDRAD_NODES${GRIDRAD_SELECT:+:$GRIDRAD_SELECT}"
      ${GRIDRAD_FILESYSTEMS:+-l "filesystems=$GRIDRAD_FILESYSTEMS"} ${previous:+-W "depend=$after:$previous"}
      -o "$logs/" -v "$passed,GRIDRAD_STEP=$GRIDRAD_STEP" "$GRIDRAD_HPC/pbs/$script.pbs")
  else
    gpus=()
    if [[ $script != preprocess ]] && ((GRIDRAD_GPUS)); then gpus=(--gpus-per-node "$GRIDRAD_GPUS"); fi
    command=(sbatch --parsable -A "$GRIDRAD_ACCOUNT" -p "$GRIDRAD_QUEUE" -t "$GRIDRAD_WALLTIME" -N "$GRIDRAD_NODES"
      "${gpus[@]}" ${previous:+--dependency "$after:$previous"} -o "$logs/%x-%j.log"
      "--export=ALL,$passed,GRIDRAD_STEP=$GRIDRAD_STEP" "$GRIDRAD_HPC/slurm/$script.sbatch")
  fi
  if [[ -n $dry ]]; then
    echo "${command[*]}"
    previous=JOB
  else
    previous=$("${command[@]}")
    echo "$GRIDRAD_STEP: $previous"
  fi
  before=$GRIDRAD_STEP
done
