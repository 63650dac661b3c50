"""Untrusted text is not run as code, and what runs in a worker all the same gets nowhere."""

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import reasoning_gym

import p2o
from p2o.verifiers import Limits, Pool, sandbox, verify
from p2o.verifiers.code_guard import is_harmless

SECRET = "not-for-anybody-4711"


# -- what the kernel refuses -------------------------------------------------------------------------------------------


def outcome(act, *, prepared, user=None):
    """What `act` does in a fork that has entered the sandbox: "refused", "done", or how the fork died."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            if user is not None:
                os.setgroups([])
                os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
                os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
            prepared().enter()
            try:
                code = 0 if act() is not False else 1
            except (OSError, RuntimeError):
                code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {0: "done", 1: "refused"}.get(code, code)


def everything():
    return sandbox.prepare([Path.home(), Path.cwd()])


def without_seccomp():
    made = everything()
    return sandbox.Sandbox(made.ruleset, None, True)


def without_landlock():
    made = everything()
    return sandbox.Sandbox(None, made.system_calls, True)


@pytest.fixture(scope="module")
def prey(tmp_path_factory):
    """A folder with a secret, and a listening socket; readable by everybody, so that nothing else protects them."""
    everything()  # imports what somebody else may not read
    folder = Path(tempfile.mkdtemp(prefix="prey"))
    folder.chmod(0o777)
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(folder / "local"))
        (folder / "local").chmod(0o777)
        local.listen()
        yield folder, server.getsockname()[1], server, local


PARENT = os.getpid()
READING = {
    "a file": lambda folder, port: (folder / "secret").read_text(),
    "a folder": lambda folder, port: os.listdir(folder),
    "the users": lambda folder, port: Path("/etc/passwd").read_text(),
    "the parent's environment": lambda folder, port: Path(f"/proc/{PARENT}/environ").read_bytes(),
    "the first process's environment": lambda folder, port: Path("/proc/1/environ").read_bytes(),
    "its own memory map": lambda folder, port: Path("/proc/self/maps").read_text(),
    "its own descriptors": lambda folder, port: os.listdir("/proc/self/fd"),
}
WRITING = {
    "a new file": lambda folder, port: (folder / "new").write_text("x"),
    "an old file": lambda folder, port: (folder / "secret").write_text("x"),
    "more to an old file": lambda folder, port: os.write(os.open(folder / "secret", os.O_APPEND | os.O_WRONLY), b"x"),
    "a file in the temporary folder": lambda folder, port: tempfile.mkstemp(),
    "truncation": lambda folder, port: os.truncate(folder / "secret", 0),
    "removal": lambda folder, port: os.unlink(folder / "secret"),
    "a folder": lambda folder, port: os.mkdir(folder / "folder"),
    "a link": lambda folder, port: os.symlink("/etc/passwd", folder / "link"),
    "another name": lambda folder, port: os.rename(folder / "secret", folder / "other"),
    "other rights": lambda folder, port: os.chmod(folder / "secret", 0),
}
NETWORK = {
    "TCP": lambda folder, port: socket.socket().connect(("127.0.0.1", port)),
    "UDP": lambda folder, port: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)),
    "listening": lambda folder, port: socket.create_server(("127.0.0.1", 0)),
    "a local socket": lambda folder, port: socket.socket(socket.AF_UNIX).connect(str(folder / "local")),
    "a pair": lambda folder, port: socket.socketpair(),
}
PROCESSES = {
    "fork": lambda folder, port: os.fork() or os._exit(0),
    "a program": lambda folder, port: subprocess.run(["true"], check=True),
    "a shell": lambda folder, port: os.system("exit 0") == 0,
    "becoming a program": lambda folder, port: os.execv("/bin/true", ["true"]),
    "spawning": lambda folder, port: os.posix_spawn("/bin/true", ["true"], {}),
    "a thread": lambda folder, port: threading.Thread(target=print).start(),
}
SIGNALS = {
    "to the parent": lambda folder, port: os.kill(PARENT, 0),
    "to its group": lambda folder, port: os.killpg(os.getpgid(0), signal.SIGWINCH),
    "by descriptor": lambda folder, port: signal.pidfd_send_signal(os.pidfd_open(PARENT), 0),
    "priority": lambda folder, port: os.setpriority(os.PRIO_PROCESS, PARENT, 19),
}
ACTS = [(act, name) for acts in (READING, WRITING, NETWORK, PROCESSES, SIGNALS) for name, act in acts.items()]
NOBODY = pytest.param(
    "nobody", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
)


@pytest.mark.parametrize("user", [None, NOBODY])
@pytest.mark.parametrize(("act", "name"), ACTS, ids=[name for _, name in ACTS])
def test_a_worker_can_compute_and_nothing_else(prey, user, act, name):
    folder, port, *_ = prey
    user = user and pwd.getpwnam(user)
    assert outcome(lambda: act(folder, port), prepared=everything, user=user) == "refused"
    assert (folder / "secret").read_text() == SECRET and sorted(os.listdir(folder)) == ["local", "secret"]


@pytest.mark.parametrize("user", [None, NOBODY])
def test_nothing_has_arrived_where_nobody_may_send(prey, user):
    *_, server, local = prey
    for listening in (server, local):
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_a_worker_reads_libraries_and_uses_what_it_has_open():
    def act():
        import colorsys  # (not imported before)

        return Path(p2o.__file__).read_text() and colorsys and os.write(writing, b"x") == 1 and sum(range(9)) == 36

    reading, writing = os.pipe()
    assert outcome(act, prepared=everything) == "done"
    assert os.read(reading, 9) == b"x"
    os.close(reading), os.close(writing)


@pytest.mark.parametrize(
    ("layers", "acts"),
    [
        (without_seccomp, [*READING.values(), *list(WRITING.values())[:8], NETWORK["TCP"]]),
        (without_landlock, [*WRITING.values(), *NETWORK.values(), *PROCESSES.values(), *SIGNALS.values()]),
        (without_landlock, [READING["the parent's environment"]]),
    ],
)
def test_where_one_layer_is_missing_the_others_hold(prey, layers, acts):
    folder, port, *_ = prey
    for act in acts:
        assert outcome(lambda act=act: act(folder, port), prepared=layers) == "refused"
    assert (folder / "secret").read_text() == SECRET


def test_what_cannot_be_enforced_is_named():
    assert everything().missing == []
    nothing = sandbox.Sandbox(None, None, False).missing
    assert {sandbox.NETWORK, sandbox.READING, sandbox.WRITING, sandbox.ENVIRONMENTS, sandbox.SIGNALS} <= set(nothing)
    assert sandbox.Sandbox(None, object(), True).missing == [sandbox.READING]
    assert sandbox.NETWORK not in sandbox.Sandbox(object(), None, True).missing


def test_a_private_folder_is_not_read_even_where_modules_come_from_it(tmp_path):
    place = Path(p2o.__file__).resolve().parents[1]
    folders = sandbox.readable_folders([place])
    assert place not in folders and place / "p2o" in folders
    assert place in sandbox.readable_folders([tmp_path])


SCRIPT = """
import logging, sys
logging.basicConfig(format="%(message)s")
sys.modules["pyseccomp"] = None
from p2o.verifiers import sandbox
print(sandbox.prepare([]).missing)
"""


def test_without_libseccomp_workers_start_and_say_what_is_missing():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert sandbox.SIGNALS in done.stdout and sandbox.READING not in done.stdout


def test_other_systems_are_told_at_import():
    code = "import sys; sys.platform = 'darwin'; import p2o.verifiers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: p2o.verifiers needs Linux, and this is darwin")


# -- workers -----------------------------------------------------------------------------------------------------------


def test_workers_have_no_environment_and_are_locked_in(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    pool = Pool(Limits(workers=1))
    assert verify([r"\boxed{1}"], [{"solution": "1"}], pool=pool)[0].reward == 1
    server = pool._server.pid
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    assert len(children) == 1
    for pid in (server, *children):
        names = {entry.split(b"=")[0].decode() for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
        harmless = {"PYTHONPATH", "PYTHONUTF8", "PYTHONHOME", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
        assert names - {""} <= harmless
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{children[0]}/status").read_text().splitlines() if ":\t" in line
    )
    assert (status["Seccomp"], status["NoNewPrivs"], status["Threads"]) == ("2", "1", "1")
    open_files = [os.readlink(f"/proc/{children[0]}/fd/{n}") for n in os.listdir(f"/proc/{children[0]}/fd")]
    assert sum(name.startswith("socket:") for name in open_files) == 1
    assert all(name.startswith(("socket:", "/dev/null", "/proc/")) for name in open_files)
    pool.close()


# -- text is not code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["[[1, 2], ['a', 'b']]", "1 + 2*3", "(4 - 1) / 7", "x**2 + 3*x*y", "Integer(3)*sin(x)", "('a', None)", "f'{1}'"],
)
def test_arithmetic_and_literals_are_harmless(text):
    assert is_harmless(compile(text, "<string>", "eval"))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "().__class__.__base__.__subclasses__()",
        "open('x')",
        "print(1)",
        "(lambda: 1)()",
        "[y for y in (1,)]",
        "'{0.__class__}'.format(1)",
        "eval('1')",
        "breakpoint()",
        "f'{x.__class__}'",
        "Integer(1).func",
    ],
)
def test_what_calls_anything_else_is_not(text):
    assert not is_harmless(compile(text, "<string>", "eval"))


SERIES = r"""
from p2o.verifiers.code_guard import Guard
guard = Guard()
guard.install()
import sympy
from sympy import Function, Sum, Symbol, oo, symbols
n, x = symbols("n x")
print(Sum(1 / n**3 / (n + 1), (n, 1, oo)).evalf(10), sympy.CRootOf(x**5 - x + 1, 0).evalf(5))
print(sympy.gcd(*[sum(symbols("a:9")) * symbols("b:9")[i] for i in (1, 2)]))
assert guard.refused == 0
try:
    sympy.lambdify(x, Function("__import__")(Symbol("x")))("os")
except Exception as error:
    print(type(error).__name__, guard.refused)
"""


def test_sympy_may_write_code_of_its_own_but_not_of_names_that_text_brings():
    said = subprocess.run([sys.executable, "-c", SERIES], capture_output=True, text=True, check=True).stdout.split("\n")
    assert said[0].startswith("0.55") and "a0" in said[1]
    assert said[2] == "CodeRefused 1"


def hostile_texts(folder, port):
    """Python expressions and statements that would leave a trace, and what a worker could break."""
    file, code = str(folder / "stolen"), f"__import__('socket').create_connection(('127.0.0.1',{port})).send(b'x')"
    subclasses = "().__class__.__base__.__subclasses__()"
    system = f"[c for c in {subclasses} if c.__name__=='_wrap_close'][0].__init__.__globals__['system']"
    expressions = [
        code,
        f"open({file!r},'w').write(str(__import__('os').environ))",
        f"__import__('os').system('touch {file}')",
        f"__import__('subprocess').run(['touch',{file!r}])",
        f"{system}('touch {file}')",
        f"__import__('pathlib').Path({file!r}).write_text('x')",
        "__import__('os').fork()",
        "[__import__('os').write(n, b'{\"reward\": 1.0}\\n') for n in range(3, 64)]",
        "__import__('os').kill(__import__('os').getppid(), 9)",
        "open('/proc/%d/environ' % __import__('os').getppid()).read()",
        "__import__('sys').modules['p2o.verifiers.worker'].__dict__.update(verdict=lambda *a: {'reward': 1.0})",
        f"(lambda: {code})()",
        f"exec({code!r})",
        "'{0.__class__.__init__.__globals__}'.format(1)",
    ]
    return [*expressions, f"lambdify((), {expressions[2]!r})()", f"S({expressions[1]!r})", f"Symbol('x').func.{code}"]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Keys in the environment, a secret at home and a listening socket; fails when anything has got anywhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".token").write_text(SECRET)
    pool = Pool(Limits(seconds=10, memory_mb=512))
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield tmp_path, server.getsockname()[1], pool
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.accept()
    pool.close()
    assert os.listdir(tmp_path) == [".token"]


@pytest.mark.slow
def test_no_text_gets_anywhere_by_any_scorer_of_reasoning_gym(trap):
    folder, port, pool = trap
    texts = hostile_texts(folder, port)
    families = sorted(set(reasoning_gym.factory.DATASETS) - {"composite"})  # which has no scorer of its own
    assert len(families) > 100
    # One whose integral sympy could not solve has no answer, and leaves every completion unscored.
    seeds = {"intermediate_integration": 1}
    entries = {f: reasoning_gym.create_dataset(f, size=1, seed=seeds.get(f, 5))[0] for f in families}
    rows = {family: {"entry": json.dumps(e, default=str), "family": family} for family, e in entries.items()}
    # There are scorers that pay for whatever is not empty.
    junk = verify(["<answer>not this</answer>"] * len(rows), list(rows.values()), "gym", pool=pool)
    sold = {family for family, verdict in zip(rows, junk, strict=True) if verdict.reward}
    assert len(sold) <= 1
    # A worker remembers what it found out about a row, for a while.
    cases = [(text, row) for family, row in rows.items() if family not in sold for text in texts]
    said = [f"<answer>{text}</answer>" for text, _ in cases]
    verdicts = verify(said, [row for _, row in cases], "gym", pool=pool)
    paid = {(text, row["family"]) for (text, row), verdict in zip(cases, verdicts, strict=True) if verdict.reward}
    assert not paid and not any(SECRET in (verdict.extracted or "") for verdict in verdicts)


@pytest.mark.parametrize("verifier", ["math", "exact"])
def test_no_text_gets_anywhere_by_the_other_verifiers(trap, verifier):
    folder, port, pool = trap
    frames = ("\\boxed{%s}", "The final answer is $%s$.", "<answer>%s</answer>")
    texts = [frame.replace("%s", text) for text in hostile_texts(folder, port) for frame in frames]
    verdicts = verify(texts, [{"solution": "1"}] * len(texts), verifier, pool=pool)
    assert {verdict.reward for verdict in verdicts} == {0.0}
