#!/usr/bin/env bash
# Run a result on the nodes of a Slurm cluster, one process for each GPU:
#
#   sbatch --nodes 2 launch/slurm.sh lightnet/causal_lm --preset gpu --runs_dir /shared/runs
#
# The runs folder must be one that all nodes see. Options of sbatch on the command line win over those below.
#SBATCH --job-name=lightnet-lab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time is over the processes are told to save and leave.
#SBATCH --signal=TERM@120
set -uo pipefail

left=75 # exit status of a run that saved after SIGTERM

if (($# == 0)); then
  sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "error: this script is for sbatch: sbatch ${BASH_SOURCE[0]} $*" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2

# A process that ends badly ends the step; the processes notice their number and each other by Slurm's variables.
srun --kill-on-bad-exit=1 --wait=120 .venv/bin/python -m experiments run "$@"
status=$?
if ((status == left)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
