"""Appends records to a volume, each confirmed when it is on the disk, until the power goes."""

import os

from played import Lasting
from vambrace_agent.settings import Application, Disk
from vambrace_agent.volumes import Volumes, find

MOUNT = "/run/vambrace/volumes/volume-records"
RECORDS = f"{MOUNT}/records"

broker = Lasting()
size = os.lseek(os.open(find("volume-0"), os.O_RDONLY), 0, os.SEEK_END)
of = {"name": "a", "command": [], "environment": {}, "directory": "/", "restarts": 0, "results": [], "memory": 1 << 25}
fields = {"name": "records", "serial": "volume-0", "application": "a", "size": size, "mount": "/data/r", "key": "a/b/c"}
os.makedirs("/run/vambrace", mode=0o700)
print("opening: now", flush=True)
Volumes(broker, None).attach(Disk(fields), Application(1, of))
with open(RECORDS, "a+") as file:
    file.seek(0)
    found = file.read().split()
whole = found == [str(number + 1) for number in range(len(found))]
print(f"found: {len(found)} {whole} {broker.generation}", flush=True)
fd = os.open(RECORDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
number = len(found)
while True:
    number += 1
    os.write(fd, f"{number}\n".encode())
    os.fsync(fd)
    print(f"kept: {number}", flush=True)
