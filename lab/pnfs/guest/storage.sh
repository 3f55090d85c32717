# Functions for the guest's storage: sourced by its init and by every script that the lab sends. One kernel is metadata
# server, data server and client.
. /lab/settings
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

show() {                                        # show ro|rw FOLDER: a folder of the host at the same path
  mkdir -p "$2" && mount -t hostfs none "$2" -o "$2" || return
  if [ "$1" = ro ]; then mount -o remount,ro "$2"; fi
}

# Server and client are two ends of a pair of devices, so that what passes between them is queued, and can be delayed,
# dropped and limited (tc netem). A kernel sends nothing over a wire that is for itself, unless it is told to: what is
# made here for the server's addresses leaves by the client's device, and the other way round. What arrives from the
# wire is delivered. Soft-RoCE in network namespaces of their own would be simpler; Linux 6.1 has it in the first only.
storage_network() {
  local s=$LAB_SERVER_DEVICE c=$LAB_CLIENT_DEVICE d a
  ip link add $s type veth peer name $c
  ip link set $s address 02:00:00:00:77:01 mtu 9000
  ip link set $c address 02:00:00:00:77:02 mtu 9000
  for d in $s $c; do
    echo 1 > /proc/sys/net/ipv4/conf/$d/accept_local
    echo 0 > /proc/sys/net/ipv4/conf/$d/rp_filter
    echo 1 > /proc/sys/net/ipv4/conf/$d/arp_ignore
    ip link set $d up
  done
  echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
  ip addr add $LAB_SERVER/24 dev $s
  ip addr add $LAB_DATA_SERVER/24 dev $s
  ip addr add $LAB_CLIENT/24 dev $c
  for a in $LAB_SERVER $LAB_DATA_SERVER; do
    ip neigh replace $a lladdr 02:00:00:00:77:01 dev $c nud permanent
    ip route add $a dev $c src $LAB_CLIENT table 101
    ip rule add pref 10 iif lo to $a lookup 101
  done
  ip neigh replace $LAB_CLIENT lladdr 02:00:00:00:77:02 dev $s nud permanent
  ip route add $LAB_CLIENT dev $s src $LAB_SERVER table 102
  ip rule add pref 10 iif lo to $LAB_CLIENT lookup 102
  ip rule add pref 20 lookup local
  ip rule del pref 0
  rdma link add rxe0 type rxe netdev $s
  rdma link add rxe1 type rxe netdev $c
}

exports() {                                     # exports pnfs|plain: what the server offers from now on
  local layouts=; [ "$1" = pnfs ] && layouts=,pnfs
  echo "/export *(rw,no_root_squash,no_subtree_check,insecure,fsid=0,sec=sys$layouts)" > /etc/exports
  exportfs -ra
}

# What a data server refuses, Linux 6.1 tries again by another layout, as long as it gets one; then it sends it to the
# metadata server. So now and then none is granted for a moment.
turns_of_exports() {
  setsid bash -c '. /lab/storage.sh; while sleep 0.5; do exports plain; sleep 0.05; exports pnfs; done' > /dev/null 2>&1 &
  echo $! > /run/turns-of-exports
}

no_turns_of_exports() {
  if [ -e /run/turns-of-exports ]; then pkill -s "$(cat /run/turns-of-exports)" || true; rm /run/turns-of-exports; fi
}

server_up() {                                   # server_up pnfs|plain
  # The flexfiles test server asks nothing of the file system below it: a tmpfs does.
  mkdir -p /export && mount -t tmpfs -o size=${LAB_EXPORT_MIB}m tmpfs /export
  mkdir -m 777 /export/kv
  mount -t nfsd nfsd /proc/fs/nfsd
  mount -t rpc_pipefs sunrpc /run/rpc_pipefs
  rpcbind -w
  exports "$1"
  rpc.mountd
  echo 10 > /proc/fs/nfsd/nfsv4leasetime
  echo 10 > /proc/fs/nfsd/nfsv4gracetime
  rpc.nfsd -V 4.1 -V 4.2 4                      # v3 stays on: the data server speaks it
  echo "rdma $LAB_RDMA_PORT" > /proc/fs/nfsd/portlist
  echo "tcp $LAB_RDMA_PORT" > /proc/fs/nfsd/portlist
  echo Y > /proc/fs/nfsd/v4_end_grace           # nobody has state from before this start
  tr '\n' ';' < /proc/fs/nfsd/portlist; echo
}

mount_at() {                                    # mount_at FOLDER OPTIONS: /kv of the server
  mkdir -p "$1" && mount -t nfs -o "$2" "$LAB_SERVER:${3:-/kv}" "$1"
}

# Options of the lab's own mounts, without nosharecache. The sizes are those of a chunk: with more memory a server offers
# larger ones, and LMCache writes nothing by O_DIRECT that is no multiple of them.
mount_options() {
  local port=$LAB_RDMA_PORT; [ "$LAB_PROTO" = tcp ] && port=2049
  echo "vers=4.2,proto=$LAB_PROTO,port=$port,rsize=524288,wsize=524288"
}

mount_all() {
  local m own=
  for m in $LAB_MOUNTS; do
    mount_at $m "$(mount_options)$own"
    own=,nosharecache
  done
}

unmount_all() {                                 # every mount of NFS, the uppermost first
  local m
  tac /proc/self/mountinfo | awk '/ - nfs4? / { print $5 }' | while read -r m; do umount -f "$m" 2>/dev/null || umount -l "$m" || true; done
}

server_setting() {                              # server_setting ff_netid|ff_server|ff_fallback|ff_uid [VALUE]: none is "-"
  printf %s "${2:--}" > /sys/module/nfsd/parameters/$1
}

drop_caches() {
  sync; echo 3 > /proc/sys/vm/drop_caches
}

automount_at() {                                # automount_at FOLDER NAME OPTIONS SECONDS: FOLDER/NAME, while it is in use
  echo "$2 -fstype=nfs,$3 $LAB_SERVER:/kv" > /run/auto.map
  echo "$1 file:/run/auto.map --timeout=$4" > /run/auto.master
  mkdir -p "$1"
  automount --timeout="$4" /run/auto.master
  for _ in 1 2 3 4 5 6 7 8 9 10; do [ -d "$1/$2" ] && return; sleep 0.3; done
  return 1
}
