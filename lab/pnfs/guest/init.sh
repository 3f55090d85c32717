#!/bin/bash
# Init of the guest, once its root is its own: mounts, network, storage, and then the commands that the lab sends.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
say() { echo "guest $(cut -d' ' -f1 /proc/uptime)s: $*"; }

mount -t proc proc /proc
umount -l /old
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null      # the kernel may have done it already
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for d in /dev/shm /run /tmp /var/lib/nfs; do mount -t tmpfs tmpfs $d; done
mkdir -p /run/rpcbind /run/lock /run/rpc_pipefs /var/lib/nfs/v4recovery /var/lib/nfs/sm
touch /var/lib/nfs/etab /var/lib/nfs/rmtab /var/lib/nfs/state
hostname pnfs-guest
ulimit -n 65535
. /lab/storage.sh
ip link set lo up
ip addr add "$LAB_ADDRESS" dev vec0 && ip link set vec0 up
while read -r how folder; do show "$how" "$folder"; done < /lab/shown
say "userland is up"

answer=ok
if [ "$LAB_STORAGE" != none ]; then
  ( set -e; storage_network; server_up "$LAB_STORAGE"; mount_all ) > /lab/storage.log 2>&1 || answer=failed
fi
echo $answer > /lab/ready.new && mv /lab/ready.new /lab/ready
say "storage: $answer"

# A command is a script in queue/; it runs in a session of its own and leaves its process id, then its exit code.
serve() {
  local name=$1
  mv "$name.sh" "$name.run"
  setsid bash "$name.run" </dev/null >/dev/null 2>&1 &
  local pid=$!
  echo $pid > "$name.pid.new" && mv "$name.pid.new" "$name.pid"
  wait $pid
  echo $? > "$name.code.new" && mv "$name.code.new" "$name.code"
}

mkfifo /run/pause && exec 9<>/run/pause       # reading from it waits without starting a process
shopt -s nullglob
while :; do
  for script in /lab/queue/*.sh; do
    name=${script%.sh}
    serve "$name" &
    while [ -e "$script" ] && [ ! -e "$name.run" ]; do read -r -t 0.01 -u 9; done
  done
  if [ -e /lab/halt ]; then
    sync -f /lab
    echo o > /proc/sysrq-trigger
    sleep 5
  fi
  read -r -t 0.05 -u 9
done
