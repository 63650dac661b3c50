"""Reflection, and completions, by a model behind an HTTP endpoint, of any provider that litellm knows.

An endpoint is the part of a run that is not ours: it can be down, slow, overloaded, out of credit, or talk nonsense at
hour nine. Nothing that it does may end the run or hold it up for ever, and nothing that it says may carry a key along.
"""

import itertools
import logging
import math
import os
import queue
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from p2o.evolution.prompt_phase import Reflection, ReflectionError
from p2o.seeding import derive_seed

logger = logging.getLogger(__name__)

MAX_DELAY = 60.0  # seconds; no wait before a retry is longer, whatever Retry-After says, up to its jitter
CHARACTERS_PER_TOKEN = 32  # no ordinary text has as many on average

_HINTS = {
    400: "Check {max_tokens} against the model's context length.",
    401: "Check the key in the environment.",
    403: "Check the key in the environment, and what it gives access to.",
    404: "Check {model} and {base_url}, which for most servers ends in /v1.",
    422: "Check {max_tokens} against the model's context length.",
}
_SECRET_NAME = re.compile(r"_(?:KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
_CREDENTIAL = re.compile(r"(?i)(?<=bearer )\S+|\bsk-\S+|(?<=//)[^/@\s]+(?=@)")


@dataclass(frozen=True)
class OptionNames:
    """What the settings are called where the user sets them, for messages."""

    model: str = "reflection_model"
    base_url: str = "reflection_base_url"
    max_tokens: str = "reflection_max_tokens"
    not_this: str = "neither 'reference' nor 'policy' nor"  # what else the model could have been


class EndpointReflection:
    """A model behind an HTTP endpoint that reflects; a [`p2o.evolution.prompt_phase.ReflectionFn`].

    The key comes from the environment, under the name that litellm expects for the provider, and from nowhere else. A
    server at `base_url` gets a placeholder where the environment has none.

    A request is tried again, after a growing wait with jitter, on 408, 429, 5xx, time-outs, broken connections and
    answers without sense. A batch of n prompts takes at most
    ceil(n / concurrency) · (max_retries + 1) · (timeout + 2.5 · MAX_DELAY) seconds.

    Args:
        model: a name that litellm understands; `openai/<name>` for an OpenAI-compatible server at `base_url`.
        base_url: where it is served; the provider's own address when None.
        max_tokens: longest reflection, in tokens.
        temperature, top_p: of sampling; the provider's own top_p when None.
        concurrency: requests at once.
        timeout: seconds from sending a request to having all of its answer.
        max_retries: further attempts after the first.
        backoff: seconds before the first retry, doubled for every further one.
        left: tokens and US dollars that may still be spent before this batch. No request begins once the batch has
            spent them; those under way then may exceed them.
        empty_answers: whether an answer without text is one. A reflection says something; a completion of a model that
            thinks until its tokens are spent is empty, and that is its result.
        options: the names of these settings in messages.

    Raises:
        ImportError: litellm is missing; the message says how to get it.
        ValueError: a model name that litellm cannot place, or no key for it in the environment.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        max_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        max_retries: int = 3,
        backoff: float = 1.0,
        left: Callable[[], tuple[float, float]] = lambda: (math.inf, math.inf),
        empty_answers: bool = False,
        options: OptionNames = OptionNames(),
    ) -> None:
        self.model, self.base_url, self.left = model, base_url, left
        self.max_tokens, self.temperature, self.top_p = max_tokens, temperature, top_p
        self.empty_answers, self.options = empty_answers, options
        self.concurrency, self.timeout, self.max_retries, self.backoff = concurrency, timeout, max_retries, backoff
        self.litellm = import_litellm()
        try:
            self.litellm.get_llm_provider(model, api_base=base_url)
        except Exception:
            raise ValueError(
                f"{options.model}={model!r} is {options.not_this} a name that litellm can place. "
                f"For an OpenAI-compatible server write 'openai/{model}' and set {options.base_url}; for a provider "
                "its name and the model's, such as 'anthropic/<model>'."
            ) from None
        missing = self.litellm.validate_environment(model)["missing_keys"]
        # Clouds know other ways to log in; to an API that takes a key there is none.
        keys = [name for name in missing if name.endswith("_API_KEY")]
        if keys and base_url is None:
            raise ValueError(f"{options.model}={model!r} needs {', '.join(keys)} in the environment.")
        self.api_key = "unused" if keys else None
        try:
            self.litellm.cost_per_token(model=model, prompt_tokens=1, completion_tokens=1)
            self.priced = True
        except Exception:  # litellm raises different things for an unknown model and for an unknown provider
            self.priced = False
        self._told_of_usage = False

    def limit_reached(self, tokens: int = 0, cost: float = 0.0) -> str | None:
        """Which limit stands in the way of a request, this batch having spent so much; None when none does."""
        tokens_left, cost_left = self.left()
        if tokens_left <= tokens:
            return "The run has spent the tokens of reflection_token_limit; raise it to go on reflecting."
        if cost_left <= cost:
            return "The run has spent the US dollars of reflection_cost_limit; raise it to go on reflecting."
        return None

    def __call__(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        """Answers in the order of the prompts; those that failed have an `error` and no text.

        Raises:
            ReflectionError: all of them failed.
        """
        return self._told(self.answer([[{"role": "user", "content": prompt}] for prompt in prompts], seed=seed))

    def answer(self, chats: Sequence[list[dict[str, Any]]], *, seed: int) -> list[Reflection]:
        """Answers in the order of the chats; those that failed have an `error` and no text, and nothing is raised."""
        jitter = random.Random(derive_seed(seed, "reflection endpoint", "jitter"))
        waiting = [
            _Request(chat, derive_seed(seed, "reflection endpoint", index) % 2**31) for index, chat in enumerate(chats)
        ]
        requests = list(waiting)
        running: dict[int, tuple[_Request, float]] = {}
        outcomes: queue.SimpleQueue[tuple[int, _Outcome | Exception]] = queue.SimpleQueue()
        tickets = itertools.count()
        while waiting or running:
            now = time.monotonic()
            ready = [request for request in waiting if request.not_before <= now]
            for request in ready[: self.concurrency - len(running)]:
                waiting.remove(request)
                reached = self.limit_reached(
                    sum(r.prompt_tokens + r.completion_tokens for r in requests), sum(r.cost for r in requests)
                )
                if reached is not None:
                    request.error = reached
                    continue
                ticket = next(tickets)
                running[ticket] = (request, now + self.timeout)
                # The HTTP client's own time-out starts anew with every byte, so the clock is watched here. A thread
                # that nobody waits for any more is left behind; a daemon, it holds up neither the run nor its end.
                threading.Thread(target=self._ask, args=(request, ticket, outcomes), daemon=True).start()
            wakes = [deadline for _, deadline in running.values()]
            if len(running) < self.concurrency:
                wakes += [request.not_before for request in waiting]
            if not wakes:
                continue
            try:
                ticket, outcome = outcomes.get(timeout=max(min(wakes) - time.monotonic(), 0.0))
                ended = [(ticket, outcome)]
            except queue.Empty:
                late = _Outcome(Reflection("", error=f"No whole answer within {self.timeout:g} s."), retry=True)
                now = time.monotonic()
                ended = [(ticket, late) for ticket, (_, deadline) in running.items() if deadline <= now]
            for ticket, outcome in ended:
                if ticket not in running:
                    continue
                request, _ = running.pop(ticket)
                if isinstance(outcome, Exception):
                    raise outcome
                request.note(outcome.reflection)
                if outcome.retry and request.attempts <= self.max_retries:
                    delay = min(self.backoff * 2 ** (request.attempts - 1), MAX_DELAY) * jitter.uniform(0.5, 1.5)
                    request.not_before = time.monotonic() + delay + min(outcome.retry_after, MAX_DELAY)
                    waiting.append(request)
        return [request.reflection() for request in requests]

    def _told(self, reflections: list[Reflection]) -> list[Reflection]:
        """What has to be said of a batch is said."""
        if any(r.prompt_tokens is None for r in reflections) and not self._told_of_usage:
            self._told_of_usage = True
            logger.warning(
                "The reflection endpoint for %s does not say how many tokens it used: the ledger counts none for it, "
                "and reflection_token_limit and reflection_cost_limit cannot hold.",
                self.model,
            )
        failures = Counter(reflection.error for reflection in reflections if reflection.error)
        if not failures:
            return reflections
        failed = failures.total()
        causes = "; ".join(f"{count} × {cause}" for cause, count in failures.most_common(3))
        if failed == len(reflections):
            raise ReflectionError(f"None of {failed} reflection(s) by {self.model} came out: {causes}", reflections)
        logger.warning("%d of %d reflections by %s failed: %s", failed, len(reflections), self.model, causes)
        return reflections

    # -- one request, in a thread of its own -------------------------------------------------------------------------

    def _ask(
        self, request: "_Request", ticket: int, outcomes: "queue.SimpleQueue[tuple[int, _Outcome | Exception]]"
    ) -> None:
        try:
            outcomes.put((ticket, self._complete(request)))
        except Exception as mistake:  # in this file; raised where the batch is waited for
            outcomes.put((ticket, mistake))

    def _complete(self, request: "_Request") -> "_Outcome":
        try:
            response = self.litellm.completion(
                model=self.model,
                messages=request.messages,
                base_url=self.base_url,
                api_key=self.api_key,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=request.seed,
                drop_params=True,  # what a provider does not take, such as the seed, is left out
                timeout=self.timeout,
                max_retries=0,
                num_retries=0,
            )
        except Exception as error:  # anything at all, depending on what the server sent
            return self._fault(error)
        return self._read(response)

    def _fault(self, error: Exception) -> "_Outcome":
        # Only words leave here: the exception itself holds the request, key and all.
        status = getattr(error, "status_code", None)
        retry = not isinstance(status, int) or status in (408, 429) or status >= 500
        text = re.sub(r"^litellm\.\w+: (?:[\w ]+: )?(?:\w+Exception - )?", "", str(error))
        text = text.partition("Traceback (most recent call last)")[0]
        text = " ".join(_CREDENTIAL.sub("[redacted]", redact(text)).split())
        if len(text) > 300:
            text = text[:300] + "…"
        hint = _HINTS.get(status, "").format(**vars(self.options)) if isinstance(status, int) else ""
        if "Connection error" in text:
            hint = f"Is the server at {self.options.base_url} running, and reachable from here?"
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        message = f"{type(error).__name__}: {text}" + (f" {hint}" if hint else "")
        return _Outcome(Reflection("", error=message), retry, retry_after(headers))

    def _read(self, response: Any) -> "_Outcome":
        usage = getattr(response, "usage", None)
        # litellm says 0 where the server said nothing; a request always has tokens.
        prompt_tokens = getattr(usage, "prompt_tokens", None) or None
        completion_tokens = (getattr(usage, "completion_tokens", None) or 0) if prompt_tokens else None
        cost = 0.0
        if self.priced and prompt_tokens:
            cost = sum(
                self.litellm.cost_per_token(
                    model=self.model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
                )
            )
        spent = Reflection("", prompt_tokens, completion_tokens, cost)
        if not response.choices:
            return _Outcome(replace(spent, error="An answer without choices."), retry=True)
        text, finish = response.choices[0].message.content, response.choices[0].finish_reason
        spent = replace(spent, truncated=finish == "length")
        if self.empty_answers and finish in ("stop", "length"):
            text = text or ""
        elif not isinstance(text, str) or not text.strip():
            reason = f"An answer without text (finish_reason {finish!r})."
            if finish == "length":
                reason += f" Raise {self.options.max_tokens}: a model that thinks first needs more of them."
            return _Outcome(replace(spent, error=reason), retry=True)
        longest = CHARACTERS_PER_TOKEN * self.max_tokens
        if len(text) > longest:
            reason = f"An answer of more than {longest:,} characters: the server ignores {self.options.max_tokens}."
            return _Outcome(replace(spent, error=reason), retry=False)
        # Half a surrogate pair is valid JSON, and no tokenizer takes it.
        text = redact(text).encode("utf-8", "replace").decode()
        return _Outcome(replace(spent, text=text), retry=False)


@dataclass
class _Request:
    """A chat on its way to an answer, and what all attempts at it have cost."""

    messages: list[dict[str, Any]]
    seed: int
    not_before: float = 0.0
    attempts: int = 0
    text: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    usage_known: bool = True
    truncated: bool = False

    def note(self, reflection: Reflection) -> None:
        self.attempts += 1
        self.text, self.error, self.truncated = reflection.text, reflection.error, reflection.truncated
        self.prompt_tokens += reflection.prompt_tokens or 0
        self.completion_tokens += reflection.completion_tokens or 0
        self.cost += reflection.cost
        self.usage_known = self.usage_known and reflection.prompt_tokens is not None

    def reflection(self) -> Reflection:
        tokens = (self.prompt_tokens, self.completion_tokens) if self.usage_known else (None, None)
        return Reflection(self.text, tokens[0], tokens[1], self.cost, self.error, self.truncated)


@dataclass(frozen=True)
class _Outcome:
    """Of one attempt; `retry_after` is what the server asks for, in seconds."""

    reflection: Reflection
    retry: bool
    retry_after: float = 0.0


def import_litellm() -> Any:
    """litellm, kept from the network and from the environment.

    Raises:
        ImportError: it is missing or broken; the message says how to get it.
    """
    # By itself it fetches a price list when it is imported, and reads a .env file into this process's environment.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    try:
        import litellm
    except ImportError as error:
        raise ImportError(
            f"A served model needs litellm ({error}). Install it with: pip install 'p2o-rl[reflection]'"
        ) from None
    litellm.suppress_debug_info = True  # it prints advice with every error
    return litellm


def redact(text: str) -> str:
    """The text without what the environment holds under a name that says it is secret."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 8:
            text = text.replace(value, "[redacted]")
    return text


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, as a number or as a date; 0 where it does not, or not readably."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if 0 < seconds < math.inf else 0.0
