# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # read and set by env.sh
# Settings of one project on one machine: copy this file, fill in the copy, and pass it to submit.sh. It is bash,
# read on the login node and in every job; GRIDRAD_STEP says for which step.

# ---- required ----
GRIDRAD_SITE=      # polaris, generic, or the path of a file like deploy/hpc/sites/generic.sh
GRIDRAD_ACCOUNT=   # the project that pays
GRIDRAD_QUEUE=     # of PBS, or Slurm's partition
GRIDRAD_WORK=      # folder on the parallel file system: stores, runs, logs (absolute)
GRIDRAD_SOURCES=() # folders of netCDF files (absolute)
GRIDRAD_RUNTIME=   # venv or apptainer
GRIDRAD_VENV=      # venv: where gridrad-cube[hpc] is installed
GRIDRAD_IMAGE=     # apptainer: the .sif

# ---- each step's share of the machine ----
GRIDRAD_WALLTIME=01:00:00
case $GRIDRAD_STEP in
  preprocess) GRIDRAD_NODES=2 ;;
  train) GRIDRAD_NODES=4 ;;
  *) GRIDRAD_NODES=1 ;;
esac

# ---- arguments of the commands ----
GRIDRAD_PREPROCESS=()          # such as (--crop 2048 --channels ir_brightness_temperature)
GRIDRAD_TRAIN=(--preset small) # read for both levels; GRIDRAD_STEP tells them apart
GRIDRAD_EMBED=()

# ---- where the site does not say ----
# GRIDRAD_FILESYSTEMS=home:eagle   # polaris
# GRIDRAD_CORES=32                 # of a node
# GRIDRAD_GPUS=4                   # of a node; 0 trains on CPUs
# GRIDRAD_INTERFACE=ib0            # network of Dask
# GRIDRAD_SCRATCH=/local/scratch   # disk of a node
# GRIDRAD_MODULES=(python cuda)    # generic
# GRIDRAD_SELECT=ncpus=64:ngpus=4  # PBS: what a chunk is, one for each node

# ---- if wanted ----
# GRIDRAD_STAGE=yes                # train from a copy of the store on each node's disk
# GRIDRAD_BINDS=(/soft)            # apptainer: further folders to see
# GRIDRAD_PROXY=http://host:port   # for stores outside
# GRIDRAD_NCCL=plain               # polaris: if training hangs between nodes
# GRIDRAD_DASHBOARD=127.0.0.1:8787 # of Dask on the first node, for an ssh tunnel
