#!/usr/bin/env bash
# A real Slurm of one node on this machine, started by hand: no systemd, no cgroups, no database.
#
#   apt-get install slurm-wlm munge                 # Debian, Ubuntu
#   eval "$(scripts/slurm_one_node.sh start)"       # sets SLURM_CONF in this shell
#   sbatch --wait --wrap hostname
#   scripts/slurm_one_node.sh status
#   scripts/slurm_one_node.sh stop
#
# Two partitions share the node: jobs in `high` preempt those in `low` (the default), which are told by a signal, have
# GRACE seconds to save, and are put back into the queue.
#
# All of it lies below SLURM_ONE_NODE_DIR (default: slurm-one-node-<user> in TMPDIR), and `stop` leaves nothing running.
set -euo pipefail

FOLDER=${SLURM_ONE_NODE_DIR:-${TMPDIR:-/tmp}/slurm-one-node-$(id -un)}
GRACE=${SLURM_ONE_NODE_GRACE:-30}
# CPUs that the node says it has; more than there are lets more jobs run side by side.
CPUS=${SLURM_ONE_NODE_CPUS:-$(nproc)}
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$FOLDER/slurm.conf

fail() {
    echo "error: $*" >&2
    exit 1
}

give_up() {
    stop
    fail "$*"
}

free_port() {
    local port
    for _ in $(seq 50); do
        port=$((20000 + RANDOM % 10000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    fail "no free port between 20000 and 30000"
}

# Ends a daemon by the id in its file, and waits until it is gone.
end_daemon() {
    local file=$1 pid
    [ -s "$file" ] || return 0
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$file"
}

is_running() {
    [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null
}

write_config() {
    local host memory
    host=$(hostname -s)
    memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
    cat >"$SLURM_CONF" <<CONFIG
ClusterName=onenode
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
# A job that is put back into the queue waits until its old credential has expired: 120 s unless this says less.
AuthInfo=socket=$FOLDER/munge.socket,cred_expire=5
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=10
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=$memory State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONFIG
}

start() {
    local program
    for program in munged slurmctld slurmd; do
        command -v "$program" >/dev/null || fail "$program is missing: apt-get install slurm-wlm munge"
    done
    if is_running "$FOLDER/slurmctld.pid"; then
        fail "a Slurm runs in $FOLDER already; end it with: $0 stop"
    fi
    mkdir -p "$FOLDER" "$FOLDER/state" "$FOLDER/spool"
    chmod 755 "$FOLDER"
    [ -s "$FOLDER/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$FOLDER/munge.key")
    write_config
    munged --key-file="$FOLDER/munge.key" --socket="$FOLDER/munge.socket" --pid-file="$FOLDER/munged.pid" \
        --log-file="$FOLDER/munged.log" --seed-file="$FOLDER/munged.seed" >&2 || give_up "munged: see $FOLDER/munged.log"
    slurmctld >&2 || give_up "slurmctld: see $FOLDER/slurmctld.log"
    slurmd >&2 || give_up "slurmd: see $FOLDER/slurmd.log"
    for _ in $(seq 100); do
        case $(sinfo --noheader --format %T 2>/dev/null | head -1) in idle* | mixed* | allocated*) break ;; esac
        sleep 0.2
    done
    case $(sinfo --noheader --format %T 2>/dev/null | head -1) in
        idle* | mixed* | allocated*) ;;
        *) give_up "the node did not come up within 20 s: see $FOLDER/slurmctld.log and $FOLDER/slurmd.log" ;;
    esac
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    if is_running "$FOLDER/slurmctld.pid"; then
        scancel --user "$(id -un)" 2>/dev/null || true
        for _ in $(seq 60); do # jobs that are told to end may save first
            [ -n "$(squeue --noheader 2>/dev/null)" ] || break
            sleep 0.5
        done
    fi
    end_daemon "$FOLDER/slurmctld.pid"
    end_daemon "$FOLDER/slurmd.pid"
    end_daemon "$FOLDER/munged.pid"
    rm -rf "$FOLDER/state" "$FOLDER/spool"
}

status() {
    if ! is_running "$FOLDER/slurmctld.pid"; then
        echo "no Slurm runs in $FOLDER"
        exit 1
    fi
    echo "export SLURM_CONF=$SLURM_CONF"
    sinfo
    squeue
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    status) status ;;
    *) fail "usage: $0 start|stop|status" ;;
esac
