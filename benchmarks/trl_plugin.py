"""Pytest plugin for TRL's own tests, see `trl_tests.py`: which kind a test is of, and what became of it.

`TRL_TESTS_RECORD` names the file to which it adds a line of JSON for each test.
"""

import ast
import inspect
import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from trl_stand_ins import NAMES

TEXT, TOOLS, ENVIRONMENTS, IMAGES = "text", "tools", "environments", "images"
SECONDS = 600


def kind_of(name: str, source: str) -> str:
    """By one rule: images are in the name of a test or its class; tools and environments are handed to a trainer.

    Args:
        name: of class and test.
        source: of the test.
    """
    if re.search("vlm|multimodal", name, re.IGNORECASE):
        return IMAGES
    calls = (node for node in ast.walk(ast.parse(textwrap.dedent(source))) if isinstance(node, ast.Call))
    handed = {keyword.arg for call in calls for keyword in call.keywords}
    if "environment_factory" in handed:
        return ENVIRONMENTS
    return TOOLS if "tools" in handed else TEXT


def pytest_configure() -> None:
    supply_missing_checks()
    if not torch.cuda.is_available():
        default_to_float32()


def default_to_float32() -> None:
    """TRL computes in bfloat16 by default. A processor may take seventy times longer for it, and the tests three."""
    from trl.trainer.base_config import _BaseConfig

    default = _BaseConfig.__post_init__

    def in_float32(self: Any) -> None:
        self.bf16 = False if self.bf16 is None else self.bf16
        default(self)

    _BaseConfig.__post_init__ = in_float32


def supply_missing_checks() -> None:
    """Gives tests of another release the checks for optional packages that the installed TRL has none of."""
    from trl import import_utils

    for path in Path("tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "trl.import_utils":
                for package in re.findall(r"\bis_(\w+)_available\b", ast.unparse(node)):
                    available = find_spec(package) is not None
                    vars(import_utils).setdefault(f"is_{package}_available", lambda available=available: available)


def name_of(item: Any) -> str:
    """Such as `TestGRPOTrainer::test_train[x]`."""
    return str(item.nodeid.partition("::")[2])


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        source = inspect.getsource(item.function)
        item.trl_kind = kind_of(name_of(item), source)
        # A decorator names the models of all variants; of this one they stand among its parameters.
        body = source[source.index("def ") :]
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        named = NAMES.findall(body) + [name for value in parameters.values() for name in NAMES.findall(str(value))]
        missing = sorted({name for name in named if not Path(name).is_dir()})
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"no stand-in for {', '.join(missing)}"))


def _out_of_time(*_: Any) -> None:
    raise TimeoutError(f"It took more than {SECONDS} seconds.")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: Any) -> Iterator[None]:
    counts = getattr(sys.modules.get("trl_forced"), "COUNTS", {})
    counts.clear()
    before = signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when != "call" and report.passed:
        return
    counts = dict(getattr(sys.modules.get("trl_forced"), "COUNTS", {})) if report.when == "call" else {}
    row = {"test": name_of(item), "kind": item.trl_kind, "outcome": report.outcome, "why": why(report, call)}
    with Path(os.environ["TRL_TESTS_RECORD"]).open("a") as file:
        file.write(json.dumps({**row, "seconds": round(report.duration, 2), "counts": counts}) + "\n")


def why(report: Any, call: Any) -> str:
    """One line on a failure or a skip; "" for a test that passed."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    if not report.failed:
        return str(getattr(report, "wasxfail", ""))
    lines = [line.strip() for line in str(call.excinfo.value).splitlines() if line.strip()]
    text = f"{call.excinfo.typename}: {' '.join(lines)}"
    return text if len(text) <= 200 else f"{text[:200]} …"
