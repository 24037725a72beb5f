# shellcheck shell=bash
# Every job script sources this file. From its first command on, a job script notes USR1 or TERM in `asked`, because
# either would end bash, and site.sh may load modules for seconds.
#
# sbatch runs a copy of the script from its own folder, so a script cannot tell where it came from. Submit from the
# repository's root, or export DIFFCSE_HOME and submit from anywhere. Relative paths start at the folder in which you
# submit.
DIFFCSE_HOME=${DIFFCSE_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
: "${asked:=}"
running='' stop_file='' output='' before='' signalled='' repeater=''
source "$DIFFCSE_HOME/slurm/site.sh"

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "$CONTAINER" ] && [ -x "$DIFFCSE_HOME/.venv/bin/python" ]; then PYTHON=$DIFFCSE_HOME/.venv/bin/python; fi
fi

# otherwise torch starts a thread for every core of the node in every rank
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# since 22.05 srun does not inherit --cpus-per-task from the job, and a rank would have one core
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# several processes tokenize the text, and each would start threads
export TOKENIZERS_PARALLELISM=false
# the log has all output of a killed rank
export PYTHONUNBUFFERED=1
# a crash below Python (a driver, a kernel) leaves the Python stack in the log
export PYTHONFAULTHANDLER=1
# a collective whose peer has died ends the process without a clean-up, which could hang too
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}
# by default NCCL does not report why it failed
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# The command that runs a step. When a rank exits, srun ends the others after `--wait` seconds. --kill-on-bad-exit would
# end them at once, while they still write, and the step would return their signal instead of its exit code.
step=(srun --kill-on-bad-exit=0 --wait="${SLURM_WAIT:-60}")
contained=()
if [ -n "$CONTAINER" ]; then
    # read the shared disk once, not in each rank at each import
    if [ -n "${CONTAINER_COPY:-}" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
        sbcast --force "$CONTAINER" "$CONTAINER_COPY" || exit
        CONTAINER=$CONTAINER_COPY
    fi
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

# repeat_request: srun passes USR1 (but not TERM) on to every task, and drops it while there are no tasks. DeepSpeed's
# launcher passes on no signal, so training checks for a file once a second, and ignores a file older than itself.
repeat_request() {
    local heard=
    while [ -z "$heard" ] && kill -0 "$running"; do
        if [ -n "$stop_file" ]; then
            if mkdir -p "$output"; then echo requeue >"$stop_file" || true; fi
        else
            if has_tasks; then heard=yes && sleep 0.2; fi # wait until they have started
            kill -USR1 "$running" || true # it may have ended just now
        fi
        sleep 1
    done 2>/dev/null
}

# preempt: tell the running step, if there is one, to save a checkpoint and exit
preempt() {
    if [ -z "$running" ] || { [ -n "$repeater" ] && kill -0 "$repeater" 2>/dev/null; }; then return; fi
    repeat_request &
    repeater=$!
}

trap 'signalled=yes; : "${asked:=USR1}"; preempt' USR1 # the time limit is near, or another job wants the nodes
trap 'signalled=yes asked=TERM' TERM                   # scancel or the time limit itself; the tasks receive it too

# run COMMAND...: put the exit code into `code`. COMMAND runs in the background, because bash handles a signal only
# between two commands.
run() {
    code=0
    # nothing has started yet, so there is nothing to stop
    case $asked in USR1) code=75 ;; TERM) code=143 ;; esac
    if [ "$code" != 0 ]; then return; fi
    "$@" &
    running=$!
    if [ -n "$asked" ]; then preempt; fi # the signal came just now
    while :; do
        signalled=
        wait "$running" && code=0 || code=$?
        # a signal ends `wait`, not the step; after the step's end, `wait` returns its exit code again
        [ -n "$signalled" ] || break
    done
    running=
    if [ -n "$repeater" ]; then
        wait "$repeater" || true
        if [ -n "$stop_file" ]; then rm -f "$stop_file"; fi
    fi
}

# reached: the step of the run's newest checkpoint; empty before the first one, and for a job without a run
reached() { if [ -n "$output" ]; then sed -n 's/^step-0*//p' "$output/checkpoints/latest" 2>/dev/null || true; fi; }

# starts_in_vain: how many of this job's last starts in a row, this one included, have made no new checkpoint.
# `requeues` in the run has the job, the first of these starts, and the run's current step.
starts_in_vain() {
    local restart=${SLURM_RESTART_COUNT:-0} first=0 step job stood
    if [ -n "$output" ]; then
        step=$(reached)
        read -r job first stood 2>/dev/null <"$output/requeues" || true
        if [ "${job:-} ${stood:-}" != "$SLURM_JOB_ID $step" ]; then
            first=$((restart + 1))
            if [ "$step" = "$before" ]; then first=$restart; fi
        fi
        # if the file cannot be written, all starts count
        { mkdir -p "$output" && echo "$SLURM_JOB_ID $first $step" >"$output/requeues"; } 2>/dev/null || first=0
    fi
    echo $((restart - first + 1))
}

# last_words MESSAGE: write MESSAGE into the run's status, if it has one; its last process reported a different end
last_words() {
    if [ -z "$output" ] || [ ! -e "$output/status.json" ]; then return; fi
    local inside=("${contained[@]}")
    # pyxis runs only steps in a container
    if [ -n "$CONTAINER" ] && [ "$CONTAINER_TOOL" = pyxis ]; then
        inside=("${step[@]}" --nodes=1 --ntasks=1 --ntasks-per-node=1)
    fi
    "${inside[@]}" "$PYTHON" -c 'import sys; from diffcse_scale.runs.status import gave_up; gave_up(*sys.argv[1:])' \
        "$output" "$1" || true
}

# leave: requeue this job if the step's exit code is in REQUEUE_ON, otherwise exit with that code. A cancelled job stays
# cancelled.
leave() {
    # name a single run of an array: the last run has the array's own number, which would mean all runs
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} stands said
    job=${job:-$SLURM_JOB_ID}
    if [ "$asked" = TERM ] || [[ " $REQUEUE_ON " != *" $code "* ]]; then exit "$code"; fi
    if [ "$(starts_in_vain)" -gt "$REQUEUES" ]; then
        stands="has not finished"
        if [ -n "$output" ]; then stands="$output has no new checkpoint (its step: $(reached | grep . || echo none))"; fi
        said="Job $job was queued again $REQUEUES times in a row, and $stands; submit it with a longer time limit or a"
        said+=" smaller checkpoint_every, or prepare the corpus first with slurm/prepare.sbatch."
        echo "error: $said" >&2
        last_words "$said"
        exit 78
    fi
    echo "Exit code $code: job $job queues itself again."
    trap '' TERM # scontrol sends it to this script
    scontrol requeue "$job" || exit "$code"
    exit 0
}

# meeting_place: set the address at which the ranks of this job connect, and their number
meeting_place() {
    read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # use another port for each job and restart, so that processes of an earlier start cannot connect to this one. The
    # system itself assigns no ports below 32768.
    MASTER_PORT=$((20000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0}) % 12000))
    DIFFCSE_WORLD_SIZE=$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))
    export MASTER_ADDR MASTER_PORT DIFFCSE_WORLD_SIZE
}

# train [train.py's arguments]: run the whole job, from the rank variables to the requeue. Without --output the run is
# in a folder where every restart of this job finds it.
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
            # start one launcher per node; without SRUN_CPUS_PER_TASK it has all of the job's CPUs there
            step+=(--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
            unset SRUN_CPUS_PER_TASK
            stop_file=$output/stop
            DIFFCSE_HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=$SLURM_NTASKS_PER_NODE/")
            export DIFFCSE_HOSTS
            run "${step[@]}" "$DIFFCSE_HOME/slurm/node.sh" "${contained[@]}" "$PYTHON" "$@"
            ;;
        *) echo "error: LAUNCHER is $LAUNCHER; srun and deepspeed are known." >&2 && exit 2 ;;
    esac

    # if srun had to kill a rank, it returns that rank's code, because it is the largest. The status has the code of the
    # others, unless an earlier start wrote it
    if [ "$code" -gt 128 ] && [ "$(cat "$output/status.json" 2>/dev/null)" != "$said" ]; then
        code=$(sed -n 's/.*"exit_code": \([78][0-9]\).*/\1/p' "$output/status.json" 2>/dev/null | grep . || echo "$code")
    fi
    if [ "$code" = 0 ] && [ ! -e "$output/result.json" ]; then
        echo "error: the step ended with exit code 0, but $output has no result.json: the run has not finished." >&2
        code=1
    fi
    leave
}
