#!/usr/bin/env bash
# Run a result on TPU slices of any GKE cluster that has JobSet:
#
#   IMAGE=registry/lightnet-lab ACCELERATOR=tpu-v5p-slice TOPOLOGY=4x4x8 \
#     launch/gke.sh NAME lightnet/wikitext103 --preset paper --runs_dir gs://bucket/runs | kubectl apply -f -
#
# It prints the JobSet.
#
# IMAGE                   of launch/Dockerfile, from a registry that the cluster reads
# ACCELERATOR, TOPOLOGY   of a slice, as the node pool has them
# CHIPS                   of a host (default: 4)
# SLICES                  how many (default: 1)
# RESTARTS                how often all of it is started again after a failure or a preemption (default: 100)
set -euo pipefail

if (($# < 2)); then
  sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
: "${IMAGE:?IMAGE is missing}" "${ACCELERATOR:?ACCELERATOR is missing, such as tpu-v5p-slice}"
: "${TOPOLOGY:?TOPOLOGY is missing, such as 4x4x8}"
name=$1
shift
chips=${CHIPS:-4}
hosts=$((${TOPOLOGY//x/*} / chips))
((hosts > 0)) || hosts=1

words() { # as a list of strings in YAML, which quotes as JSON does
  local word
  for word in "$@"; do
    word=${word//\\/\\\\}
    printf ', "%s"' "${word//\"/\\\"}"
  done
}

cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-100}
  replicatedJobs:
    - name: slice
      replicas: ${SLICES:-1}
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
              containers:
                - name: run
                  image: $IMAGE
                  command: ["python", "-m", "experiments", "run"$(words "$@")]
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $chips
YAML
