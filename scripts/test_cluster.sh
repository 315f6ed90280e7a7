#!/usr/bin/env bash
# A Slurm cluster in a box: a controller and two nodes, each with its own name, network and (pretended) GPU, on one host.
#   bash scripts/test_cluster.sh [--keep DIR] [SCENARIO]...
# Runs scripts/experiments/cluster.py on it, which trains, preempts, requeues, kills and evaluates with shell/slurm/*.sh
# and prints what became of each. Needs root, Debian or Ubuntu, and network namespaces; says so and ends with status 0
# where it has not got them. About ten minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 # no run waits for a network

skip() {
    echo "cluster: skipped: $1"
    exit 0
}
((EUID == 0)) || skip "expected root, which joins networks and starts Slurm"
command -v apt-get >/dev/null || command -v slurmctld >/dev/null || skip "expected Debian or Ubuntu, or Slurm installed"
if ! (command -v slurmctld && command -v slurmd && command -v munged && command -v ip) >/dev/null; then
    (apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2) \
        >/dev/null 2>&1 || skip "Slurm could not be installed (slurmctld slurmd slurm-client munge iproute2)"
fi
ip netns add vco-probe 2>/dev/null || skip "no network namespaces can be made here"
ip netns delete vco-probe
source scripts/setup.sh "[dev]"

keep=""
if [[ ${1:-} == --keep ]]; then
    keep=${2:?--keep: expected a folder} && shift 2
fi
box=$(mktemp -d "${TMPDIR:-/tmp}/vco-cluster.XXXXXX")
subnet=10.213.77 controller=$(hostname -s)
nodes=(vconode1 vconode2)

end() {
    local status=$?
    pkill -9 -F "$box/slurmctld.pid" 2>/dev/null || true
    for node in "${nodes[@]}"; do
        # Everything that runs in a node's network is the node's.
        ip netns pids "$node" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns delete "$node" 2>/dev/null || true
    done
    ip link delete vco-bridge 2>/dev/null || true
    pkill -F "$box/munged.pid" 2>/dev/null || true
    [[ -z $keep ]] || { mkdir -p "$keep" && cp -r "$box/work"/*.log "$box"/*.log "$keep/" 2>/dev/null; } || true
    rm -rf "$box"
    exit "$status"
}
trap end EXIT

# Two nodes that see each other over a bridge, never over the loopback that they do not share.
ip link add vco-bridge type bridge
ip address add "$subnet.254/24" dev vco-bridge
ip link set vco-bridge up
printf '127.0.0.1 localhost\n%s vconode1\n%s vconode2\n%s %s\n' "$subnet.1" "$subnet.2" "$subnet.254" "$controller" \
    >"$box/hosts"
for number in 1 2; do
    node=vconode$number
    ip netns add "$node"
    ip link add "vco-cable$number" type veth peer name eth0 netns "$node"
    ip link set "vco-cable$number" master vco-bridge up
    ip -n "$node" address add "$subnet.$number/24" dev eth0
    ip -n "$node" link set eth0 up
    ip -n "$node" link set lo up
    mkdir "$box/$node.spool"
    touch "$box/$node.gpu"
    echo "NodeName=$node Name=gpu File=$box/$node.gpu" >>"$box/gres.conf"
done

(umask 077 && head -c 1024 /dev/urandom >"$box/munge.key")
mkdir "$box/state"
cat >"$box/slurm.conf" <<CONF
ClusterName=box
SlurmctldHost=$controller($subnet.254)
SlurmctldPort=6917
SlurmdPort=6918
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$box/munge.sock
StateSaveLocation=$box/state
SlurmdSpoolDir=$box/%n.spool
SlurmctldPidFile=$box/slurmctld.pid
SlurmdPidFile=$box/%n.pid
SlurmctldLogFile=$box/slurmctld.log
SlurmdLogFile=$box/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
SlurmdTimeout=30
NodeName=vconode1 NodeAddr=$subnet.1 CPUs=4 RealMemory=4000 Gres=gpu:1
NodeName=vconode2 NodeAddr=$subnet.2 CPUs=4 RealMemory=4000 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$box/slurm.conf
munged --force --key-file="$box/munge.key" --socket="$box/munge.sock" --pid-file="$box/munged.pid" \
    --log-file="$box/munged.log" --seed-file="$box/munge.seed"
slurmctld -c
cat >"$box/on" <<ON
#!/bin/sh
# on NODE COMMAND...: there
node=\$1 && shift
exec nsenter --net=/run/netns/\$node unshare --uts --mount \
    sh -c 'hostname "\$0" && mount --bind $box/hosts /etc/hosts && exec "\$@"' "\$node" "\$@"
ON
chmod +x "$box/on"
for node in "${nodes[@]}"; do
    "$box/on" "$node" slurmd -N "$node"
done
for _ in {1..30}; do
    [[ $(sinfo --noheader --Node --states=idle --format=%N | wc -l) == 2 ]] && break
    sleep 1
done
sinfo --Node --long
[[ $(sinfo --noheader --Node --states=idle --format=%N | wc -l) == 2 ]] ||
    { tail -n 3 "$box"/*.log && skip "Slurm's nodes do not come up on this host"; }

ON_NODE=$box/on python scripts/experiments/cluster.py "$box/work" "$@"
