#!/usr/bin/env bash
# A real Slurm whose nodes are namespaces: each has its own network address, host name, /etc/hosts and PID namespace, so
# that killing one pid is a node's power loss. Needs root and Debian's slurmctld, slurmd, slurm-client, munge, iproute2.
#   slurm_cluster.sh start DIR 2     start munged, slurmctld and the nodes n1, n2; then: export SLURM_CONF=DIR/slurm.conf
#   slurm_cluster.sh lose DIR n2     power loss of n2: slurmd, slurmstepd and tasks die at once, and nobody is told
#   slurm_cluster.sh boot DIR n2     start n2 again
#   slurm_cluster.sh stop DIR        end all of it
# LADD_SLURM_TAG and LADD_SLURM_NET tell two of them on one machine apart.
set -euo pipefail
cmd=${1:?start|stop|lose|boot}; DIR=$(realpath -m "${2:?directory}"); ARG=${3:-2}
TAG=${LADD_SLURM_TAG:-ladd}; NET=${LADD_SLURM_NET:-10.78.0}
export SLURM_CONF=$DIR/slurm.conf

conf() { local N=$1 k
  cat > "$DIR/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)($NET.1)
SlurmctldPort=$((6900 + ${NET##*.}))
SlurmdPort=6818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also the pause before a requeued job may start again (default 120 s). All limits leave room for a busy
# machine, on which a node is slow to answer and a rank slow to leave.
AuthInfo=socket=$DIR/munge/sock,cred_expire=15
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/%n/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/%n/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
# Signals reach the tasks of a step and, unlike with linuxproc, none of their children in sessions of their own, which
# proctrack/cgroup, the usual choice, leaves out as well: it needs more than a test may ask of a machine.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=120
MinJobAge=300
ReturnToService=2
JobRequeue=1
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.log
BatchStartTimeout=60
MessageTimeout=30
TCPTimeout=5
UnkillableStepTimeout=15
CompleteWait=0
OverTimeLimit=0
SlurmdParameters=config_overrides
CONF
  for k in $(seq "$N"); do
    echo "NodeName=n$k NodeAddr=$NET.$((10+k)) CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:2"
  done >> "$DIR/slurm.conf"
  echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP" >> "$DIR/slurm.conf"
  for k in $(seq "$N"); do echo "NodeName=n$k Name=gpu File=$DIR/gpu[0-1]"; done > "$DIR/gres.conf"
  for g in 0 1; do [ -e "$DIR/gpu$g" ] || mknod -m 666 "$DIR/gpu$g" c 1 3; done
  { echo "127.0.0.1 localhost"; echo "$NET.1 $(hostname -s)"; for k in $(seq "$N"); do echo "$NET.$((10+k)) n$k"; done; } > "$DIR/hosts"
}
boot() { local n=$1 k=${1#n}
  install -d -m 755 "$DIR/$n/spool"; rm -f "$DIR/$n/slurmd.pid"
  ip netns add "$TAG-$n" 2>/dev/null || true
  if ! ip link show "$TAG-$n" >/dev/null 2>&1; then
    ip link add "$TAG-$n" type veth peer name eth0 netns "$TAG-$n"
    ip link set "$TAG-$n" master "$TAG" up
    ip -n "$TAG-$n" addr add "$NET.$((10+k))/24" dev eth0; ip -n "$TAG-$n" link set eth0 up; ip -n "$TAG-$n" link set lo up
  fi
  setsid nsenter --net=/run/netns/"$TAG-$n" unshare --pid --fork --kill-child --mount --mount-proc --uts \
    bash -c "hostname $n; mount -t tmpfs tmpfs /dev/shm; mount --bind $DIR/hosts /etc/hosts; slurmd -N $n -f $SLURM_CONF; tail -f /dev/null & wait" \
    </dev/null >"$DIR/log/$n.console" 2>&1 &
  echo $! > "$DIR/$n/pid"                       # the outer pid of the node
}
alive() { local st; st=$(awk '/^State/{print $2}' "/proc/$1/status" 2>/dev/null); [ -n "$st" ] && [ "$st" != Z ]; }
lose() { local n=$1 p; p=$(cat "$DIR/$n/pid"); kill -9 "$p" 2>/dev/null || true
  for i in $(seq 50); do alive "$p" || break; sleep 0.1; done; rm -f "$DIR/$n/pid"; }
up() { for i in $(seq 150); do [ "$(sinfo -h -N -o %T 2>/dev/null | grep -cxE 'idle|mixed|allocated')" = "$1" ] && return 0; sleep 0.1; done
  echo "cluster did not come up" >&2; sinfo -N >&2 || true; tail -n 20 "$DIR"/log/* >&2; return 1; }
start() { local N=$1 k
  [ -e "$DIR/pid" ] && { echo "$DIR is in use" >&2; return 1; }
  install -d -m 755 "$DIR" "$DIR/munge" "$DIR/state" "$DIR/log"
  [ -s "$DIR/munge/key" ] || (umask 077; head -c 128 /dev/urandom > "$DIR/munge/key")
  conf "$N"
  ip link add "$TAG" type bridge; ip addr add "$NET.1/24" dev "$TAG"; ip link set "$TAG" up
  # the daemons run in a PID namespace of their own: one pid ends them all, and they leave no zombies
  # (PID 1 of this kind of machine does not reap, so `kill -0` of an ended daemon goes on succeeding)
  setsid unshare --pid --fork --kill-child --mount-proc bash -c "
    munged --key-file=$DIR/munge/key --socket=$DIR/munge/sock --pid-file=$DIR/munge/pid \
           --log-file=$DIR/log/munged.log --seed-file=$DIR/munge/seed --num-threads=10 --force
    slurmctld -D -c -f $SLURM_CONF & wait" </dev/null >"$DIR/log/ctl.console" 2>&1 &
  echo $! > "$DIR/pid"
  for i in $(seq 50); do [ -S "$DIR/munge/sock" ] && break; sleep 0.1; done
  for k in $(seq "$N"); do boot "n$k"; done
  up "$N"
}
stop() { local f n
  for f in "$DIR"/n*/pid; do [ -s "$f" ] && lose "$(basename "$(dirname "$f")")"; done
  [ -s "$DIR/pid" ] && { kill -9 "$(cat "$DIR/pid")" 2>/dev/null || true; rm -f "$DIR/pid" "$DIR/munge/sock"; }
  for n in $(ip netns list | awk '{print $1}' | grep "^$TAG-n" || true); do ip netns del "$n"; done
  ip link del "$TAG" 2>/dev/null || true
}
case $cmd in
  start) start "$ARG";; stop) stop;; lose) lose "$ARG";; boot) boot "$ARG";;
esac
