#!/usr/bin/env bash
# Start a real SLURM cluster of two nodes on one machine, to develop and test slurm/ without a cluster:
#
#     tests/support/local_cluster.sh install                # Debian or Ubuntu packages
#     tests/support/local_cluster.sh start
#     eval "$(tests/support/local_cluster.sh env)"          # now sbatch, squeue, scancel ... use it
#     tests/support/local_cluster.sh kill-node 1            # node1 loses its slurmd; its tasks continue
#     tests/support/local_cluster.sh start-node 1
#     tests/support/local_cluster.sh status
#     tests/support/local_cluster.sh stop
#
# It needs root, but neither systemd nor cgroups. munged, slurmctld and one slurmd per node run as plain processes.
# Their keys, sockets and state are in one folder. Outside this folder only /etc/hosts changes: it gets lines for the
# nodes, which `stop` removes. The nodes' CPUs, memory and GPUs are fake.
#
#     LOCAL_CLUSTER            that folder (default /tmp/diffcse-slurm)
#     LOCAL_CLUSTER_NODES      2
#     LOCAL_CLUSTER_PORT       first of the ports (default 26917)
#     LOCAL_CLUSTER_KILL_WAIT  seconds between TERM and KILL of a cancelled job (default 15)
set -u

folder=${LOCAL_CLUSTER:-/tmp/diffcse-slurm}
nodes=${LOCAL_CLUSTER_NODES:-2}
port=${LOCAL_CLUSTER_PORT:-26917}
kill_wait=${LOCAL_CLUSTER_KILL_WAIT:-15}
socket=$folder/run/munge.socket
tag="# local_cluster $folder"
export SLURM_CONF=$folder/etc/slurm.conf
export PATH=$PATH:/usr/sbin:/sbin # not every root has the daemons in its PATH

say() { printf 'local_cluster: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

install_packages() {
    apt-get update -q </dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
            slurmctld slurmd slurm-client munge shellcheck </dev/null
}

write_configuration() {
    local i gpus=8
    # fake GPUs, which SLURM counts and assigns; slurmd needs a file for each
    for ((i = 0; i < gpus; i++)); do : >"$folder/etc/gpu$i"; done
    cat >"$folder/etc/gres.conf" <<CONF
AutoDetect=off
Name=gpu File=$folder/etc/gpu[0-$((gpus - 1))]
CONF
    cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$port
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again (default 120 s)
AuthInfo=socket=$socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/run/slurmctld.self.pid
SlurmdPidFile=$folder/run/slurmd.%n.self.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
# so that the log has a line for each task's exit code
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
# use the sizes in the NodeName lines, not those of the machine
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=$kill_wait
MinJobAge=3600
InactiveLimit=0
SlurmctldTimeout=60
# seconds until SLURM gives up a node that has lost its slurmd (default 300)
SlurmdTimeout=15
GresTypes=gpu
CONF
    for ((i = 1; i <= nodes; i++)); do
        echo "NodeName=node$i NodeHostname=node$i NodeAddr=127.0.0.1 Port=$((port + i))" \
            "CPUs=64 RealMemory=512000 Gres=gpu:$gpus State=UNKNOWN"
    done >>"$SLURM_CONF"
    echo "PartitionName=debug Nodes=node[1-$nodes] Default=YES MaxTime=INFINITE DefaultTime=10 State=UP" >>"$SLURM_CONF"
}

# MASTER_ADDR is the name of a node, so the names must resolve. They resolve to the address of the machine's own name,
# because a rendezvous uses that address to decide whether it is the host. The file may be a mount, so it is rewritten
# in place.
name_nodes() {
    local text address i
    text=$(grep -vF "$tag" /etc/hosts)
    if [ "$1" = yes ]; then
        address=$(getent ahostsv4 "$(hostname)" | awk 'NR == 1 { print $1 }')
        for ((i = 1; i <= nodes; i++)); do text+=$'\n'"${address:-127.0.0.1} node$i $tag"; done
    fi
    printf '%s\n' "$text" >/etc/hosts
}

# the process of daemon $1, if it is alive and its number does not belong to another program by now
process_of() {
    local file=$folder/run/$1.pid process program
    [ -s "$file" ] || return 1
    read -r process <"$file"
    program=$(readlink "/proc/$process/exe" 2>/dev/null) || return 1
    case ${program##*/} in
        munged | slurmctld* | slurmd*) echo "$process" ;;
        *) return 1 ;;
    esac
}

launch() { # NAME COMMAND...
    local name=$1
    shift
    setsid "$@" >>"$folder/log/$name.out" 2>&1 </dev/null &
    echo $! >"$folder/run/$name.pid"
    disown
}

launch_node() { launch "slurmd.node$1" slurmd -D -N "node$1" -f "$SLURM_CONF"; }

wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

controller_is_up() { scontrol ping | grep -q UP; }
nodes_are_idle() { [ "$(sinfo -h -N -o %T | grep -cx idle)" -eq "$nodes" ]; }
node_is_up() { sinfo -h -N -n "node$1" -o %T | grep -qxE 'idle|mixed|allocated'; }
nothing_is_queued() { local jobs; jobs=$(squeue -h 2>&1) && [ -z "$jobs" ]; }

# succeeds if a process of this machine listens on port $1
is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
    local program i
    process_of slurmctld >/dev/null && fail "already running"
    for ((i = 0; i <= nodes; i++)); do
        if is_taken $((port + i)); then
            fail "port $((port + i)) is taken; set LOCAL_CLUSTER_PORT to the first of $((nodes + 1)) that are free"
        fi
    done
    [ "$(id -u)" = 0 ] || fail "must run as root"
    for program in munged slurmctld slurmd sbatch; do
        command -v $program >/dev/null || fail "$program not found; run '$0 install' first"
    done
    stop_daemons # of a cluster that died halfway
    mkdir -p "$folder"/{etc,run,log,state} || exit 1
    chmod 755 "$folder" "$folder"/{etc,run,log,state} # munged refuses folders that others may write
    rm -rf "$folder"/state/* "$folder"/spool.node* "$socket" "$socket.lock"
    for ((i = 1; i <= nodes; i++)); do mkdir -p "$folder/spool.node$i"; done
    write_configuration
    name_nodes yes
    [ -s "$folder/etc/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/etc/munge.key")
    launch munged munged --foreground --key-file="$folder/etc/munge.key" --socket="$socket" \
        --pid-file="$folder/run/munged.self.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/run/munged.seed"
    wait_for 15 munge -S "$socket" -n || fail "munged does not answer; see $folder/log"
    launch slurmctld slurmctld -D -f "$SLURM_CONF"
    wait_for 20 controller_is_up || fail "slurmctld does not answer; see $folder/log"
    for ((i = 1; i <= nodes; i++)); do launch_node "$i"; done
    wait_for 30 nodes_are_idle || fail "the nodes do not come up; see $folder/log"
    say "$nodes nodes; export SLURM_CONF=$SLURM_CONF"
}

stop_daemon() {
    local process
    if process=$(process_of "$1"); then
        kill -TERM "$process"
        wait_for 10 is_gone "$1" || kill -KILL "$process"
    fi
    rm -f "$folder/run/$1.pid"
}

is_gone() { ! process_of "$1" >/dev/null; }

# a process and its descendants
tree() {
    local child
    echo "$1"
    # shellcheck disable=SC2013  # words, not lines
    for child in $(cat "/proc/$1"/task/*/children 2>/dev/null); do tree "$child"; done
}

# the processes that run tasks for this cluster; they outlive their slurmd
step_daemons() {
    local process
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe" 2>/dev/null) in */slurmstepd*) ;; *) continue ;; esac
        tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qxF "SLURM_CONF=$SLURM_CONF" && echo "${process#/proc/}"
    done
}

stop_daemons() {
    local i process
    for ((i = 1; i <= nodes; i++)); do stop_daemon "slurmd.node$i"; done
    stop_daemon slurmctld
    for process in $(step_daemons); do
        # shellcheck disable=SC2046  # one argument a process
        kill -KILL $(tree "$process") 2>/dev/null
    done
    stop_daemon munged
}

stop() {
    if process_of slurmctld >/dev/null; then
        squeue -h -o %A | sort -u | xargs -r scancel
        wait_for $((kill_wait + 15)) nothing_is_queued
    fi
    stop_daemons
    name_nodes no
    say "stopped"
}

status() {
    process_of slurmctld >/dev/null || { say "not running"; return 3; }
    sinfo -N -l
    squeue
}

case ${1:-} in
    install) install_packages ;;
    start) start ;;
    stop) stop ;;
    status) status ;;
    env) echo "export SLURM_CONF=$SLURM_CONF" ;;
    kill-node)
        process=$(process_of "slurmd.node$2") || fail "node$2 has no slurmd"
        kill -KILL "$process"
        ;;
    start-node)
        launch_node "$2"
        wait_for 30 node_is_up "$2" || fail "node$2 does not come up; see $folder/log"
        ;;
    *) fail "usage: $0 install|start|stop|status|env|kill-node N|start-node N" ;;
esac
