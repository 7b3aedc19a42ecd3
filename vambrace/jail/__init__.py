"""The jail of VMM processes, and the launcher that starts each in its own (docs/architecture.md, section 19).

    kinds.py       what is handed in: kinds of descriptors, and the requests that a VMM may make of each device
    calls.py       the system calls that a VMM may make, as a program for the kernel
    walls.py       the rest: namespaces, root, identity, limits
    identities.py  a user and group for each that no other process has
    launcher.py    puts them up around one process after the other; its process is ``python3 -m vambrace.jail``
    service.py     what the daemon asks of the launcher, and is told
    entry.py       the VMM's own last steps in
    linux.py       the system calls that this takes, which Python's library has not
"""
