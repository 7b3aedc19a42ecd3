#!/bin/busybox sh
# The emulated server's init: what a service manager does on a real host, and nothing more. The root is read-only and
# measured; all state is on the disk mounted at /state. There is no login and no shell.

export PATH=/usr/sbin:/usr/bin:/bin
umask 077

fatal() {
    echo "vambrace: $*" > /dev/kmsg
    poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o nosuid,nodev run /run
mount -t tmpfs -o nosuid,nodev,noexec tmp /tmp
mkdir -p /dev/shm
mount -t tmpfs -o nosuid,nodev,noexec shm /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
echo 0 > /proc/sys/vm/compact_unevictable_allowed
echo 1 > /proc/sys/kernel/dmesg_restrict
echo '|/bin/false' > /proc/sys/kernel/core_pattern
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
# For domains only: nothing else is at these bridges, this host neither.
for bridge in lab apart; do
    ip link add "$bridge" type bridge
    echo 1 > "/proc/sys/net/ipv6/conf/$bridge/disable_ipv6"
    ip link set "$bridge" up
done

# The daemon loads while it waits at the gate; nothing that is secret or random exists before it is let through.
mkfifo /run/gate
python3 -B -m vambrace.host --config /etc/vambrace/host.toml --gate /run/gate &
daemon=$!
python3 -B /usr/lib/vambrace/host-gate /run/gate || fatal "the gate did not open"

# What the kernel saw of the disk before the gate may be of another start.
blockdev --flushbufs /dev/vdb
mount -t ext4 -o noatime,nosuid,nodev,noexec /dev/vdb /state || fatal "the state disk cannot be mounted"
mkdir -p /state/tee /state/host
if [ -e /dev/teepriv0 ]; then
    tee-supplicant -d
fi
echo go > /run/gate

# A daemon that dies is started again; it finds on the state disk what it has to clean up.
while :; do
    wait "$daemon"
    echo "vambrace: the host daemon ended with exit code $?"
    sleep 1
    python3 -B -m vambrace.host --config /etc/vambrace/host.toml &
    daemon=$!
done
