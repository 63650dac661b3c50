"""The rules by which the code is laid out, each held by a test."""

import ast
import dataclasses
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from p2o import P2OConfig, P2OTrainer
from p2o.private_names import PRIVATE_NAMES

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "p2o"
FILES = sorted(SOURCE.rglob("*.py"))

PURE = ("templates", "hard_samples", "context_distillation", "rewards", "parents", "guard", "budget", "ledger")
PURE += ("images", "shown_images", "proposals")
PURE_FILES = [path for path in FILES if path.stem in PURE and path.parent.name != "verifiers"]


def name_of(path):
    return str(path.relative_to(SOURCE))


@cache
def tree(path):
    return ast.parse(path.read_text())


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def imports(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_has_more_than_400_lines():
    """Of all the repository: tests and benchmarks are read, too."""
    folders = ("src", "tests", "benchmarks", "examples", "recipes", "docs")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert {path.parent.name for path in files} >= {"p2o", "tests", "benchmarks"}
    long = {str(path.relative_to(ROOT)) for path in files if len(path.read_text().splitlines()) > 400}
    assert not long


def test_no_function_has_more_than_60_lines():
    long = {
        f"{name_of(path)}:{node.name}"
        for path in FILES
        for node in functions(path)
        if node.end_lineno - node.lineno + 1 > 60
    }
    assert not long


def test_arrows_run_downward():
    """Nothing below the trainer imports it or takes it as an argument; only the commands and the package are above."""
    above = ("trainer.py", "__init__.py")
    for path in FILES:
        if name_of(path) in above or path.parent.name == "cli":
            continue
        assert not [name for name in imports(path) if name.startswith("p2o.trainer") or "P2OTrainer" in name], path
        for node in functions(path):
            given = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
            # A descriptor is handed the object that it belongs to.
            assert "trainer" not in given or node.name in ("__get__", "__set__"), f"{path}: {node.name}"


def test_the_pure_rooms_are_all_there():
    assert {path.stem for path in PURE_FILES} == set(PURE)


def test_pure_rooms_import_neither_trl_nor_transformers():
    """Those, and every module that calls itself pure; one after another in a process of its own."""
    pure = {*PURE_FILES, *(path for path in FILES if " Pure." in path.read_text().split('"""')[1])}
    assert len(pure) > 40
    difficulty = ("buckets", "groups", "charge", "profile", "selection", "summary", "rewrites")
    assert {SOURCE / "difficulty" / f"{name}.py" for name in difficulty} <= pure
    modules = [".".join(["p2o", *path.relative_to(SOURCE).with_suffix("").parts]) for path in sorted(pure)]
    code = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "    print(module, *{'trl', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == modules


def test_no_option_is_without_a_user():
    read = {node.attr for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    inherited = {field.name for field in dataclasses.fields(GRPOConfig)}
    ours = {field.name for field in dataclasses.fields(P2OConfig)} - inherited
    assert len(ours) > 20 and ours <= read


def test_every_metric_is_documented():
    documented = (SOURCE.parent.parent / "docs" / "metrics.md").read_text()
    names = {
        node.value.rstrip("/")
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("p2o/")
    }
    assert len(names) > 20
    # Events are counted by `event("name")` and in counters named events.
    for path in FILES:
        for node in ast.walk(tree(path)):
            called = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "event"
            counted = isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("events")
            (place,) = node.args[:1] if called and node.args else [node.slice] if counted else [None]
            if isinstance(place, ast.Constant) and isinstance(place.value, str):
                names.add(f"`{place.value}`")
    assert len(names) > 30
    assert not {name for name in names if name not in documented}


def test_every_hook_of_trls_is_overridden_in_the_trainer_only():
    for path in FILES:
        if path.name == "trainer.py":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                assert not [base for base in node.bases if ast.unparse(base) in ("GRPOTrainer", "Trainer")], path


# -- private names -----------------------------------------------------------------------------------------------------


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def resolve(owner):
    module, _, name = owner.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def code_names(owner):
    """Names of attributes in the code of a class."""
    found = set()
    for value in vars(owner).values():
        code = getattr(getattr(value, "__wrapped__", value), "__code__", None)
        todo = [code] if code is not None else []
        while todo:
            code = todo.pop()
            found.update(code.co_names)
            todo += [constant for constant in code.co_consts if hasattr(constant, "co_names")]
    return found


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: private.name)
def test_a_private_name_is_where_it_was(private):
    owner = resolve(private.owner)
    if private.set_by_code:
        assert private.name in code_names(owner), f"{private.owner} no longer sets {private.name}: {private.purpose}"
    else:
        assert hasattr(owner, private.name), f"{private.owner} no longer has {private.name}: {private.purpose}"


def test_all_private_names_are_listed():
    """What begins with an underscore and is not ours; and in the trainer what is ours and, by accident, theirs too."""
    listed = {private.name for private in PRIVATE_NAMES}
    libraries = ("trl", "transformers", "gepa", "vllm")
    defined = {node.name for path in FILES for node in functions(path)}
    touching = [path for path in FILES if any(name.split(".")[0] in libraries for name in imports(path))]
    assert len(touching) > 10
    for path in touching:
        attributes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)]
        stored = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
        used = {node.attr for node in attributes if is_private(node.attr)}
        assert used - defined - stored - vars(P2OTrainer).keys() - {"_actions"} <= listed, path  # argparse's
    theirs = code_names(GRPOTrainer) | code_names(Trainer) | set(dir(GRPOTrainer))
    nodes = ast.walk(tree(SOURCE / "trainer.py"))
    ours = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | vars(P2OTrainer).keys()
    assert {name for name in ours & theirs if is_private(name)} <= listed
