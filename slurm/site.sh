# shellcheck shell=bash
# What differs from site to site: the one file here to edit. All other scripts read it; what is set already, wins.

# --- What sbatch is told. sbatch reads these variables where it is called, so read this file there first:
#
#         source slurm/site.sh
#
# They count for more than #SBATCH lines and for less than options on the command line.
# export SBATCH_ACCOUNT=lab
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal
# export SBATCH_CONSTRAINT=h100

# --- Python: a module, an environment, or nothing where `make install` has made .venv.
# module load python/3.11 cuda/12.8
# PYTHON=/shared/envs/diffcse/bin/python

# --- A container instead: an image, what runs it (apptainer or pyxis), and the host:container folders that it sees
#     beside the working directory and the repository, comma between two. PYTHON is then the one in the image.
# CONTAINER=/shared/images/diffcse.sif
: "${CONTAINER:=}"
: "${CONTAINER_TOOL:=apptainer}"
: "${CONTAINER_MOUNTS:=}"

# --- Folders, on a file system that all nodes see: tokenized corpora and models of the Hub.
# export DIFFCSE_CACHE=/scratch/$USER/diffcse-cache
# export HF_HOME=/scratch/$USER/huggingface

# --- Network: none beyond the cluster, a proxy, or the interface between nodes where the first one found is wrong.
# export HF_HUB_OFFLINE=1
# export https_proxy=http://proxy:3128 no_proxy=localhost
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# --- After which exit codes a job queues itself again: 75, it was preempted by USR1 and has checkpointed; 138, USR1 met a
#     rank that was still starting. Add 74 where preemption with a GraceTime sends TERM (SlurmctldParameters has no
#     preempt_send_user_signal): what was cancelled stays cancelled all the same. Add 77 to start a run again in which a
#     rank fell silent.
: "${REQUEUE_ON:=75 138}"

# --- And how often in a row at most without a new checkpoint in the run, or at all where there is no run. After that the
#     job ends with code 78: it would go round for ever.
: "${REQUEUES:=5}"
