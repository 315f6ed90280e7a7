#!/usr/bin/env bash
# On a Slurm cluster, from the repository's root: a training script on each node, with 8 GPUs each.
# Usage: sbatch --nodes=4 shell/slurm/train.sh shell/online_4b/videochat_online_4b_stage2_ft.sh [--any_key value]...
# Partition, account, time limit: as options of sbatch. Ten minutes before that limit (--signal=B:USR1@SECONDS: two steps
# and a checkpoint) the run saves, ends and is queued again; the same command goes on where a job was ended otherwise.
#SBATCH --job-name=videochat_online
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch, from the root of the repository}" # Slurm runs a copy of this script
[[ -f ${1:-} ]] || { echo "usage: sbatch shell/slurm/train.sh SCRIPT [--key value]..., no script '${1:-}'" >&2; exit 2; }
[[ -n ${VIRTUAL_ENV:-} || ! -f .venv/bin/activate ]] || source .venv/bin/activate
export SAVE_FILE="$PWD/.save-$SLURM_JOB_ID" TORCHELASTIC_SIGNALS_TO_HANDLE=SIGINT heard="" requeue="" status=0
trap 'heard=1 requeue=1; echo stop >"$SAVE_FILE"' USR1
trap 'heard=1; echo stop >"$SAVE_FILE"' TERM
# Workers heed TERM by themselves; torchrun, which would kill them 30 s after it, does not.
srun --kill-on-bad-exit=1 bash -c 'trap "" TERM && exec bash "$@"' bash "$@" &
while heard="" status=0; wait $! || status=$?; [[ -n $heard && $status -gt 128 ]]; do :; done # a trap ends a wait
rm -f "$SAVE_FILE"
[[ -z $requeue || $status -eq 0 ]] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
