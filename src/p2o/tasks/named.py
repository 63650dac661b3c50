r"""Named sets: mathematics from the hub at pinned revisions, any family of reasoning-gym, and the embedded world.

| name | what |
|---|---|
| `deepscaler`, `deepscaler-5k` | for training: all of DeepScaleR, or 5,000 drawn from it |
| `deepmath-5k` | for training: 5,000 of DeepMath-103K with difficulty ≥ 7, balanced over topics |
| `math500`, `aime24`, `aime25`, `amc23`, `minerva`, `olympiadbench` | the paper's evaluation |
| `gym:FAMILY@LEVEL+…` | reasoning-gym, e.g. `gym:chain_sum`, or in equal shares `gym:chain_sum@2+gcd@1` |
| `pico`, `pico:hard`, … | the embedded world's evaluation questions, all or of one split |

Case, `-` and `_` do not matter. Ids, columns, numbers of rows and revisions of the hub's sets were taken from public
code that pins them; no copy of the data is shipped, and a set is checked against this table when it is loaded.
"""

import difflib
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

from datasets import Dataset

from p2o.seeding import derive_seed
from p2o.tasks import gym
from p2o.tasks.layouts import DataError
from p2o.tasks.loading import load_splits

Verifier = Literal["math", "exact", "gym", "pico"]

# The instruction of the paper's own data (there before the question).
BOXED = r"Let's think step by step and output the final answer within \boxed{}."
PICO = "pico"


@dataclass(frozen=True)
class NamedSet:
    """One set on the hub, with what is expected of its download.

    Args:
        name: in P²O.
        hub_id: `owner/name` on the Hugging Face hub.
        revision: commit there.
        split: the one split that is used.
        rows: in that split, of the download.
        prompt: column with the question.
        solution: column with the gold answer, a text, a number or a list of texts.
        answer_format: appended to the question.
        sample: number of rows to draw; all if None.
        min_difficulty: least `difficulty` of those drawn.
        balance: column whose areas (`Mathematics -> AREA -> …`) are drawn evenly.
    """

    name: str
    hub_id: str
    revision: str
    split: str
    rows: int
    prompt: str
    solution: str
    answer_format: str = BOXED
    sample: int | None = None
    min_difficulty: float | None = None
    balance: str | None = None

    @property
    def columns(self) -> set[str]:
        """The required columns."""
        extra = {"difficulty"} if self.min_difficulty is not None else set()
        return {self.prompt, self.solution} | extra | ({self.balance} if self.balance else set())


_DEEPSCALER = ("agentica-org/DeepScaleR-Preview-Dataset", "b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29", "train", 40_315)

NAMED_SETS = (
    NamedSet("deepscaler", *_DEEPSCALER, "problem", "answer"),
    NamedSet("deepscaler-5k", *_DEEPSCALER, "problem", "answer", sample=5_000),
    NamedSet(
        "deepmath-5k",
        "zwhe99/DeepMath-103K",
        "5cf055d1fe3d7a2eb19719ac020211469736ae44",
        "train",
        103_022,
        "question",
        "final_answer",
        sample=5_000,
        min_difficulty=7,
        balance="topic",
    ),
    NamedSet(
        "math500",
        "HuggingFaceH4/MATH-500",
        "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        "test",
        500,
        "problem",
        "answer",
    ),
    NamedSet(
        "aime24",
        "HuggingFaceH4/aime_2024",
        "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        "train",
        30,
        "problem",
        "answer",
    ),
    NamedSet("aime25", "math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test", 30, "problem", "answer"),
    NamedSet("amc23", "math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "test", 40, "question", "answer"),
    NamedSet(
        "minerva",
        "math-ai/minervamath",
        "ee46ddc498933b1977577953250ca5c66be64f96",
        "test",
        272,
        "question",
        "answer",
    ),
    NamedSet(
        "olympiadbench",
        "math-ai/olympiadbench",
        "4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84",
        "test",
        674,
        "question",
        "final_answer",
    ),
)


@dataclass(frozen=True)
class Task:
    """Questions and how their answers are verified.

    Args:
        name: as it was asked for.
        dataset: columns `prompt` (a chat of one user message) and `solution` (text); for `gym` and `pico` `entry` as
            well (reasoning-gym's own, as JSON, for its scorer) and `family`; for `pico` `level`.
        verifier: decides whether an answer is right.
        source: where the rows came from, with the revision, for the record.
    """

    name: str
    dataset: Dataset
    verifier: Verifier
    source: str


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_BY_NAME = {_plain(named.name): named for named in NAMED_SETS}


def is_task(name: str) -> bool:
    """Whether [`load_task`] knows the name; otherwise it names a custom data set."""
    return _plain(name) in _BY_NAME or name.startswith((gym.PREFIX, f"{PICO}:")) or name == PICO


def verifier_of(name: str) -> Verifier:
    """The verifier of a named task."""
    return "gym" if name.startswith(gym.PREFIX) else "pico" if name.split(":")[0] == PICO else "math"


def load_task(
    name: str,
    *,
    seed: int = 0,
    path: str | None = None,
    limit: int | None = None,
    split: Literal["train", "test"] = "test",
    answer_format: str | None = None,
) -> Task:
    """Loads a named set and checks its columns, types and number of rows.

    Args:
        name: see the table on top of this module.
        seed: of what is drawn: a sample of a set on the hub, the questions of reasoning-gym.
        path: file or folder in the hub's layout, used instead of the hub; for machines without a network.
        limit: the first N rows; for reasoning-gym the number of questions to generate, 500 if None.
        split: of reasoning-gym's questions one in eight, chosen by its hash, is in `test`, the others in `train`, so
            that the two are disjoint. A set on the hub has one split.
        answer_format: in place of the set's own; "" for none.

    Raises:
        DataError: no such set, level or split; not available; or not as expected in columns, types or number of rows.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{name}: limit={limit} must be at least 1.")
    if name.startswith(gym.PREFIX):
        size = gym.ROWS if limit is None else limit
        rows = gym.gym_rows(name, seed, size, split, gym.ANSWER if answer_format is None else answer_format)
        source = f"reasoning-gym {version('reasoning-gym')}, seed {seed}, {split}"
        return Task(name, Dataset.from_list(rows), verifier_of(name), source)
    if name == PICO or name.startswith(f"{PICO}:"):
        return _pico_task(name, limit)
    if _plain(name) not in _BY_NAME:
        known = [named.name for named in NAMED_SETS]
        near = difflib.get_close_matches(name.lower(), known, 1)
        raise DataError(
            f"Unknown task {name!r}{f'; did you mean {near[0]}?' if near else '.'} Known tasks: {', '.join(known)}, "
            "gym:FAMILY of reasoning-gym, and pico."
        )
    return load_set(_BY_NAME[_plain(name)], seed=seed, path=path, limit=limit, answer_format=answer_format)


# -- sets on the hub -------------------------------------------------------------------------------------------------


def load_set(
    named: NamedSet,
    *,
    seed: int = 0,
    path: str | None = None,
    limit: int | None = None,
    answer_format: str | None = None,
) -> Task:
    """Loads one row of the table; arguments and errors as in [`load_task`]."""
    source = f"{named.hub_id} at {named.revision}" if path is None else f"{path}, in place of {named.hub_id}"
    splits = load_splits(path or named.hub_id, revision=named.revision)
    if named.split not in splits:
        raise DataError(f"{named.name}: {source} has no split {named.split!r}; it has {', '.join(splits)}.")
    dataset = splits[named.split]
    missing = sorted(named.columns - set(dataset.column_names))
    if missing:
        raise DataError(
            f"{named.name}: {source} has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}. "
            "It is not the expected set."
        )
    if len(dataset) != named.rows:
        raise DataError(
            f"{named.name}: {source} has {len(dataset)} rows in {named.split!r}; expected {named.rows}. A "
            "download may be incomplete (delete it from the cache), or this is another version of the set."
        )
    columns = dataset.select_columns(sorted(named.columns))[:]
    rows = list(range(len(dataset)))
    if named.min_difficulty is not None:
        difficulty = columns["difficulty"]
        rows = [row for row in rows if difficulty[row] is not None and difficulty[row] >= named.min_difficulty]
    if named.sample is not None:
        if len(rows) < named.sample:
            raise DataError(f"{named.name}: only {len(rows)} rows of {source} qualify; {named.sample} are needed.")
        rng = random.Random(derive_seed(seed, "sample", named.name))
        areas = [_area(columns[named.balance][row]) if named.balance else "" for row in rows]
        rows = [rows[index] for index in balanced(areas, named.sample, rng)]
    rows = rows[:limit]
    ending = named.answer_format if answer_format is None else answer_format
    made = []
    for row in rows:
        question, solution = columns[named.prompt][row], columns[named.solution][row]
        for column, value in ((named.prompt, question), (named.solution, solution)):
            if not _fits(value, column == named.solution):
                raise DataError(
                    f"{named.name}: row {row} of {source}, column {column}: {type(value).__name__} where "
                    f"{'an answer' if column == named.solution else 'a text'} is expected."
                )
        content = f"{question.strip()}\n\n{ending}" if ending else question
        answer = ", ".join(solution) if isinstance(solution, list) else str(solution)
        made.append({"prompt": [{"role": "user", "content": content}], "solution": answer})
    return Task(named.name, Dataset.from_list(made), verifier_of(named.name), source)


def _fits(value: Any, answer: bool) -> bool:
    if isinstance(value, list):
        return answer and bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str) or (answer and isinstance(value, int) and not isinstance(value, bool))


def _area(topic: str | None) -> str:
    """`Algebra` of `Mathematics -> Algebra -> Abstract Algebra -> Group Theory`."""
    parts = [part.strip() for part in (topic or "").split("->")]
    return parts[1] if len(parts) > 1 else parts[0]


def balanced(labels: list[str], count: int, rng: random.Random) -> list[int]:
    """Draws `count` indices as evenly as possible over the labels; ascending.

    The authors' script balances over kinds of answers; the rows that they drew are not published.

    Raises:
        ValueError: fewer labels than `count`.
    """
    if len(labels) < count:
        raise ValueError(f"{count} cannot be drawn from {len(labels)}.")
    groups = defaultdict(list)
    for index, label in enumerate(labels):
        groups[label].append(index)
    for label in sorted(groups):
        rng.shuffle(groups[label])
    drawn: list[int] = []
    while len(drawn) < count:
        open_groups = [groups[label] for label in sorted(groups) if groups[label]]
        if count - len(drawn) < len(open_groups):
            open_groups = rng.sample(open_groups, count - len(drawn))
        drawn += [group.pop() for group in open_groups]
    return sorted(drawn)


# -- the embedded world ----------------------------------------------------------------------------------------------


@cache
def _pico_splits() -> dict[str, Dataset]:
    from p2o.pico import world

    return world.eval_dataset()


def _pico_task(name: str, limit: int | None) -> Task:
    splits = _pico_splits()
    wanted = name.removeprefix(PICO).removeprefix(":")
    if wanted and wanted not in splits:
        raise DataError(f"{name}: the embedded world has {', '.join(f'{PICO}:{split}' for split in splits)}.")
    rows = [row for split, dataset in splits.items() if split == wanted or not wanted for row in dataset]
    return Task(name, Dataset.from_list(rows[:limit]), verifier_of(name), "the embedded world")
