# shellcheck shell=bash
# Sourced by every job script, which has noted since its first command in `asked` what came meanwhile, USR1 or TERM: bash
# would die of either, and site.sh may load modules for seconds.
#
# sbatch runs a copy of a script from a folder of its own, so a script cannot tell where it came from: submit from the
# repository's root, or export DIFFCSE_HOME and submit from anywhere. Relative paths are those of the folder in which
# you submit.
DIFFCSE_HOME=${DIFFCSE_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
: "${asked:=}"
running='' stop_file='' output='' before='' signalled='' repeater=''
source "$DIFFCSE_HOME/slurm/site.sh"

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "$CONTAINER" ] && [ -x "$DIFFCSE_HOME/.venv/bin/python" ]; then PYTHON=$DIFFCSE_HOME/.venv/bin/python; fi
fi

# torch would start a thread for every core of the node in every rank
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# srun no longer takes --cpus-per-task over from the job (since 22.05): a rank would be left with one core
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# the text is tokenized by processes, each of which would start threads
export TOKENIZERS_PARALLELISM=false
# the last words of a killed rank are in the log
export PYTHONUNBUFFERED=1
# a crash below Python (a driver, a kernel) leaves the Python stack in the log
export PYTHONFAULTHANDLER=1
# a collective whose peer has died ends the process, without a clean-up that may hang in its turn
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}
# NCCL says nothing at all by default, not even why it failed
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# How a step is run. A rank that leaves takes the others with it after `--wait` seconds; --kill-on-bad-exit would do so
# at once, in the middle of what they still write, and the step would end with their signal instead of its exit code.
step=(srun --kill-on-bad-exit=0 --wait="${SLURM_WAIT:-60}")
contained=()
if [ -n "$CONTAINER" ]; then
    mounts=$PWD:$PWD,$DIFFCSE_HOME:$DIFFCSE_HOME${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
    case $CONTAINER_TOOL in
        apptainer) contained=(apptainer exec --nv --pwd "$PWD" --bind "$mounts" "$CONTAINER") ;;
        pyxis) step+=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD") ;;
        *) echo "error: CONTAINER_TOOL is $CONTAINER_TOOL; apptainer and pyxis are known." >&2 && exit 2 ;;
    esac
fi
# shellcheck disable=SC2034  # the scripts use it
cli=("${contained[@]}" "$PYTHON" -m diffcse_scale)

# has_tasks: whether the running step has tasks on this node, the first of the job's
has_tasks() {
    scontrol listpids "$SLURM_JOB_ID" "${SLURMD_NODENAME:-}" 2>/dev/null |
        awk '$1 > 0 && $3 ~ /^[0-9]+$/ && $4 ~ /^[0-9]+$/ { found = 1 } END { exit !found }'
}

# repeat_request: srun passes USR1 on to every task (TERM it does not), and forgets it while there are none. DeepSpeed's
# launcher passes on nothing, so training looks for a file, once a second, and takes no notice of one older than itself.
repeat_request() {
    local heard=
    while [ -z "$heard" ] && kill -0 "$running"; do
        if [ -n "$stop_file" ]; then
            if mkdir -p "$output"; then echo requeue >"$stop_file" || true; fi
        else
            if has_tasks; then heard=yes && sleep 0.2; fi # until they have begun
            kill -USR1 "$running" || true # it may have ended just now
        fi
        sleep 1
    done 2>/dev/null
}

# preempt: tell the running step, if there is one, to checkpoint and leave
preempt() {
    if [ -z "$running" ] || { [ -n "$repeater" ] && kill -0 "$repeater" 2>/dev/null; }; then return; fi
    repeat_request &
    repeater=$!
}

trap 'signalled=yes; : "${asked:=USR1}"; preempt' USR1 # the time limit is near, or another job wants the nodes
trap 'signalled=yes asked=TERM' TERM                   # scancel or the time limit itself: the tasks have got it too

# run COMMAND...: the exit code is left in `code`. In the background, as bash acts on a signal only between two commands.
run() {
    code=0
    # nothing has begun that could be stopped
    case $asked in USR1) code=75 ;; TERM) code=143 ;; esac
    if [ "$code" != 0 ]; then return; fi
    "$@" &
    running=$!
    if [ -n "$asked" ]; then preempt; fi # it has come just now
    while :; do
        signalled=
        wait "$running" && code=0 || code=$?
        # a signal ends `wait`, not the step; after the step's end its exit code is given once more
        [ -n "$signalled" ] || break
    done
    running=
    if [ -n "$repeater" ]; then
        wait "$repeater" || true
        if [ -n "$stop_file" ]; then rm -f "$stop_file"; fi
    fi
}

# reached: the step of the run's newest checkpoint; nothing before the first, and for a job without a run
reached() { if [ -n "$output" ]; then sed -n 's/^step-0*//p' "$output/checkpoints/latest" 2>/dev/null || true; fi; }

# starts_in_vain: how many of this job's starts, one after another and this one the last, have made no new checkpoint.
# `requeues` in the run has the job, the first of these starts, and the step that the run stands at.
starts_in_vain() {
    local restart=${SLURM_RESTART_COUNT:-0} first=0 step job stood
    if [ -n "$output" ]; then
        step=$(reached)
        read -r job first stood 2>/dev/null <"$output/requeues" || true
        if [ "${job:-} ${stood:-}" != "$SLURM_JOB_ID $step" ]; then
            first=$((restart + 1))
            if [ "$step" = "$before" ]; then first=$restart; fi
        fi
        # where that cannot be written down all starts count
        { mkdir -p "$output" && echo "$SLURM_JOB_ID $first $step" >"$output/requeues"; } 2>/dev/null || first=0
    fi
    echo $((restart - first + 1))
}

# leave: requeue this job if its step ended for that, else end as the step did. What was cancelled stays cancelled.
leave() {
    # one run of an array: its last one has the array's own number as its own, which stands for all of them
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} stands
    job=${job:-$SLURM_JOB_ID}
    if [ "$asked" = TERM ] || [[ " $REQUEUE_ON " != *" $code "* ]]; then exit "$code"; fi
    if [ "$(starts_in_vain)" -gt "$REQUEUES" ]; then
        stands="has not finished"
        if [ -n "$output" ]; then stands="$output has no new checkpoint (its step: $(reached | grep . || echo none))"; fi
        echo "error: job $job was queued again $REQUEUES times in a row, and $stands; submit it with a longer time" \
            "limit, or a smaller checkpoint_every, or prepare the corpus before with slurm/prepare.sbatch." >&2
        exit 78
    fi
    echo "Exit code $code: job $job queues itself again."
    trap '' TERM # which scontrol sends to this very script
    scontrol requeue "$job" || exit "$code"
    exit 0
}

# meeting_place: where the ranks of this job find each other, and how many they are
meeting_place() {
    read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # another port for each job and restart: what is left of an earlier one must not meet this one. Below 32768 the
    # system gives none away by itself.
    MASTER_PORT=$((20000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0}) % 12000))
    DIFFCSE_WORLD_SIZE=$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))
    export MASTER_ADDR MASTER_PORT DIFFCSE_WORLD_SIZE
}

# train [train.py's arguments]: the whole job, from the rank variables to the requeue. Without --output the run lies
# where every restart of this job finds it.
train() {
    local option='' argument said
    for argument in "$@"; do
        if [ "$option" = --output ]; then output=$argument; fi
        case $argument in --output=*) output=${argument#*=} ;; esac
        option=$argument
    done
    if [ -z "$output" ]; then
        output=runs/$SLURM_JOB_NAME-$SLURM_JOB_ID
        set -- "$@" --output "$output"
    fi
    set -- "$DIFFCSE_HOME/train.py" --auto-resume "$@"
    before=$(reached)
    said=$(cat "$output/status.json" 2>/dev/null || true)

    meeting_place
    case ${LAUNCHER:=srun} in
        srun) run "${step[@]}" "$DIFFCSE_HOME/slurm/rank.sh" "${contained[@]}" "$PYTHON" "$@" ;;
        deepspeed)
            # one launcher a node; without a number of CPUs a task it has all that the job has there
            step+=(--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
            unset SRUN_CPUS_PER_TASK
            stop_file=$output/stop
            DIFFCSE_HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$SLURM_NTASKS_PER_NODE/")
            export DIFFCSE_HOSTS
            run "${step[@]}" "$DIFFCSE_HOME/slurm/node.sh" "${contained[@]}" "$PYTHON" "$@"
            ;;
        *) echo "error: LAUNCHER is $LAUNCHER; srun and deepspeed are known." >&2 && exit 2 ;;
    esac

    # where a rank had to be killed srun gives that code, the largest, and not what the others said: it is in the status,
    # unless that is still an earlier start's
    if [ "$code" -gt 128 ] && [ "$(cat "$output/status.json" 2>/dev/null)" != "$said" ]; then
        code=$(sed -n 's/.*"exit_code": \(7[0-9]\).*/\1/p' "$output/status.json" 2>/dev/null | grep . || echo "$code")
    fi
    if [ "$code" = 0 ] && [ ! -e "$output/result.json" ]; then
        echo "error: the step ended with exit code 0, but $output has no result.json: the run has not finished." >&2
        code=1
    fi
    leave
}
