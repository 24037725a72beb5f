# shellcheck shell=bash
# Settings of your site. This is the only file here that you need to edit; all other scripts read it. A variable that is
# already set keeps its value.

# --- Options of sbatch. sbatch reads these variables where you call it, so source this file there first:
#
#         source slurm/site.sh
#
# They override #SBATCH lines; options on the command line override them.
# export SBATCH_ACCOUNT=lab
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal
# export SBATCH_CONSTRAINT=h100

# --- Python: a module, an environment, or nothing if `make install` has made .venv.
# module load python/3.11 cuda/12.8
# PYTHON=/shared/envs/diffcse/bin/python

# --- Or a container: an image, the tool that runs it (apptainer or pyxis), and the host:container folders to mount
#     besides the working directory and the repository, separated by commas. PYTHON is then the one in the image.
# CONTAINER=/shared/images/diffcse.sif
#     CONTAINER_COPY is a path on each node's own disk. The nodes of a job copy the image there first, from one to the
#     next (sbcast), so that 1,000 ranks do not read it, or an environment's 69,000 files, from the shared disk.
# CONTAINER_COPY=/tmp/diffcse-$USER-${SLURM_JOB_ID:-}.sif
#     The name must differ between jobs, because another job may still run from its copy. Most sites empty /tmp after a
#     job.
: "${CONTAINER:=}"
: "${CONTAINER_COPY:=}"
: "${CONTAINER_TOOL:=apptainer}"
: "${CONTAINER_MOUNTS:=}"

# --- Folders for tokenized corpora and for models of the Hub, on a file system that all nodes share.
# export DIFFCSE_CACHE=/scratch/$USER/diffcse-cache
# export HF_HOME=/scratch/$USER/huggingface

# --- Network: no internet, a proxy, or the interface between nodes if the automatic choice is wrong.
# export HF_HUB_OFFLINE=1
# export https_proxy=http://proxy:3128 no_proxy=localhost
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# --- Exit codes after which a job queues itself again. 75: USR1 preempted it and it wrote a checkpoint. 138: USR1 came
#     while a rank was still starting. 77 and 80: a rank was silent or lost. Add 74 if preemption with a GraceTime
#     sends TERM (SlurmctldParameters without preempt_send_user_signal); a cancelled job still stays cancelled.
: "${REQUEUE_ON:=75 77 80 138}"

# --- How often in a row a job may queue itself again without a new checkpoint in its run (or at all, if it has no run).
#     After that it ends with code 78, because it would repeat for ever.
: "${REQUEUES:=5}"
