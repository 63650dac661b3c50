"""What a worker may do while it judges untrusted text: compute, read libraries, answer its caller. Nothing else.

Three layers of the kernel, each of which works without privileges and stays in force until the process ends:

- seccomp (through libseccomp) permits the system calls of a computation: no socket, no new process or program, no
  signal to anybody, no file opened for writing;
- Landlock permits reading Python's own folders and those of the installed libraries, and no other file: neither the
  home directory and the working directory nor `/proc`, where the environment of other processes stands;
- resource limits permit neither new processes nor a byte written to a file.

Where seccomp or Landlock is missing, a user namespace with a network of its own takes over what it can.
[`Sandbox.missing`] names what nothing enforces on this machine.
"""

import ctypes
import os
import resource
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NETWORK = "no access to the network"
PROCESSES = "no new processes"
SIGNALS = "no signals to other processes"
WRITING = "no writing of files"
READING = "no reading of files outside Python's folders"
ENVIRONMENTS = "no reading of other processes' environments"

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TERMINAL_QUERY, CLOSE_ON_EXEC, KEEP_ON_EXEC = 0x5401, 0x5451, 0x5450

SYSTEM_CALLS = (
    # what is open already
    *("read", "readv", "pread64", "write", "writev", "recvfrom", "close", "lseek", "fcntl", "dup", "dup2", "dup3"),
    *("poll", "ppoll", "select", "pselect6"),
    # looking at files, which Landlock restricts to libraries when they are opened
    *("stat", "lstat", "fstat", "newfstatat", "fstatat64", "statx", "access", "faccessat", "faccessat2"),
    *("readlink", "readlinkat", "getdents", "getdents64", "getcwd", "fadvise64"),
    # memory
    *("brk", "mmap", "mmap2", "munmap", "mremap", "mprotect", "madvise"),
    # time, and the time-out of a worker whose caller is stopped
    *("clock_gettime", "clock_gettime64", "clock_getres", "gettimeofday", "time", "times", "getrusage"),
    *("nanosleep", "clock_nanosleep", "setitimer", "getitimer"),
    # locks, signal handlers, and what the C library asks about its own process
    *("futex", "futex_time64", "sched_yield", "membarrier", "rseq", "restart_syscall"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigreturn", "sigaltstack"),
    *("getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "uname", "sysinfo", "getrandom"),
    *("sched_getaffinity", "getcpu", "exit", "exit_group"),
)
"""Permitted with any arguments; names that an architecture does not have are skipped."""


@dataclass(frozen=True)
class Sandbox:
    """The layers that this machine offers, made ready in the parent of the workers.

    Args:
        ruleset: Landlock's, or None without it.
        system_calls: libseccomp's filter, or None without it.
        namespace: whether a user namespace takes over where one of the two is missing.
    """

    ruleset: Any
    system_calls: Any
    namespace: bool

    @property
    def missing(self) -> list[str]:
        """What nothing enforces here. The limit on processes does not bind root, nor one that runs another program."""
        calls, files, namespace = self.system_calls is not None, self.ruleset is not None, self.namespace
        enforced = {
            NETWORK: calls or namespace,
            PROCESSES: calls or (files and os.geteuid() != 0),
            SIGNALS: calls,
            WRITING: calls or files,
            READING: files,
            ENVIRONMENTS: files or namespace,
        }
        return [name for name, is_enforced in enforced.items() if not is_enforced]

    def enter(self) -> None:
        """Restricts this process for good. It has to have one thread, and what it still needs to be open.

        Raises:
            OSError: a layer that was ready cannot be entered.
        """
        if self.namespace:
            _unshare()
        for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))
        ctypes.set_errno(0)  # the landlock package takes an old error for one of its own
        if self.ruleset is not None:
            self.ruleset.apply()
        if self.system_calls is not None:
            self.system_calls.load()


def prepare(private: Iterable[Path]) -> Sandbox:
    """The sandbox that works on this machine, which forks of this process have tried out.

    Args:
        private: folders not to be read, even where modules are imported from them.
    """
    ruleset, system_calls = _landlock(private), _seccomp()
    if ruleset is not None and not _works(Sandbox(ruleset, None, False)):
        ruleset = None
    if system_calls is not None and not _works(Sandbox(None, system_calls, False)):
        system_calls = None
    complete = ruleset is not None and system_calls is not None
    return Sandbox(ruleset, system_calls, not complete and _works(Sandbox(ruleset, system_calls, True)))


def readable_folders(private: Iterable[Path]) -> list[Path]:
    """Where Python, its libraries and the C library find their files.

    Of a folder for imports that is a private one or holds it, only the packages that have been imported from it.
    """
    hidden = {path.resolve() for path in private}
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    own = [f"{prefix}/lib" for prefix in {sys.prefix, sys.base_prefix}]
    found: list[Path] = []
    for folder in dict.fromkeys(Path(name).resolve() for name in [*system, *named, *own, *sys.path] if name):
        if any(folder == one or folder in one.parents for one in hidden):
            found += _imported_from(folder)
        else:
            found.append(folder)
    return [path for path in found if os.access(path, os.R_OK)]


def _imported_from(folder: Path) -> Iterator[Path]:
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if place and "." not in name:
            path = Path(place).resolve()
            path = path.parent if path.stem == "__init__" else path
            if path.parent == folder:
                yield path


def _landlock(private: Iterable[Path]) -> Any:
    try:
        ctypes.set_errno(0)
        import landlock

        ruleset = landlock.Ruleset()
        for path in readable_folders(private):
            rights = landlock.FSAccess.READ_FILE
            ruleset.allow(path, rules=rights | landlock.FSAccess.READ_DIR if path.is_dir() else rights)
        return ruleset
    except (ImportError, OSError, landlock.LandlockError):
        return None


def _seccomp() -> Any:
    try:
        import pyseccomp as seccomp

        denied = seccomp.ERRNO(1)  # EPERM
        made = seccomp.SyscallFilter(denied)
        for name in SYSTEM_CALLS:
            _permit(seccomp, made, name)
        for name, position in (("open", 1), ("openat", 2)):
            _permit(seccomp, made, name, seccomp.Arg(position, seccomp.MASKED_EQ, WRITES, 0))
        _permit(seccomp, made, "sendto", seccomp.Arg(4, seccomp.EQ, 0))  # to nobody but the other end
        _permit(seccomp, made, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0), seccomp.Arg(2, seccomp.EQ, 0))  # reading
        for request in (TERMINAL_QUERY, CLOSE_ON_EXEC, KEEP_ON_EXEC):
            _permit(seccomp, made, "ioctl", seccomp.Arg(1, seccomp.EQ, request))
        return made
    except (ImportError, RuntimeError, OSError):
        return None


def _permit(seccomp: Any, made: Any, name: str, *arguments: Any) -> None:
    try:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
    except (OSError, ValueError):
        return
    if number >= 0:
        made.add_rule(seccomp.ALLOW, number, *arguments)


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "A user namespace cannot be entered")


def _works(sandbox: Sandbox) -> bool:
    """Whether a fork can enter it, and still read a library there."""
    library = Path(ctypes.__file__)
    readable = os.access(library, os.R_OK)
    pid = os.fork()
    if pid == 0:
        try:
            sandbox.enter()
            os._exit(0 if not readable or library.read_bytes() else 1)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
