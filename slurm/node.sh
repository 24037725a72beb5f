#!/usr/bin/env bash
# What the task on each node executes with LAUNCHER=deepspeed: node.sh [CONTAINER...] PYTHON train.py ...
# DeepSpeed's launcher starts the node's ranks, as many as the host file gives each node slots.
hosts=$(mktemp)
printf '%s\n' "$DIFFCSE_HOSTS" >"$hosts"
exec 3<"$hosts" && rm "$hosts" # it stays open under its number, and nothing has to be cleaned up
command=()
while [ "${1##*/}" != train.py ]; do command+=("$1") && shift; done
exec "${command[@]}" -m deepspeed.launcher.runner --no_ssh --node_rank "$SLURM_NODEID" --hostfile /proc/self/fd/3 \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@"
