#!/usr/bin/env bash
# On a Slurm cluster, from the repository's root: a benchmark's script, its videos shared among the tasks of an array.
# Usage: GPUS=8 sbatch --array=0-3 shell/slurm/evaluate.sh shell/eval/online_bench_stream.sh --model DIR ... --output OUT
# Partition, account and time limit: as options of sbatch. The same command answers what an ended task has left.
#SBATCH --job-name=videochat_online_eval
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch, from the root of the repository}" # Slurm runs a copy of this script
if [[ ! -f ${1:-} ]]; then
    echo "usage: sbatch --array=0-N shell/slurm/evaluate.sh SCRIPT [FLAGS]..., found no script '${1:-}'" >&2
    exit 2
fi
[[ -n ${VIRTUAL_ENV:-} || ! -f .venv/bin/activate ]] || source .venv/bin/activate
exec bash "$@" --shard slurm
