#!/bin/bash
# First program of the guest. Its root is a folder of the host that all labs share and nobody writes: what this guest
# writes goes to memory over it. The kernel hands unknown NAME=value words of its command line to this program:
#   LAB_CONTROL  folder of the host by which lab and guest exchange files; seen as /lab
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
set -e
mount -t tmpfs tmpfs /overlay
mkdir /overlay/written /overlay/work /overlay/root
mount -t overlay overlay -o lowerdir=/,upperdir=/overlay/written,workdir=/overlay/work /overlay/root
cd /overlay/root
mount -t hostfs none lab -o "$LAB_CONTROL"
pivot_root . old
exec chroot . /bin/bash /lab/init.sh
