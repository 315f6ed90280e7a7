#!/usr/bin/env bash
# Called by the stage scripts: launch.sh CONFIG [--any_key value]... Relative paths are the caller's.
# One node:       GPUS=8 (default: all that nvidia-smi lists, else one process on the CPU)
# Several nodes:  the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT (the next is used, too);
#                 LOCAL_ADDR is this node's own address, where its host name leads nowhere
# Slurm:          srun --ntasks-per-node=1 bash shell/online_4b/... sets all of these by itself
set -euo pipefail
[[ -f ${1:-} ]] || { echo "error: expected launch.sh CONFIG and keys, found no file '${1:-}'" >&2; exit 2; }

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
LOCAL_ADDR=${LOCAL_ADDR:-${SLURMD_NODENAME:-}}
((NNODES > 1)) || LOCAL_ADDR=127.0.0.1
training=(torchrun --nnodes "$NNODES" --nproc_per_node "$GPUS" --rdzv_backend c10d --rdzv_id "$MASTER_PORT"
    --rdzv_endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv_conf "is_host=$((NODE_RANK == 0))"
    ${LOCAL_ADDR:+--local_addr "$LOCAL_ADDR"} -m videochat_online.cli.main train --config "$@")
((NNODES > 1)) || exec "${training[@]}"
exec python "$(dirname "${BASH_SOURCE[0]}")/nodes.py" "$NNODES" "$NODE_RANK" "$MASTER_ADDR:$((MASTER_PORT + 1))" "${training[@]}"
