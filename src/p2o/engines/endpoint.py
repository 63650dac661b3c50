"""Completions of a model behind an HTTP endpoint, of any provider that litellm knows.

An endpoint is not part of the run: it can be down, slow, overloaded, out of credit, or send anything at any time.
Nothing that it does may end the run or block it for ever, and no message may contain a key that it repeats.
"""

import itertools
import math
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from p2o.completions import Completion
from p2o.seeding import derive_seed

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
    alternatives: str = "neither 'reference' nor 'policy' nor"  # what else the model could have been


class Endpoint:
    """A model behind an HTTP endpoint.

    The key comes from the environment, under the name that litellm expects for the provider, and from nowhere else. A
    server at `base_url` gets a placeholder where the environment has none.

    A request is tried again, after a growing wait with jitter, on 408, 429, 5xx, time-outs, broken connections and
    answers without sense. A batch of n chats takes at most
    ceil(n / concurrency) · (max_retries + 1) · (timeout + 2.5 · MAX_DELAY) seconds.

    Args:
        model: a name that litellm understands; `openai/<name>` for an OpenAI-compatible server at `base_url`.
        base_url: where it is served; the provider's own address when None.
        max_tokens: longest completion, in tokens.
        temperature, top_p: of sampling; the provider's own top_p when None.
        concurrency: requests at once.
        timeout: seconds from sending a request to having all of its answer.
        max_retries: further attempts after the first.
        backoff: seconds before the first retry, doubled for every further one.
        empty_answers: whether an answer without text is one. A reflection without text is useless; a completion of a
            model that thinks until its tokens are spent is empty, and that is its result.
        template_options: for the chat template of an OpenAI-compatible server.
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
        empty_answers: bool = False,
        template_options: dict[str, Any] | None = None,
        options: OptionNames = OptionNames(),
    ) -> None:
        self.model, self.base_url = model, base_url
        self.max_tokens, self.temperature, self.top_p = max_tokens, temperature, top_p
        self.empty_answers, self.options = empty_answers, options
        # Beside OpenAI's own fields, as vLLM and others take it.
        self.extra = {"extra_body": {"chat_template_kwargs": template_options}} if template_options else {}
        self.concurrency, self.timeout, self.max_retries, self.backoff = concurrency, timeout, max_retries, backoff
        self.litellm = import_litellm()
        try:
            self.litellm.get_llm_provider(model, api_base=base_url)
        except Exception:
            raise ValueError(
                f"{options.model}={model!r} is {options.alternatives} a name that litellm can place. "
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

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and completion together, where litellm's list has the model; None elsewhere."""
        listed = self.litellm.model_cost
        found = listed.get(self.model) or listed.get(self.model.partition("/")[2]) or {}
        length = found.get("max_input_tokens") if self.base_url is None else None
        return int(length) if isinstance(length, int | float) else None

    def complete(
        self,
        chats: Sequence[list[dict[str, Any]]],
        *,
        seed: int,
        limit: Callable[[int, float], str | None] = lambda tokens, cost: None,
    ) -> list[Completion]:
        """Completions in the order of the chats; those that failed have an `error` and no text.

        The scheduling is our own: with tenacity or litellm's async calls, what is left is a loop over attempts, while
        Retry-After, seeded jitter, `limit`, notebooks' running event loops and lookups that hang remain to be written.

        Args:
            seed: of the requests' seeds and of the jitter.
            limit: called before each request with the tokens and US dollars that this batch has cost so far; what it
                returns is the error of the requests that may not begin, None when they may.
        """
        batch = _Batch(self, chats, seed, limit)
        while batch.waiting or batch.running:
            batch.start_ready()
            for ticket, outcome in batch.ended():
                batch.take(ticket, outcome)
        return [request.completion() for request in batch.requests]

    def attempt(self, request: "_Request") -> "_Outcome":
        """One attempt at a request, in a thread of its own; whatever the server does is an outcome."""
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
                **self.extra,
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
        return _Outcome(Completion("", error=message), retry, retry_after(headers))

    def _read(self, response: Any) -> "_Outcome":
        usage = getattr(response, "usage", None)
        # litellm reports 0 where the server reports nothing; a request always has tokens.
        prompt_tokens = getattr(usage, "prompt_tokens", None) or None
        completion_tokens = (getattr(usage, "completion_tokens", None) or 0) if prompt_tokens else None
        cost = 0.0
        if self.priced and prompt_tokens:
            cost = sum(
                self.litellm.cost_per_token(
                    model=self.model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
                )
            )
        spent = Completion("", prompt_tokens, completion_tokens, cost)
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


@dataclass(frozen=True)
class _Outcome:
    """The outcome of one attempt; `retry_after` is what the server asks for, in seconds."""

    completion: Completion
    retry: bool
    retry_after: float = 0.0


@dataclass
class _Request:
    """A chat, and what all attempts at it have cost."""

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

    def add(self, completion: Completion) -> None:
        self.attempts += 1
        self.text, self.error, self.truncated = completion.text, completion.error, completion.truncated
        self.prompt_tokens += completion.prompt_tokens or 0
        self.completion_tokens += completion.completion_tokens or 0
        self.cost += completion.cost
        self.usage_known = self.usage_known and completion.prompt_tokens is not None

    def completion(self) -> Completion:
        tokens = (self.prompt_tokens, self.completion_tokens) if self.usage_known else (None, None)
        return Completion(self.text, tokens[0], tokens[1], self.cost, self.error, self.truncated)


class _Batch:
    """Requests of one call: which wait, which run, and what they have cost."""

    def __init__(
        self,
        endpoint: Endpoint,
        chats: Sequence[list[dict[str, Any]]],
        seed: int,
        limit: Callable[[int, float], str | None],
    ) -> None:
        self.endpoint, self.limit = endpoint, limit
        self.jitter = random.Random(derive_seed(seed, "reflection endpoint", "jitter"))
        self.requests = [
            _Request(chat, derive_seed(seed, "reflection endpoint", index) % 2**31) for index, chat in enumerate(chats)
        ]
        self.waiting = list(self.requests)
        self.running: dict[int, tuple[_Request, float]] = {}  # with their deadlines
        self.outcomes: queue.SimpleQueue[tuple[int, _Outcome | Exception]] = queue.SimpleQueue()
        self.tickets = itertools.count()

    def start_ready(self) -> None:
        """Starts the requests whose wait is over, as many as may run at once and as the limit allows."""
        now = time.monotonic()
        ready = [request for request in self.waiting if request.not_before <= now]
        for request in ready[: self.endpoint.concurrency - len(self.running)]:
            self.waiting.remove(request)
            tokens = sum(r.prompt_tokens + r.completion_tokens for r in self.requests)
            reached = self.limit(tokens, sum(r.cost for r in self.requests))
            if reached is not None:
                request.error = reached
                continue
            ticket = next(self.tickets)
            self.running[ticket] = (request, now + self.endpoint.timeout)
            # The HTTP client's own time-out starts anew with every byte, so the clock is watched here. A thread past
            # its deadline is abandoned; as a daemon it blocks neither the run nor its end.
            threading.Thread(target=self._run, args=(request, ticket), daemon=True).start()

    def _run(self, request: _Request, ticket: int) -> None:
        try:
            self.outcomes.put((ticket, self.endpoint.attempt(request)))
        except Exception as mistake:  # in this file; raised where the batch is waited for
            self.outcomes.put((ticket, mistake))

    def ended(self) -> list[tuple[int, _Outcome | Exception]]:
        """Attempts that have ended, or have passed their deadline, once there is one; none when it is time to start."""
        wakes = [deadline for _, deadline in self.running.values()]
        if len(self.running) < self.endpoint.concurrency:
            wakes += [request.not_before for request in self.waiting]
        if not wakes:
            return []
        try:
            return [self.outcomes.get(timeout=max(min(wakes) - time.monotonic(), 0.0))]
        except queue.Empty:
            error = f"No whole answer within {self.endpoint.timeout:g} s."
            late = _Outcome(Completion("", error=error), retry=True)
            now = time.monotonic()
            return [(ticket, late) for ticket, (_, deadline) in self.running.items() if deadline <= now]

    def take(self, ticket: int, outcome: "_Outcome | Exception") -> None:
        """Notes the outcome of an attempt and lets its request wait for another one where there is to be one."""
        if ticket not in self.running:
            return  # abandoned
        request, _ = self.running.pop(ticket)
        if isinstance(outcome, Exception):
            raise outcome
        request.add(outcome.completion)
        if outcome.retry and request.attempts <= self.endpoint.max_retries:
            delay = min(self.endpoint.backoff * 2 ** (request.attempts - 1), MAX_DELAY) * self.jitter.uniform(0.5, 1.5)
            request.not_before = time.monotonic() + delay + min(outcome.retry_after, MAX_DELAY)
            self.waiting.append(request)


def check_base_url(option: str, address: str) -> None:
    """
    Args:
        option: the name of the option that has the address, for messages.

    Raises:
        ValueError: an endpoint's address that is none, or that contains a secret.
    """
    url = urlsplit(address)
    # The address is part of the configuration, which is written down and shown.
    if url.username is not None or url.password is not None:
        raise ValueError(
            f"{option} contains a user name or a password. Take them out and put the key into the environment, where "
            "it is not written down."
        )
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{option}={address!r} is no address such as http://127.0.0.1:8000/v1.")


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
    """The text without values of environment variables whose names end in _KEY, _TOKEN, _SECRET or _PASSWORD."""
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
