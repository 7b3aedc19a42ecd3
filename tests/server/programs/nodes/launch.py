"""In the agent's place, in a machine with a node of memory without processors: starts two applications there, as the
agent does, and says where its own pages are and what they say."""

import os
import subprocess

from vambrace_agent import confine
from vambrace_agent.settings import Application

LOOK = """
import os
nodes = set()
for line in open("/proc/self/numa_maps"):
    if "anon=" in line and "file=" not in line:  # pages of files are shared, with the agent too
        nodes |= {word[:2] for word in line.split() if word[0] == "N" and word[1].isdigit()}
group = open("/proc/self/cgroup").read().strip()
print(sorted(nodes), group, dict(os.environ), [name for name in os.listdir("/proc/self/fd")][:-1], flush=True)
"""


def own_nodes() -> list[str]:
    found = set()
    with open("/proc/self/numa_maps") as file:
        for line in file:
            found |= {word[:2] for word in line.split() if word[0] == "N" and word[1].isdigit()}
    return sorted(found)


def launched(application: Application) -> tuple[int, str]:
    read, write = os.pipe()
    pid = confine.launch(application, write)
    os.close(write)
    with open(read) as file:
        said = file.read().strip()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


for kind, path in (("cgroup2", "/sys/fs/cgroup"), ("tmpfs", "/results")):
    subprocess.run(["busybox", "mount", "-t", kind, kind, path], check=True)
os.makedirs("/dev/shm", exist_ok=True)
with open("/sys/fs/cgroup/cgroup.subtree_control", "w") as control:
    control.write("+cpuset +memory +pids")
print("before:", *own_nodes())
asking = {"environment": {"A-B": "c d=e", "PWD": "f"}, "directory": "/", "restarts": 0, "results": []}
asked = Application(1, {**asking, "name": "asked", "command": ["python3", "-c", LOOK], "memory": 32 << 20})
small = Application(2, {**asking, "name": "small", "command": ["busybox", "id", "-u"], "memory": 16 << 20})
for application in (asked, small):
    confine.prepare(application, f"/run/{application.name}")
    print(f"{application.name}:", *launched(application))
print("after:", *own_nodes(), flush=True)
