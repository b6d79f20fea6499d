# shellcheck shell=bash
# shellcheck disable=SC2034  # read by env.sh and submit.sh
# Polaris (ALCF), as its user guide describes it in August 2026: a node has 32 cores, four A100 of 40 GB and two
# NVMe disks. Read by env.sh after the settings; a site of your own sets the same names.

GRIDRAD_SCHEDULER=pbs
GRIDRAD_SELECT=system=polaris
need GRIDRAD_FILESYSTEMS "what the job needs mounted, such as home:eagle; jobs wait forever without it"

: "${GRIDRAD_CORES:=32}"
: "${GRIDRAD_GPUS:=4}"
: "${GRIDRAD_GPU_ORDER:=reversed}" # GPU 3 hangs on cores 0 to 7, GPU 0 on cores 24 to 31
: "${GRIDRAD_INTERFACE:=hsn0}"     # Slingshot; the other networks are slow, or end at the node
: "${GRIDRAD_SCRATCH:=/local/scratch}"

# Modules for GRIDRAD_RUNTIME; apptainer exists on compute nodes alone.
site_modules() {
  find_module
  module use /soft/modulefiles
  if [[ $GRIDRAD_RUNTIME == apptainer ]]; then
    module load spack-pe-base
    module load apptainer
    export APPTAINER_TMPDIR=$GRIDRAD_SCRATCH APPTAINER_CACHEDIR=$GRIDRAD_SCRATCH
  else # for a virtual environment made with --system-site-packages over this conda
    module load conda
    conda activate base
  fi
}

# NCCL over Slingshot, two to three times as fast for some; GRIDRAD_NCCL=plain where a run hangs with it. The
# plugin is built for the system's C library, which an image does not have: there, NCCL takes sockets.
site_network() {
  [[ ${GRIDRAD_NCCL:-ofi} == ofi && $GRIDRAD_RUNTIME == venv ]] || return 0
  export NCCL_NET="AWS Libfabric" NCCL_NET_GDR_LEVEL=PHB NCCL_CROSS_NIC=1 NCCL_COLLNET_ENABLE=1
  export FI_CXI_DISABLE_HOST_REGISTER=1 FI_MR_CACHE_MONITOR=userfaultfd FI_CXI_DEFAULT_CQ_SIZE=131072
  export LD_LIBRARY_PATH=/soft/libraries/aws-ofi-nccl/v1.9.1-aws/lib:/soft/libraries/hwloc/lib:${LD_LIBRARY_PATH:-}
}
