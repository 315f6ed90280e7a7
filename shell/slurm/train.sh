#!/usr/bin/env bash
# On a Slurm cluster, from the repository's root: a training script on each node, with 8 GPUs each.
# Usage: sbatch --nodes=4 shell/slurm/train.sh shell/online_4b/videochat_online_4b_stage2_ft.sh [--any_key value]...
# Partition, account and time limit: as options of sbatch. The same command goes on where a job was ended.
#SBATCH --job-name=videochat_online
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --output=%x-%j.log
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch, from the root of the repository}" # Slurm runs a copy of this script
if [[ ! -f ${1:-} ]]; then
    echo "usage: sbatch --nodes=N shell/slurm/train.sh SCRIPT [--any_key value]..., found no script '${1:-}'" >&2
    exit 2
fi
[[ -n ${VIRTUAL_ENV:-} || ! -f .venv/bin/activate ]] || source .venv/bin/activate
exec srun --kill-on-bad-exit=1 bash "$@"
