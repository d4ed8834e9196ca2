#!/usr/bin/env bash
# Run a result on TPU slices of a GKE cluster that xpk made:
#
#   CLUSTER=mine TYPE=v5p-256 launch/xpk.sh NAME lightnet/wikitext103 --preset paper --runs_dir gs://bucket/runs
#
# xpk puts this checkout on top of the base image; launch/Dockerfile makes one with everything installed.
#
# CLUSTER, TYPE   of the cluster, and of its slices
# IMAGE           base image (default: lightnet-lab)
# SLICES          how many (default: 1)
# RESTARTS        how often a workload that failed or was preempted is started again (default: 100)
set -euo pipefail

if (($# < 2)); then
  sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
: "${CLUSTER:?CLUSTER is missing}" "${TYPE:?TYPE is missing, such as v5p-256}"
name=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
printf -v run '%q ' "$@"
exec xpk workload create --cluster "$CLUSTER" --workload "$name" --tpu-type "$TYPE" --num-slices "${SLICES:-1}" \
  --base-docker-image "${IMAGE:-lightnet-lab}" --script-dir . --max-restarts "${RESTARTS:-100}" \
  --command "python -m experiments run $run"
