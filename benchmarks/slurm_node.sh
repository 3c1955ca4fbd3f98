#!/usr/bin/env bash
# Runs a command with a Slurm of one node, this machine, and stops that Slurm afterwards. To try hydra/launcher=slurm.
#
#   benchmarks/slurm_node.sh python run.py -m sweep=smoke hydra/launcher=slurm workers=2 cpus_per_worker=1 memory_per_worker=2
#   benchmarks/slurm_node.sh bash      # a shell in which sbatch, squeue, scancel and scontrol work
#
# Needs Debian's packages: apt-get install slurm-wlm munge. It needs neither root, systemd nor the network.
# Partition `work` is the default one. A job in partition `urgent` preempts jobs in `work`, which are queued again.
# The database of accounts is off, as on small clusters. SLURM_NODE_FOLDER names the folder of the daemons' logs.
set -euo pipefail

[ $# -gt 0 ] || { sed -n '2,/^set/p' "$0" | sed '/^set/d; s/^# \{0,1\}//'; exit 2; }
PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd; do
  command -v "$program" >/dev/null || { echo "$program: not installed; apt-get install slurm-wlm munge" >&2; exit 1; }
done

folder=${SLURM_NODE_FOLDER:-$(mktemp -d /tmp/slurm_node.XXXXXX)}
mkdir -p "$folder"/{state,spool}
chmod 755 "$folder"
host=$(hostname -s)
port=$((20000 + $$ % 20000))
export SLURM_CONF=$folder/slurm.conf
daemons=()

cat >"$SLURM_CONF" <<CONF
ClusterName=one
FirstJobId=$(($(date +%s) % 60000000 + 1))
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/^Mem:/ {print $2}')
PartitionName=work Nodes=$host Default=YES PriorityTier=1 MaxTime=INFINITE
PartitionName=urgent Nodes=$host PriorityTier=2 MaxTime=INFINITE
CONF

stop() {
  scancel --user="$(id -un)" --state=PENDING 2>/dev/null || true
  scancel --user="$(id -un)" 2>/dev/null || true
  for _ in $(seq 60); do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.5
  done
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill "${daemons[i]}" 2>/dev/null || true; done
  wait "${daemons[@]}" 2>/dev/null || true
  [ -n "${SLURM_NODE_FOLDER:-}" ] || rm -rf "$folder"
}
trap stop EXIT

(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munge.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" \
  >"$folder/munged.out" 2>&1 &
daemons+=($!)
for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break; sleep 0.1; done
slurmctld -D -i >"$folder/slurmctld.out" 2>&1 &
daemons+=($!)
slurmd -D >"$folder/slurmd.out" 2>&1 &
daemons+=($!)

for _ in $(seq 60); do
  state=$(sinfo --noheader --partition=work --format=%t 2>/dev/null || true)
  [ "$state" != idle ] || break
  sleep 0.5
done
[ "$state" = idle ] || { tail -n 5 "$folder"/*.log "$folder"/*.out >&2; echo "the node is not idle: ${state:-no answer}" >&2; exit 1; }
echo "Slurm $(slurmd -V | cut -d' ' -f2) on $host: $(nproc) CPUs, partitions work and urgent" >&2

"$@"
