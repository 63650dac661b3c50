"""Environments in a prompt phase: instances of its own, called in threads of their own within a limit of time.

Those of training batches are TRL's, which it makes, resets and calls. A prompt phase has to survive what an environment
does, and to find the same question whenever it comes back to a row.
"""

import asyncio
import functools
import inspect
import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from transformers.utils import get_json_schema

from p2o.config import P2OConfig
from p2o.engines.tools import Tool
from p2o.seeding import derive_seed, random_stream
from p2o.templates import Prompt, prompt_of

logger = logging.getLogger(__name__)

Factories = Mapping[str | None, Callable[[], Any]]
"""As TRL keeps them: by the name that rows have in the column `environment`, or one by None."""

RAISED, HUNG = "environment_raised", "environment_hung"
PATIENCE = 8
"""Calls of a prompt phase that hang one after the other; after so many of them no more are made."""


class Hung(Exception):
    """A call that has not come back in time."""


class OwnThread:
    """A thread in which one environment is made and called: what it opens may belong to the thread that opened it.

    Args:
        limit: seconds that a call may take; None for no limit, and the caller's own thread.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.tasks: SimpleQueue[Any] = SimpleQueue()
        if limit is not None:
            # A daemon: one that hangs would keep the program from ending.
            threading.Thread(target=_serve, args=(self.tasks,), daemon=True).start()
            weakref.finalize(self, self.tasks.put, None)

    def call(self, function: Callable[[], Any]) -> Any:
        """
        Raises:
            Hung: it has not come back within the limit.
            Exception: what the function raises.
        """
        if self.limit is None:
            return function()
        result: Future[Any] = Future()
        self.tasks.put((result, function))
        if not wait([result], self.limit).done:
            raise Hung(f"It has not come back within {self.limit:g} seconds.")
        return result.result()


def _serve(tasks: "SimpleQueue[Any]") -> None:
    while (task := tasks.get()) is not None:
        result, function = task
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)
        del task, result, function


@dataclass
class Trouble:
    """What went wrong with the environments of a prompt phase.

    Args:
        hung: calls that have hung since one came back.
        said: what the log has already.
    """

    hung: int = 0
    said: set[str] = field(default_factory=set)

    @property
    def too_much(self) -> bool:
        return self.hung >= PATIENCE

    def note(self, error: Exception, what: str) -> None:
        self.hung = self.hung + 1 if isinstance(error, Hung) else 0
        why = str(error) if isinstance(error, Hung) else f"{type(error).__name__}: {error}"
        self.say(f"{what} failed in a prompt phase, and its rollout is unscored: {why}")
        if self.too_much:
            self.say(f"{PATIENCE} calls of environments in a row hung: this prompt phase makes no more.")

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            logger.warning("%s", text)


@dataclass
class Episode:
    """An instance of an environment, and what became of the rollout that it is in.

    Args:
        name: of its kind; None where there is only one.
        instance: None where it could not be made.
        prompt: the bare question with the observation of `reset()`.
        failure: the event that costs its rollout; "" where there is none.
        trouble: of all of a prompt phase.
    """

    name: str | None
    thread: OwnThread
    instance: Any = None
    prompt: Prompt = ""
    failure: str = ""
    trouble: Trouble = field(default_factory=Trouble)

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """What the function returns in the environment's thread; None where it fails."""
        if self.trouble.too_much:
            self.failure = self.failure or HUNG
        if self.failure:
            return None
        try:
            result = self.thread.call(function)
        except Exception as error:
            self.fail(what, error)
            return None
        if self.instance is not None:  # that another one can be made says nothing of what it does
            self.trouble.hung = 0
        return result

    def fail(self, what: str, error: Exception) -> None:
        self.failure = HUNG if isinstance(error, Hung) else RAISED
        kind = type(self.instance).__name__ if self.instance is not None else self.name or "the environment"
        self.trouble.note(error, f"{what} of {kind}")

    def tools(self) -> list[Tool]:
        """Its methods that the model may call. What one of them raises, the model is told; TRL does that."""
        methods = [getattr(self.instance, name) for name in tool_names(type(self.instance))]
        return [self._later(m) if inspect.iscoroutinefunction(m) else self._now(m) for m in methods]

    def _now(self, method: Tool) -> Tool:
        @functools.wraps(method)
        def called(*values: Any, **arguments: Any) -> Any:
            with self._told(method):
                return self.thread.call(functools.partial(method, *values, **arguments))

        return called

    def _later(self, method: Tool) -> Tool:
        @functools.wraps(method)
        async def called(*values: Any, **arguments: Any) -> Any:
            with self._told(method):
                return await within(self.thread.limit, method(*values, **arguments))

        return called

    @contextmanager
    def _told(self, method: Tool) -> Iterator[None]:
        """Inside, a call of a tool: one that hangs costs the rollout, and nothing is called after it."""
        if self.failure or self.trouble.too_much:
            self.failure = self.failure or HUNG
            raise Hung("The environment does not answer any more.")
        try:
            yield
        except Hung as error:
            self.fail(method.__name__, error)
            raise
        self.trouble.hung = 0


NO_ENVIRONMENT = Episode(None, OwnThread(None))
"""That of rollouts without one."""


async def within(limit: float | None, answer: Any) -> Any:
    """The result of a coroutine.

    Raises:
        Hung: it has none within so many seconds.
    """
    task = asyncio.ensure_future(answer)
    done, _ = await asyncio.wait({task}, timeout=limit)
    if not done:
        task.cancel()
        raise Hung(f"It has not come back within {limit:g} seconds.")
    return task.result()


def tool_names(kind: type) -> list[str]:
    """Names of the methods of an environment that TRL hands to the model."""
    names = [name for name, _ in inspect.getmembers(kind, predicate=inspect.isfunction)]
    return [name for name in names if name not in ("reset", "get_reward") and not name.startswith("_")]


def with_observation(prompt: Prompt, observation: Any) -> Prompt:
    """A chat with what `reset()` returned behind its last message, as TRL has it."""
    if observation is None:
        return prompt
    last: Any = prompt[-1]
    content = last["content"]
    if isinstance(observation, list) and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if isinstance(observation, str) and isinstance(content, list):
        observation = [{"type": "text", "text": observation}]
    return [*prompt[:-1], {**last, "content": content + observation}]


@dataclass
class Environments:
    """The environments of one prompt phase, in one process. An instance is used again once its rollout is scored.

    Args:
        limit: seconds that one call may take; None for no limit.
        seed: of the run; a row's `reset()` has a random stream of its own, the same one every time.
        reward_functions: the trainer's list, in which those of environments stand that own their reward.
    """

    factories: Factories
    limit: float | None
    seed: int
    reward_functions: list[Any]
    free: defaultdict[str | None, list[Episode]] = field(default_factory=lambda: defaultdict(list))
    trouble: Trouble = field(default_factory=Trouble)

    @classmethod
    def of(cls, factories: Factories | None, args: P2OConfig, reward_functions: list[Any]) -> "Environments | None":
        """Those of a trainer; None where it has none."""
        return cls(factories, args.environment_timeout, args.seed, reward_functions) if factories else None

    @property
    def several(self) -> bool:
        """Whether rows name theirs."""
        return None not in self.factories

    @contextmanager
    def episodes(self, rows: Sequence[Mapping[str, Any]], questions: Sequence[int]) -> Iterator[list[Episode]]:
        """Environments that are reset with these rows, which are questions of the training set.

        Those that failed are not used again.
        """
        taken = [self._started(row, question) for row, question in zip(rows, questions, strict=True)]
        try:
            yield taken
        finally:
            for episode in taken:
                if not episode.failure:
                    self.free[episode.name].append(episode)

    def _started(self, row: Mapping[str, Any], question: int) -> Episode:
        name = row.get("environment") if self.several else None
        episode = self.free[name].pop() if self.free[name] else self._made(name)
        given = {key: value for key, value in row.items() if not (self.several and key == "environment")}
        bare = prompt_of(row)

        def reset() -> Prompt:
            return with_observation(bare, episode.instance.reset(**given))

        with random_stream(derive_seed(self.seed, "environment", question)):
            episode.prompt = episode.attempt("reset()", reset) or bare
        return episode

    def _made(self, name: str | None) -> Episode:
        episode = Episode(name, OwnThread(self.limit), trouble=self.trouble)
        episode.instance = episode.attempt("A new instance", self.factories[name])
        return episode

    @contextmanager
    def scoring(self, episodes: Sequence[Episode]) -> Iterator[None]:
        """Inside, environments that own their reward are asked for it one by one, each within the limit.

        Args:
            episodes: of the rows that reward functions are given, in their order; one of them may be there twice.
        """
        kept = list(self.reward_functions)
        self.reward_functions[:] = [_one_by_one(f, episodes) if is_owned(f) else f for f in kept]
        try:
            yield
        finally:
            self.reward_functions[:] = kept


def is_owned(reward: Any) -> bool:
    """Whether a reward function is one that TRL has made of the `get_reward` of an environment."""
    name, module = getattr(reward, "__qualname__", ""), getattr(reward, "__module__", "")
    return str(module).startswith("trl.") and str(name).endswith("<locals>.get_reward")


def _one_by_one(reward: Any, episodes: Sequence[Episode]) -> Any:
    different = {id(episode): episode for episode in episodes}.values()
    if inspect.iscoroutinefunction(reward):

        async def one(episode: Episode) -> Any:
            try:
                return (await within(episode.thread.limit, reward(environments=[episode.instance])))[0]
            except Exception as error:
                episode.fail("get_reward()", error)

        async def get_reward_later(**columns: Any) -> list[Any]:
            found = await asyncio.gather(*map(one, different))
            by_episode = dict(zip(map(id, different), found, strict=True))
            return [by_episode[id(episode)] for episode in episodes]

        return get_reward_later

    def get_reward(**columns: Any) -> list[Any]:
        found = {
            id(episode): episode.attempt(
                "get_reward()", functools.partial(lambda e: reward(environments=[e])[0], episode.instance)
            )
            for episode in different
        }
        return [found[id(episode)] for episode in episodes]

    return get_reward


# -- before training ---------------------------------------------------------------------------------------------------


def check_tools(tools: Sequence[Tool]) -> None:
    """
    Raises:
        ValueError: a tool whose arguments cannot be described to the model, by name.
    """
    for tool in tools:
        try:
            get_json_schema(tool)
        except Exception as error:
            name = getattr(tool, "__qualname__", repr(tool))
            raise ValueError(
                f"The tool {name} cannot be described to the model: {error} A tool needs a type hint for each argument "
                "and a docstring that describes it and, in a section `Args:`, each of them."
            ) from error


def names_in(data: Any, factories: Factories | None) -> list[str | None]:
    """Of each row of a data set, which environment it is about: None where there is none, or only one."""
    several = factories is not None and None not in factories
    rows = len(data) if hasattr(data, "__len__") else 0
    return list(data["environment"]) if several and rows and "environment" in data.column_names else [None] * rows


def unknown_names(names: Sequence[str | None], factories: Factories | None) -> list[int]:
    """Rows whose environment does not exist."""
    return [] if factories is None else [row for row, name in enumerate(names) if name not in factories]
