#!/usr/bin/env bash
# Inside a job: build the cube from the sources with Dask on all nodes, or go on with one that was cut short.
set -euo pipefail
# shellcheck source=deploy/hpc/env.sh
. "$(dirname "$0")/env.sh"
begin_job
workers=$((${#NODES[@]} * GRIDRAD_CORES))
interface=(${GRIDRAD_INTERFACE:+--interface "$GRIDRAD_INTERFACE"})

# Where the scheduler says where it is, and the key of its connections: for the owner's eyes.
folder=$GRIDRAD_WORK/jobs/$JOB
mkdir -p "$folder"
chmod 700 "$folder"
scheduler=$folder/scheduler.json
key=$folder/dask.pem

# A Dask cluster runs whatever it is sent by whoever reaches it, and a node's ports are open to all users of the
# machine: everything is encrypted, with a key of this job that only its owner can read.
"${RUN[@]}" python - "$key" <<'PYTHON'
import os
import sys

from distributed import Security

made = Security.temporary()
with open(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
    file.write(made.tls_client_key + made.tls_client_cert)
PYTHON
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$key
for role in CLIENT SCHEDULER WORKER; do
  export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$key" \
    "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$key"
done

# Of Dask's chatter the log keeps what went wrong.
export DASK_LOGGING__DISTRIBUTED=warning

scheduler_pid='' workers_pid=''
end_dask() {
  # The workers end when the scheduler does; those that hang are ended after a while.
  kill "$scheduler_pid" 2>/dev/null || true
  (sleep 20 && kill "$workers_pid") >/dev/null 2>&1 &
  wait "$scheduler_pid" "$workers_pid" 2>/dev/null || true
  kill $! 2>/dev/null || true
  rm -rf "$folder"
}
trap end_dask EXIT
rm -f "$scheduler" # of an earlier run of this job
"${RUN[@]}" dask scheduler "${interface[@]}" --port 0 --scheduler-file "$scheduler" \
  --dashboard-address "${GRIDRAD_DASHBOARD:-127.0.0.1:0}" &
scheduler_pid=$!
# One thread a worker: netCDF4 crashes in several. What spills goes to the node's own disk.
on_nodes 1 "$GRIDRAD_CORES"
"${LAUNCH[@]}" "${RUN[@]}" dask worker "${interface[@]}" --scheduler-file "$scheduler" \
  --nworkers "$GRIDRAD_CORES" --nthreads 1 --memory-limit "${GRIDRAD_WORKER_MEMORY:-auto}" \
  --local-directory "${GRIDRAD_SCRATCH:-/tmp}" --dashboard-address 127.0.0.1:0 --death-timeout 300 &
workers_pid=$!

# The command keeps as many files under way as there are workers when it starts: wait for all of them.
address=$(
  "${RUN[@]}" python - "$scheduler" "$workers" <<'PYTHON'
import sys

from distributed import Client

client = Client(scheduler_file=sys.argv[1], timeout=300)
client.wait_for_workers(int(sys.argv[2]), timeout=600)
print(client.scheduler.address)
PYTHON
)
echo "preprocess: $workers workers at $address"

release_claim "$GRIDRAD_CUBE"
supervise "${RUN[@]}" gridrad-cube preprocess "${GRIDRAD_SOURCES[@]}" --store "$GRIDRAD_CUBE" --scheduler "$address" \
  "${GRIDRAD_PREPROCESS[@]}"
