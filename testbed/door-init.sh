#!/bin/busybox sh
# Opens the door, then becomes the host's own init.
python3 -B /usr/lib/vambrace/door &
exec /usr/lib/vambrace/host-init
