"""What a scorer of reasoning-gym may evaluate: its source, and what it reaches in reasoning-gym, is searched for calls.

A new release may bring a family whose scorer hands text to `eval`; it is refused by name until it has a reader.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

_EVALUATING = frozenset(
    "eval exec compile __import__ import_module parse_expr sympify parse_latex lambdify unsafe_load full_load "
    "popen system Popen check_output run_path run_module read_pickle".split()
)
_EVALUATING_MODULES = frozenset("pickle dill marshal shelve subprocess runpy importlib".split())


def evaluating_calls(family: str) -> set[str]:
    """Names of the functions that evaluate text, as far as the family's scorer reaches them; empty for a harmless one.

    Raises:
        KeyError: reasoning-gym has no such family.
    """
    from reasoning_gym.factory import DATASETS

    owner = DATASETS[family][0]
    found: set[str] = set()
    seen: set[Any] = set()
    pending: list[Any] = [owner.score_answer]
    while pending:
        function = inspect.unwrap(pending.pop())
        # Methods that `dataclass` writes have no source, and evaluate nothing.
        if function in seen or function.__code__.co_filename.startswith("<"):
            continue
        seen.add(function)
        scope = _globals_of(function)
        for name, target in _references(function, scope, owner):
            if _is_searched(target, owner):
                pending += _callables_of(target)
            elif name.split(".")[-1] in _EVALUATING or name.split(".")[0] in _EVALUATING_MODULES:
                found.add(name)
    return found


def _globals_of(function: Any) -> dict[str, Any]:
    return vars(inspect.getmodule(function)) if inspect.getmodule(function) else {}


def _is_searched(target: Any, owner: type) -> bool:
    """Whether the source is the family's own or reasoning-gym's; what is anybody else's is judged by its name."""
    module = getattr(target, "__module__", None) or ""
    is_code = inspect.isfunction(target) or inspect.isclass(target)
    return is_code and (module == owner.__module__ or module.partition(".")[0] == "reasoning_gym")


def _callables_of(target: Any) -> list[Any]:
    if not inspect.isclass(target):
        return [target]
    members = [getattr(member, "__func__", member) for member in vars(target).values()]
    members += [member.fget for member in members if isinstance(member, property) and member.fget]
    # A data set's other methods make questions, some of them with `eval` of what they wrote themselves.
    return [] if hasattr(target, "score_answer") else [member for member in members if inspect.isfunction(member)]


def _references(function: Any, scope: dict[str, Any], owner: type) -> Iterator[tuple[str, Any]]:
    """The names in the source, dotted where they are attributes, and what each stands for, if that is known."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, scope.get(node.id)
        elif isinstance(node, ast.Attribute):
            holder = node.value.id if isinstance(node.value, ast.Name) else ""
            if holder in ("self", "cls") or holder == owner.__name__:
                yield f"{holder}.{node.attr}", inspect.unwrap(getattr(owner, node.attr, None) or object)
            else:
                yield f"{holder}.{node.attr}", getattr(scope.get(holder), node.attr, None)
