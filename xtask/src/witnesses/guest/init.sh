#!/bin/bash
# The guest's first process: the witnesses that the kernel's command line names in witnesses=a,b,c, then power off.
export PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root
busybox=/witnesses/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t devtmpfs dev /dev
$busybox mkdir -p /dev/shm
$busybox mount -t tmpfs shm /dev/shm
$busybox ip link set lo up
/witnesses/run.sh ${witnesses//,/ }
complaints=$($busybox dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|cut here|soft lockup|rcu.*stall|segfault|traps:')
echo "witness: kernel| ${complaints:-no complaints}"
$busybox poweroff -f
