#!/usr/bin/env bash
# Called by the stage scripts: launch.sh CONFIG [--any_key value]... Relative paths are the caller's.
# One node:       GPUS=8 (default: all that nvidia-smi lists, else one process on the CPU)
# Several nodes:  the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT
# Slurm:          srun --ntasks-per-node=1 bash shell/online_4b/... sets all of these by itself
set -euo pipefail

found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
first_node=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null | head -n 1 || true)
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-$((found > 0 ? found : 1))}}
NNODES=${NNODES:-${SLURM_NNODES:-1}}
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-0}}
MASTER_ADDR=${MASTER_ADDR:-${first_node:-127.0.0.1}}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # of each process; torchrun's own default, without its warning
MASTER_PORT=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-9500} % 20000))}

if [[ " $* " == *" --dry"[-_]"run "* ]]; then # one process stands for all; torchrun's traceback would bury an error
    PLANNED_PROCESSES=$((GPUS * NNODES)) exec videochat-online train --config "$@"
fi
exec torchrun --nnodes "$NNODES" --node_rank "$NODE_RANK" --nproc_per_node "$GPUS" \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
    -m videochat_online.cli.main train --config "$@"
