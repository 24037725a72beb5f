#!/usr/bin/env bash
# Each task of srun runs this: rank.sh COMMAND... It sets the variables by which torch and DeepSpeed identify a rank.
# `exec` replaces the task's process, so that the command receives its signals.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
exec "$@"
