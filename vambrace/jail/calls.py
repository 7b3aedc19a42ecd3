"""The system calls that a VMM may make once it is shut in. Any other one ends the process.

Numbers and names are libseccomp's business, through its own Python binding (Debian's python3-seccomp) or, where that is
not to be had, through another one with the same interface (pyseccomp). The program that comes of it is for this
machine's processor and its programs of 64 bits; whatever calls in another way is killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any, Final

from vambrace.errors import HostError
from vambrace.jail.kinds import KINDS

try:
    import seccomp
except ModuleNotFoundError:
    import pyseccomp as seccomp

# asm-generic/mman-common.h, linux/sched.h, linux/fcntl.h, linux/prctl.h, asm-generic/ioctls.h
_PROT_EXEC: Final = 4
_SCHED_BATCH: Final = 3
_AT_EMPTY_PATH: Final = 0x1000
_PR_SET_NAME: Final = 15
_FIONBIO, _FIOCLEX = 0x5421, 0x5451
#: CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID: what pthread_create asks for.
_THREAD: Final = 0x003D_0F00

#: Whatever their arguments.
FREELY: Final = (
    # its memory, its time, its threads
    *("brk", "madvise", "mincore", "mlock2", "mremap", "munlock", "munmap"),
    *("clock_getres", "clock_gettime", "clock_nanosleep", "getrandom", "gettimeofday", "restart_syscall"),
    *("exit", "exit_group", "futex", "getcpu", "getpid", "gettid", "membarrier", "rseq", "set_robust_list", "tgkill"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
    *("sched_getaffinity", "sched_setaffinity", "sched_yield"),
    # the descriptors that it was given, and those that it makes: to be told of events, and to tell
    *("close", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "fstat", "lseek", "poll"),
    *("fdatasync", "ppoll", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "recvfrom"),
    *("recvmsg", "sendmsg", "sendto", "shutdown", "write", "writev"),
)
#: Which descriptor fcntl is called for is the process's business, but not everything that it can do.
_FCNTL: Final = (fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD_CLOEXEC)
#: What libraries try, and do without.
ABSENT: Final = {
    "clone3": errno.ENOSYS,  # no filter sees its flags; pthread_create then uses clone
    **dict.fromkeys(("access", "faccessat", "faccessat2", "open", "openat", "readlink", "readlinkat"), errno.ENOENT),
    **dict.fromkeys(("getpeername", "getsockname", "prlimit64", "sysinfo", "uname"), errno.EPERM),
}


def program(architecture: int = seccomp.Arch.NATIVE) -> bytes:
    """The filter as the kernel takes it: one struct sock_filter after the other. Raises ``HostError``.

    ``architecture`` is one of ``seccomp.Arch``, this machine's unless somebody wants to look at another one's.
    """
    try:
        with os.fdopen(os.memfd_create("filter"), "r+b") as exported:
            _rules(architecture).export_bpf(exported)
            exported.seek(0)
            return exported.read()
    except (OSError, RuntimeError, ValueError) as error:
        raise HostError(f"the VMMs' filter of system calls cannot be made: {error}") from error


def _rules(architecture: int) -> Any:
    allow, arg = seccomp.ALLOW, seccomp.Arg
    rules = seccomp.SyscallFilter(seccomp.KILL_PROCESS)
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    if architecture != seccomp.Arch.NATIVE:
        rules.add_arch(architecture)
        rules.remove_arch(seccomp.Arch.NATIVE)
    for name in FREELY:
        rules.add_rule(allow, name)
    for name, error in ABSENT.items():
        rules.add_rule(seccomp.ERRNO(error), name)
    for name in ("mmap", "mprotect"):  # no memory ever becomes code
        rules.add_rule(allow, name, arg(2, seccomp.MASKED_EQ, _PROT_EXEC, 0))
    rules.add_rule(allow, "clone", arg(0, seccomp.EQ, _THREAD))
    rules.add_rule(allow, "sched_setscheduler", arg(1, seccomp.EQ, _SCHED_BATCH))
    rules.add_rule(allow, "prctl", arg(0, seccomp.EQ, _PR_SET_NAME))
    rules.add_rule(seccomp.ERRNO(errno.EPERM), "prctl", arg(0, seccomp.NE, _PR_SET_NAME))
    # fstat, as some C libraries make it
    rules.add_rule(allow, "newfstatat", arg(3, seccomp.EQ, _AT_EMPTY_PATH))
    rules.add_rule(seccomp.ERRNO(errno.ENOENT), "newfstatat", arg(3, seccomp.NE, _AT_EMPTY_PATH))
    for command in _FCNTL:
        rules.add_rule(allow, "fcntl", arg(1, seccomp.EQ, command))
    for request in requests():  # of 32 bits, whatever is above
        rules.add_rule(allow, "ioctl", arg(1, seccomp.MASKED_EQ, 0xFFFF_FFFF, request))
    return rules


def requests() -> tuple[int, ...]:
    """The ioctls that a VMM may make: those of its devices, and two of any descriptor."""
    return (_FIONBIO, _FIOCLEX, *(request for kind in KINDS.values() for request in kind.requests))
