#!/usr/bin/env bash
# Run a result on a Cloud TPU of any number of hosts, through a queued resource:
#
#   PROJECT=mine ZONE=us-east5-a TYPE=v5p-256 \
#     launch/tpu_vm.sh NAME lightnet/wikitext103 --preset paper --runs_dir gs://bucket/runs
#
# It asks for the TPU unless NAME is there, waits for it, installs this commit on every host and starts the run. When the
# run is preempted, with its hosts or without, it does all that again: the same command continues the run. At the end
# the TPU stays: gcloud compute tpus queued-resources delete NAME --force gives it back.
#
# PROJECT, ZONE, TYPE   of the TPU; RUNTIME its software version; SPOT=1 asks for one that may be taken away
# SOURCE                where the hosts clone from; the commit is that of this checkout (default: its remote "origin")
# PREPARE, PYTHON       what every host does first, and its Python: images of TPUs mostly bring one before 3.11
# PATIENCE              seconds between two looks at a queued resource (default: 60)
set -uo pipefail

left=75 # exit status of a run that saved after SIGTERM
runtime=${RUNTIME:-v2-alpha-tpuv5}

usage() {
  sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

state() { # of the queued resource; empty if there is none
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format 'value(state.state)' 2>/dev/null
}

request() {
  local spot=()
  [[ ${SPOT:-} == 1 ]] && spot=(--spot)
  gcloud compute tpus queued-resources create "$name" --node-id "$name" "${where[@]}" \
    --accelerator-type "$TYPE" --runtime-version "$runtime" ${spot[@]+"${spot[@]}"}
}

obtain() { # until the TPU is there
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | SUSPENDING) gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ;;
    esac
    sleep "${PATIENCE:-60}"
  done
  [[ $now == ACTIVE ]] && return
  request && sleep "${PATIENCE:-60}" && obtain
}

on_every_host() {
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command "$1"
}

(($# >= 2)) || usage
: "${PROJECT:?PROJECT is missing}" "${ZONE:?ZONE is missing}" "${TYPE:?TYPE is missing, such as v5p-256}"
name=$1
shift
where=(--project "$PROJECT" --zone "$ZONE")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
source=${SOURCE:-$(git remote get-url origin)} || exit 2
commit=$(git rev-parse HEAD) || exit 2

install="${PREPARE:-true} && { test -d lightnet-lab || git clone --quiet $(printf %q "$source") lightnet-lab; } \
  && cd lightnet-lab && git fetch --quiet origin && git checkout --quiet $commit \
  && make install EXTRA=tpu PYTHON=${PYTHON:-python3} && .venv/bin/pip install --quiet -c constraints.txt gcsfs"
printf -v run '%q ' "$@"

while obtain; do
  if on_every_host "$install"; then
    on_every_host "cd lightnet-lab && LIGHTNET_PROCESSES=auto .venv/bin/python -m experiments run $run"
    status=$?
    # A run that ended by itself, well or badly, is not started again as long as its hosts are there.
    if ((status != left)) && [[ $(state) == ACTIVE ]]; then
      exit "$status"
    fi
  elif [[ $(state) == ACTIVE ]]; then
    echo "error: $commit of $source cannot be installed on $name" >&2
    exit 1
  fi
  sleep "${PATIENCE:-60}"
done
echo "error: no TPU $TYPE in $ZONE" >&2
exit 1
