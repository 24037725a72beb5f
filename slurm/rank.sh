#!/usr/bin/env bash
# What each task of srun executes: rank.sh COMMAND... with the variables by which torch and DeepSpeed know a rank.
# `exec`, so that the command has the task's process and gets its signals.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
exec "$@"
