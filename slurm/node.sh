#!/usr/bin/env bash
# The task on each node runs this with LAUNCHER=deepspeed: node.sh [CONTAINER...] PYTHON train.py ...
# DeepSpeed's launcher starts as many ranks on each node as the host file gives it slots.
hosts=$(mktemp)
printf '%s\n' "$DIFFCSE_HOSTS" >"$hosts"
exec 3<"$hosts" && rm "$hosts" # the file stays open under its number, so it needs no clean-up
# the launcher gives its ranks the GPUs 0, 1, ...; on a shared node this job may have other GPUs, or none, so tell
# train.py which ones
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then export DIFFCSE_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES; fi
ranks=${DIFFCSE_HOSTS##*=}
IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES-}"
case ${DS_ACCELERATOR-},${devices[0]-} in cpu,* | , | ,-1 | ,NoDevFiles) devices=() ;; esac
if [ ${#devices[@]} -gt 0 ] && [ ${#devices[@]} -lt "$ranks" ]; then
    # otherwise several ranks would use the same device
    echo "error: $(hostname) has too few devices for $ranks ranks (CUDA_VISIBLE_DEVICES is $CUDA_VISIBLE_DEVICES); give" \
        "sbatch --gpus-per-node=$ranks, or another --ntasks-per-node." >&2
    exit 2
fi
command=()
while [ "${1##*/}" != train.py ]; do command+=("$1") && shift; done
exec "${command[@]}" -m deepspeed.launcher.runner --no_ssh --node_rank "$SLURM_NODEID" --hostfile /proc/self/fd/3 \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@"
