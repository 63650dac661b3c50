"""Dynamic sampling: groups without variance are replaced by freshly drawn ones (DAPO, arXiv 2503.14476, sec. 3.2)."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from jaxtyping import Bool
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from p2o.engines.processes import batches_of_all, local_slice
from p2o.policy_phase.policy_tokens import policy_tokens


@dataclass(frozen=True)
class Replacement:
    """One round: which groups are to be replaced, and by which questions.

    Args:
        groups: places of the groups without variance, in the global batch.
        questions: drawn for them; there may be more, where processes could not take equally many rows otherwise.
    """

    groups: list[int]
    questions: list[int]

    @classmethod
    def draw(
        cls, collapsed: Bool[Tensor, " groups"], dataset_size: int, k: int, processes: int, rng: random.Random
    ) -> "Replacement":
        groups = collapsed.nonzero().flatten().tolist()
        count = next(n for n in itertools.count(len(groups)) if n * k % processes == 0)
        return cls(groups, [rng.randrange(dataset_size) for _ in range(count)])

    def rows(self, k: int) -> list[int]:
        """The question of each row: k rows for each question."""
        return [question for question in self.questions for _ in range(k)]

    def apply(
        self,
        output: dict[str, Any],
        fresh: dict[str, Any],
        collapsed: Bool[Tensor, " fresh_groups"],
        accelerator: Accelerator,
        pad_token_id: int,
    ) -> list[int]:
        """Puts the fresh groups that have variance in the place of the old ones, wherever processes hold them.

        Returns the places of the groups that have variance now.
        """
        better = [new for new in range(len(self.groups)) if not collapsed[new]]
        k = len(fresh["advantages"]) * accelerator.num_processes // len(self.questions)
        source = [new * k + i for new in better for i in range(k)]
        target = [self.groups[new] * k + i for new in better for i in range(k)]
        mine, each = local_slice(accelerator, len(output["advantages"])), len(fresh["advantages"])
        for process, part in enumerate(batches_of_all(accelerator, fresh)):
            moved = [
                (to - mine.start, since - process * each)
                for to, since in zip(target, source, strict=True)
                if mine.start <= to < mine.stop and since // each == process
            ]
            to_rows, from_rows = [to for to, _ in moved], [since for _, since in moved]
            replace_rows(output, to_rows, part, from_rows, pad_token_id=pad_token_id)
        output["num_items_in_batch"] = accelerator.reduce(output["num_items_in_batch"], reduction="sum")
        return [self.groups[new] for new in better]


def replace_rows(
    output: dict[str, Any], target: Sequence[int], fresh: dict[str, Any], source: Sequence[int], *, pad_token_id: int
) -> None:
    """Puts rows `source` of one scored batch in the place of rows `target` of another, padding both to one width."""
    widths = [batch["completion_mask"].size(1) for batch in (output, fresh)]
    for name, old in output.items():
        if name == "num_items_in_batch":
            continue
        new = fresh[name]
        if old.dim() < new.dim():  # advantages: one a row where no template was in use, else one a token
            old = old.unsqueeze(1).repeat(1, widths[0])
        elif new.dim() < old.dim():
            new = new.unsqueeze(1).repeat(1, widths[1])
        if old.dim() == 2:
            value = pad_token_id if name.endswith("_ids") else 0
            side = "left" if name.startswith("prompt") else "right"
            rows = pad_sequence([*old, *new], batch_first=True, padding_value=value, padding_side=side)
            old, new = rows[: len(old)], rows[len(old) :]
        output[name] = old.clone()
        output[name][list(target)] = new[list(source)]
    output["num_items_in_batch"] = policy_tokens(output).sum()
