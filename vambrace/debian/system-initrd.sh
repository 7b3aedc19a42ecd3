#!/bin/busybox sh
# What stands between Debian's kernel and the disk of a Normal VM: its drivers. Then the system's own init takes over.

export PATH=/bin

fail() {
    echo "initrd: $*" > /dev/kmsg
    sleep 1
    poweroff -f
    sleep 1000
}

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

while read -r module; do
    insmod "/modules/$module" || fail "module $module does not load"
done < /modules/order

device=
mode=ro
for word in $(cat /proc/cmdline); do
    case "$word" in
    root=*) device=${word#root=} ;;
    ro | rw) mode=$word ;;
    esac
done

tries=0
until [ -b "$device" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 200 ] || fail "no disk '$device': the command line's root= names it"
    sleep 0.05
done
mount -o "$mode" "$device" /root || fail "$device cannot be mounted"
[ -x /root/sbin/init ] || fail "no /sbin/init on $device"
umount /proc
umount /sys
mount --move /dev /root/dev
exec switch_root /root /sbin/init
