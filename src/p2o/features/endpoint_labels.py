"""Short labels of features by a model behind an endpoint, which is shown where they are most active.

Such a label stands beside the one by contrast and decides nothing: neither groups of features nor training look at it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2o.engines.endpoint import Endpoint
from p2o.journal import JsonLines
from p2o.seeding import derive_seed

LONGEST = 80  # characters of a label
AROUND = ' \t*_`#"“”.-'  # a label, as models write one
REQUEST = """\
A feature of a language model is active on some tokens of its answers and not on others. Below are the places where it \
is most active, the strongest first. The tokens on which it is active stand between ⟦ and ⟧.

{places}

What do these tokens have in common, and not those around them? Answer with a label of at most eight words on a single \
line, and nothing else."""


@dataclass(frozen=True)
class EndpointLabels:
    """What an endpoint said.

    Args:
        by_feature: the labels.
        failures: causes of requests that failed for good, with how often.
    """

    by_feature: dict[int, str]
    failures: Counter[str]


def label_request(contexts: Sequence[Mapping[str, Any]]) -> str:
    """What is asked about a feature.

    Args:
        contexts: of [`p2o.features.labels.top_contexts`].
    """
    places = [
        "".join(f"⟦{text}⟧" if is_active else text for text, is_active in context["pieces"]) for context in contexts
    ]
    return REQUEST.format(places="\n\n".join(f"{number}. {place}" for number, place in enumerate(places, 1)))


def label_in(answer: str) -> str:
    """The label in an answer: its first line with a word, without quotes and markup around it, cut to 80 characters."""
    first = next((line for line in answer.splitlines() if re.search(r"\w", line)), "")
    bare = re.sub(r"^label:\W*", "", first.strip(AROUND), flags=re.IGNORECASE)
    label = " ".join("".join(c for c in bare if c.isprintable()).split())
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def known_labels(journal: Path, requests: Mapping[int, str]) -> dict[int, str]:
    """Labels that a journal has for these requests, of whatever model; the last one counts."""
    last = {record["request"]: record["label"] for record in JsonLines(journal).records}
    keys = {feature: _digest(request) for feature, request in requests.items()}
    return {feature: last[key] for feature, key in keys.items() if key in last}


def endpoint_labels(
    endpoint: Endpoint,
    requests: Mapping[int, str],
    journal: Path,
    *,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> EndpointLabels:
    """Asks an endpoint for the labels that the journal does not have yet.

    Args:
        requests: by feature, of [`label_request`].
        journal: a file of labels by request and model; answers are kept there as soon as a batch of them is whole.
        seed: of the requests.
        on_progress: called with the number of features done and of all.

    Raises:
        OSError: the journal cannot be read or written.
    """
    failures: Counter[str] = Counter()
    with JsonLines(journal) as file:
        had = {r["request"]: r["label"] for r in file.records if r["model"] == endpoint.model}
        found = {feature: had[_digest(text)] for feature, text in requests.items() if _digest(text) in had}
        missing = [feature for feature in requests if feature not in found]
        done = len(found)
        for start in range(0, len(missing), endpoint.concurrency):
            batch = missing[start : start + endpoint.concurrency]
            chats = [[{"role": "user", "content": requests[feature]}] for feature in batch]
            answers = endpoint.complete(chats, seed=derive_seed(seed, "endpoint labels", batch[0]))
            labels = [label_in(answer.text) for answer in answers]
            for feature, answer, label in zip(batch, answers, labels, strict=True):
                if label:
                    found[feature] = label
                else:
                    failures[answer.error or "An answer without a word."] += 1
            file.append(
                {
                    "request": _digest(requests[feature]),
                    "model": endpoint.model,
                    "label": label,
                    "prompt_tokens": answer.prompt_tokens,
                    "completion_tokens": answer.completion_tokens,
                }
                for feature, answer, label in zip(batch, answers, labels, strict=True)
                if label
            )
            done += len(batch)
            on_progress(done, len(requests))
    return EndpointLabels(found, failures)


def _digest(request: str) -> str:
    return hashlib.sha256(request.encode()).hexdigest()[:16]
