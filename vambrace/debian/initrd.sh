#!/bin/busybox sh
# The measured initrd's only program. It loads the modules packed with it, mounts the read-only disks that the kernel
# command line names, each under dm-verity, and hands over to the system's own init:
#   vambrace.disk=DEVICE,MOUNTPOINT,DATA_BLOCKS,ROOT_HASH,SALT   (the first one is mounted at /)
#   vambrace.init=PROGRAM
#   vambrace.network             (a machine without network cards has no driver for them)
#   vambrace.devices             (a machine without PCI devices has no drivers for them)
#   vambrace.storage             (nor one without disks of its own what encrypts them)
# Whatever goes wrong ends the machine: there is no shell to fall into.

export PATH=/bin

fail() {
    echo "vambrace initrd: $*" > /dev/kmsg
    sleep 1
    poweroff -f
    sleep 1000
}

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

# Free pages are reported to a balloon in blocks of 2^order. The kernel's own order is 9: nothing of a memory zone with less
# than 64 MiB free. With 4 it takes 2 MiB, and blocks of 64 KiB (docs/architecture.md, section 4).
order=/sys/module/page_reporting/parameters/page_reporting_order
[ ! -e "$order" ] || echo 4 > "$order"

load() {
    while read -r module; do
        insmod "/modules/$module" || fail "module $module does not load"
    done < "$1"
}
load /modules/order
case " $(cat /proc/cmdline) " in
*" vambrace.devices "*) load /modules/network; load /modules/devices ;;
*" vambrace.network "*) load /modules/network ;;
esac
case " $(cat /proc/cmdline) " in
*" vambrace.storage "*)
    load /modules/storage
    # What makes it quicker, where the processor can.
    while read -r module; do insmod "/modules/$module"; done < /modules/helpers 2> /dev/null
    ;;
esac

# A console may be a module; where there is none, output goes nowhere, but to open descriptors.
if (: > /dev/console) 2> /dev/null; then
    exec < /dev/console > /dev/console 2>&1
else
    exec < /dev/null > /dev/null 2>&1
fi

number=0
init=
for word in $(cat /proc/cmdline); do
    case "$word" in
    vambrace.init=*) init=${word#vambrace.init=} ;;
    vambrace.disk=*)
        IFS=, read -r device where blocks root salt <<END
${word#vambrace.disk=}
END
        tries=0
        until [ -b "$device" ]; do
            tries=$((tries + 1))
            [ "$tries" -lt 200 ] || fail "no disk $device"
            sleep 0.05
        done
        name="verity$number"
        number=$((number + 1))
        # A changed block ends the machine: who serves the disk must not choose which reads fail.
        table="0 $((blocks * 8)) verity 1 $device $device 4096 4096 $blocks $blocks sha256 $root $salt 1 panic_on_corruption"
        dmsetup create "$name" --readonly --noudevrules --noudevsync --table "$table" || fail "dm-verity refuses $device"
        mount -t erofs -o ro "/dev/dm-$((number - 1))" "/root${where%/}" || fail "$device is not what was measured"
        ;;
    esac
done

[ -n "$init" ] && [ -x "/root$init" ] || fail "no init on the measured disk"
umount /proc
umount /sys
mount --move /dev /root/dev
exec switch_root /root "$init"
