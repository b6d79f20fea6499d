# shellcheck shell=bash
# shellcheck disable=SC2034  # many names are read by the script that sources this
# Sourced by every script of this folder: reads the settings, refuses what is missing, sets up the software and
# defines how to run something on all nodes of a job. It holds no path and no account; those are in the
# settings (settings.example.sh), and what is true of one machine alone in sites/.
#
# In: GRIDRAD_SETTINGS, the path of the settings; GRIDRAD_STEP, what is to be done with them.

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# need NAME WHAT: refuse to go on without a setting.
need() {
  [[ -n ${!1:-} ]] || die "$1 is not set: $2. Set it in ${GRIDRAD_SETTINGS:-the settings (deploy/hpc/settings.example.sh)}"
}

# ---- settings ------------------------------------------------------------------------------------------------

read_settings() {
  need GRIDRAD_SETTINGS "the path of your settings, a copy of deploy/hpc/settings.example.sh"
  need GRIDRAD_STEP "preprocess, train, embed, train-2k or embed-2k"
  [[ -r $GRIDRAD_SETTINGS ]] || die "GRIDRAD_SETTINGS: cannot read $GRIDRAD_SETTINGS"
  GRIDRAD_HPC=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  # shellcheck source=deploy/hpc/settings.example.sh
  . "$GRIDRAD_SETTINGS"
  need GRIDRAD_SITE "the name of a file in deploy/hpc/sites (polaris), or the path of your own"
  local site=$GRIDRAD_SITE
  [[ $site == */* ]] || site=$GRIDRAD_HPC/sites/$site.sh
  [[ -r $site ]] || die "GRIDRAD_SITE: no file $site"
  # shellcheck source=deploy/hpc/sites/polaris.sh
  . "$site"
  need GRIDRAD_WORK "a folder on the parallel file system for stores, runs and logs"
  [[ $GRIDRAD_WORK == /* ]] || die "GRIDRAD_WORK: got '$GRIDRAD_WORK'; expected an absolute path, jobs start elsewhere"
  need GRIDRAD_RUNTIME "venv or apptainer"
  case $GRIDRAD_RUNTIME in
    venv) need GRIDRAD_VENV "the virtual environment that gridrad-cube is installed in" ;;
    apptainer) need GRIDRAD_IMAGE "the image (.sif) that deploy/apptainer/gridrad-cube.def makes" ;;
    *) die "GRIDRAD_RUNTIME: got '$GRIDRAD_RUNTIME'; expected venv or apptainer" ;;
  esac
  need GRIDRAD_CORES "cores of a node to work with"
  : "${GRIDRAD_GPUS:=0}"

  # Where things lie, unless the settings say otherwise.
  : "${GRIDRAD_CUBE:=$GRIDRAD_WORK/patches.zarr}"
  : "${GRIDRAD_EMBEDDINGS:=$GRIDRAD_WORK/embeddings.zarr}"
  : "${GRIDRAD_EMBEDDINGS_2K:=$GRIDRAD_WORK/embeddings_2k.zarr}"
  : "${GRIDRAD_RUN:=$GRIDRAD_WORK/runs/256}"
  : "${GRIDRAD_RUN_2K:=$GRIDRAD_WORK/runs/2k}"

  case $GRIDRAD_STEP in
    preprocess)
      need GRIDRAD_SOURCES "an array of the folders that hold the netCDF files"
      local source
      for source in "${GRIDRAD_SOURCES[@]}"; do
        [[ -e $source ]] || die "GRIDRAD_SOURCES: no file or folder $source"
      done
      ;;
    train | embed | train-2k | embed-2k) ;;
    *) die "GRIDRAD_STEP: got '$GRIDRAD_STEP'; expected preprocess, train, embed, train-2k or embed-2k" ;;
  esac
}

# ---- inside a job --------------------------------------------------------------------------------------------

begin_job() {
  read_settings
  if [[ -n ${PBS_JOBID:-} ]]; then
    [[ -r ${PBS_NODEFILE:-} ]] || die "PBS_NODEFILE: cannot read '${PBS_NODEFILE:-}'; expected the list of this job's nodes"
    mapfile -t NODES < <(awk '!seen[$0]++' "$PBS_NODEFILE")
    JOB=$PBS_JOBID
  elif [[ -n ${SLURM_JOB_ID:-} ]]; then
    mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    JOB=$SLURM_JOB_ID
  else
    die "this is no job: neither PBS_JOBID nor SLURM_JOB_ID is set. Submit it with deploy/hpc/submit.sh"
  fi
  set_environment
  set_runtime
  echo "$GRIDRAD_STEP: job $JOB on ${#NODES[@]} node(s), first ${NODES[0]}; $GRIDRAD_RUNTIME, site $GRIDRAD_SITE"
}

set_environment() {
  # Sockets of multiprocessing lie here, and their paths must be short (108 characters).
  export TMPDIR=/tmp
  # Lustre and GPFS are often mounted without locks, which HDF5 insists on, and source files are only read.
  export HDF5_USE_FILE_LOCKING=FALSE
  # One process for each core or GPU, so each of them has its share of the cores and no more; the steps say how many.
  export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
  # Threads that wait sleep; spinning ones take cores from the processes that read.
  export OMP_WAIT_POLICY=PASSIVE
  # Packages in ~/.local must not get in front of the environment's.
  export PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
  # The processes of training meet at the first node. Inside an image the list of nodes may not be readable.
  export MASTER_ADDR=${NODES[0]}
  if [[ -n ${GRIDRAD_PROXY:-} ]]; then # only for stores outside, such as s3://
    export http_proxy=$GRIDRAD_PROXY https_proxy=$GRIDRAD_PROXY
    no_proxy=$(
      IFS=,
      echo "localhost,127.0.0.1,${NODES[*]}${no_proxy:+,$no_proxy}"
    )
    export no_proxy
  fi
}

# find_module: a job's shell may not know the command `module` yet.
find_module() {
  # shellcheck source=/dev/null
  type module >/dev/null 2>&1 || . /etc/profile
}

# RUN: what to put in front of a command of the software.
set_runtime() {
  # Modules, conda and activate scripts read variables that are not set, and fail in passing; what counts is below.
  set +eu
  site_modules
  RUN=()
  if [[ $GRIDRAD_RUNTIME == venv ]]; then
    [[ -r $GRIDRAD_VENV/bin/activate ]] || die "GRIDRAD_VENV: no virtual environment at $GRIDRAD_VENV"
    # shellcheck source=/dev/null
    . "$GRIDRAD_VENV/bin/activate"
  else
    [[ -e $GRIDRAD_IMAGE ]] || die "GRIDRAD_IMAGE: no file $GRIDRAD_IMAGE"
    RUN=(apptainer exec --bind "$GRIDRAD_WORK")
    local folder
    for folder in "${GRIDRAD_SOURCES[@]}" "${GRIDRAD_BINDS[@]}" ${GRIDRAD_SCRATCH:+"$GRIDRAD_SCRATCH"}; do
      RUN+=(--bind "$folder")
    done
    if ((GRIDRAD_GPUS)); then RUN+=(--nv); fi
    RUN+=("$GRIDRAD_IMAGE")
  fi
  set -eu
  "${RUN[@]}" gridrad-cube --version || die "gridrad-cube does not start; see the lines above"
}

# on_nodes PER_NODE CORES: set LAUNCH to what runs a command so many times on every node, each on cores of its own.
on_nodes() {
  local per=$1 cores=$2
  if [[ -n ${PBS_JOBID:-} ]]; then
    LAUNCH=(mpiexec -n $((${#NODES[@]} * per)) --ppn "$per" --depth "$cores" --cpu-bind depth)
  else
    # --export=ALL: what sbatch was told to pass on must not keep from the tasks what was set since.
    LAUNCH=(srun --export=ALL --overlap --nodes "${#NODES[@]}" --ntasks-per-node "$per" --cpus-per-task "$cores")
  fi
}

# ---- claims --------------------------------------------------------------------------------------------------
# A preprocess that was killed leaves its claim on the store (_build/lease.json) behind, and from another node it
# cannot be told whether the holder lives. Here it can: these files say which job it was, PBS or Slurm whether it runs.

# release_claim STORE: take away the claim of a job of ours that is over, and note that this job is the holder now.
release_claim() {
  local lease=$1/_build/lease.json holder=$GRIDRAD_WORK/logs/preprocess.holder job host store
  if [[ -e $lease && -e $holder ]]; then
    read -r job host store <"$holder"
    if [[ $store == "$1" ]] && grep -q "\"host\": \"$host\"" "$lease" && ! job_runs "$job"; then
      echo "$GRIDRAD_STEP: job $job on $host is over; its claim on $1 is taken away"
      rm -f "$lease"
    fi
  fi
  mkdir -p "${holder%/*}"
  echo "$JOB $(hostname) $1" >"$holder"
}

# job_runs JOB: whether another job still runs; this one, run again, has no earlier self that does.
job_runs() {
  if [[ $1 == "$JOB" ]]; then return 1; fi
  if [[ -n ${PBS_JOBID:-} ]]; then qstat "$1" >/dev/null 2>&1; else [[ -n $(squeue -h -j "$1" 2>/dev/null) ]]; fi
}

# ---- being stopped -------------------------------------------------------------------------------------------
# PBS sends SIGTERM a few seconds before it kills, and a preempted job may get nothing: training saves every two
# minutes, the builds of stores keep what is written, and the same job goes on from there when it runs again.
# Slurm sends USR1 three minutes before the end (#SBATCH --signal): save, stop, and go back into the queue.

#: What a stopped step returns: not an error, not done (EX_TEMPFAIL).
STOPPED=75

# supervise COMMAND...: run it, let it save when a signal comes, and return its status, or STOPPED after a signal.
supervise() {
  local status=0 signal='' child
  "$@" &
  child=$!
  trap 'signal=TERM; pass_on TERM "$1" "$child"' TERM
  trap 'signal=USR1; pass_on USR1 "$1" "$child"' USR1
  wait "$child" || status=$?
  # A signal ends `wait`, not the child, which is saving now.
  while [[ -n $signal ]] && kill -0 "$child" 2>/dev/null; do wait "$child" || status=$?; done
  trap - TERM USR1
  [[ -n $signal ]] || return "$status"
  echo "$GRIDRAD_STEP: stopped by $signal; the same job resumes from here"
  if [[ $signal == USR1 ]]; then requeue; fi
  return $STOPPED
}

# pass_on SIGNAL COMMAND CHILD: tell a child once that it is time to stop; told twice, it would not save.
pass_on() {
  case $2 in
    mpiexec | srun) # PBS and Slurm send SIGTERM to all processes of a job; srun would kill its tasks on a second one
      if [[ $1 == USR1 ]]; then scancel --signal=TERM "$SLURM_JOB_ID"; fi
      ;;
    *) kill -TERM "$3" 2>/dev/null || true ;;
  esac
}

requeue() {
  if ((${SLURM_RESTART_COUNT:-0} < ${GRIDRAD_RESTARTS:-50})); then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "$GRIDRAD_STEP: started $SLURM_RESTART_COUNT times already (GRIDRAD_RESTARTS); not queued again" >&2
  fi
}
