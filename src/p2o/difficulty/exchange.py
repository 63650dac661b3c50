"""Hard questions give some of their places in an epoch to their backward rewrites.

The rewrites stand behind the questions in the training set, each with the row of its question. An epoch has as many
places as there are questions; of those that are in the hard set at its beginning, and have rewrites, a share is left to
one rewrite each, drawn anew for every epoch. So rollouts are neither added nor saved, and a hard question is asked for
itself in other epochs.
"""

import json
import logging
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from p2o.config import P2OConfig
from p2o.difficulty.rewrites import WORDINGS
from p2o.difficulty.rewriting import rewritten
from p2o.evaluation.results import question_key
from p2o.seeding import derive_seed

logger = logging.getLogger(__name__)

OF_ROW = "p2o_rewrite_of"
"""Column of a training set with rewrites: the row of the question that it was made of; -1 of a question itself."""


def with_rewrites(dataset: Dataset, args: P2OConfig) -> Dataset:
    """The training set with the rewrites of its questions behind them, where `args.rewrite_share` asks for them.

    Those of the file `args.rewrites`, or, without one, those that a solver verifies.

    Raises:
        ValueError: a file that is none of `p2o rewrite`, or no question has a rewrite.
    """
    if not args.rewrite_share:
        if args.rewrites and args.process_index == 0:
            logger.warning("rewrites=%s is not used, since rewrite_share is 0.", args.rewrites)
        return dataset
    if OF_ROW in dataset.column_names:
        raise ValueError(f"train_dataset has a column {OF_ROW}, the name of one that is added. Rename or remove it.")
    found = _of_file(dataset, args) if args.rewrites else _of_solvers(dataset, args)
    if args.process_index == 0:
        questions = len({of for of, _ in found})
        logger.warning(
            "rewrite_share=%g: %d of %d questions have rewrites.", args.rewrite_share, questions, len(dataset)
        )
    columns = {name: [row.get(name) for _, row in found] for name in dataset.column_names}
    try:
        rewrites = Dataset.from_dict(columns, features=dataset.features)
    except (ValueError, TypeError) as error:  # pyarrow's are kinds of these
        raise ValueError(
            f"The rewrites do not fit the columns of train_dataset ({error}). Write them again from these questions."
        ) from None
    rewrites = rewrites.add_column(OF_ROW, [of for of, _ in found])
    return concatenate_datasets([dataset.add_column(OF_ROW, [-1] * len(dataset)), rewrites])


def _of_solvers(dataset: Dataset, args: P2OConfig) -> list[tuple[int, dict[str, Any]]]:
    """Rewrites that a solver verified, each with the row of its question."""
    found = []
    for place, row in enumerate(_rows(dataset, args)):
        made, _ = rewritten(row, place, endings=(), wordings=len(WORDINGS), repeated=False)
        found += [(place, _named(one.row, args)) for one in made if one.verified_by]
    if not found:
        raise ValueError(
            "rewrite_share: no solver can verify a rewrite of these questions. Write some with `p2o rewrite --dataset "
            "… --model …`, and name the file with rewrites."
        )
    return found


def _of_file(dataset: Dataset, args: P2OConfig) -> list[tuple[int, dict[str, Any]]]:
    """Rewrites of the file `args.rewrites` whose question is in the data set, each with its row."""
    by_key = defaultdict(list)
    for row in _read(str(args.rewrites)):
        by_key[row["rewrite_of_key"]].append(row)
    keys = map(question_key, _rows(dataset, args))
    found = [(place, _named(row, args)) for place, key in enumerate(keys) for row in by_key.get(key, ())]
    if not found:
        raise ValueError(
            f"rewrites={args.rewrites}: none of the {len(dataset)} training questions has a rewrite in it. Prompt and "
            "gold answer have to be those that `p2o rewrite` read: write it again from what you train on, with "
            "training's own options of the data (--system_prompt, --answer_format, …, or --config)."
        )
    return found


def _read(path: str) -> list[dict[str, Any]]:
    """
    Raises:
        ValueError: a file that cannot be read, or is none of `p2o rewrite`; the line is named.
    """
    how = "`p2o rewrite --dataset …` writes one, rewrites.jsonl in its output directory."
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"Cannot read rewrites={path}: {reason}. {how}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not {"prompt", "solution", "rewrite_of_key"} <= row.keys():
                raise ValueError("it has no prompt, solution and rewrite_of_key")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"rewrites={path}, line {number}: no rewrite ({error}). {how}") from None
        rows.append(row)
    return rows


def _rows(dataset: Dataset, args: P2OConfig) -> list[dict[str, Any]]:
    """The questions with their gold answers as `solution`, whatever their column is called."""
    return [{**row, "solution": row.get(args.solution_column)} for row in dataset]


def _named(row: Mapping[str, Any], args: P2OConfig) -> dict[str, Any]:
    """The row with its gold answer in the column that training reads."""
    return {**row, args.solution_column: row["solution"]}


# -- which places are exchanged ----------------------------------------------------------------------------------------


def questions_alone(dataset: Any) -> Any:
    """The data set without rewrites."""
    if OF_ROW not in getattr(dataset, "column_names", ()):
        return dataset
    return dataset.select(range(list(dataset[OF_ROW]).count(-1)))


def rewrites_by_question(dataset: Any) -> dict[int, list[int]]:
    """Rows of the rewrites of each question that has any."""
    found = defaultdict(list)
    for row, of in enumerate(dataset[OF_ROW] if OF_ROW in getattr(dataset, "column_names", ()) else ()):
        if of >= 0:
            found[of].append(row)
    return dict(found)


def draw_exchange(
    hard: Sequence[int], rewrites: Mapping[int, Sequence[int]], share: float, *seed: int
) -> dict[int, int]:
    """Questions whose place in an epoch a rewrite takes, each with that rewrite.

    Args:
        hard: the hard set.
        rewrites: by question.
        share: of the hard questions with rewrites, rounded up, in [0, 1).
        seed: what the draw depends on.
    """
    able = [question for question in hard if question in rewrites]
    rng = random.Random(derive_seed(*seed, "rewrites"))
    chosen = sorted(rng.sample(able, math.ceil(len(able) * share)))
    return {question: rng.choice(rewrites[question]) for question in chosen}
