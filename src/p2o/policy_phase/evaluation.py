"""An evaluation of the policy during training: which rows count, from which random stream each batch is sampled, and
what is said of a set as a whole.

TRL averages its metrics over batches, and a batch of several processes is filled up with repeated rows. Here repeats
count for nothing, and every metric is one of the whole set. So they do not depend on the number of processes; nor do
the completions, where a process's batch has the same size.
"""

import math
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.trainer_callback import CallbackHandler
from trl.trainer.utils import is_async_callable, nanstd

from p2o.config import P2OConfig
from p2o.engines.mismatch import Spread, spreads, summaries
from p2o.engines.processes import all_reduce_sum
from p2o.policy_phase.policy_tokens import policy_tokens
from p2o.policy_phase.rewards import Rewards
from p2o.policy_phase.rollouts import Completions
from p2o.seeding import derive_seed, random_stream

LOSSES_BY_TOKEN = ("bnpo", "dapo", "cispo", "vespo")
"""Those whose loss is a mean over the tokens of a batch; of the others it is one over its rows."""
BY_TOKEN = ("entropy", "kl", "clip_ratio/", "cispo_clip_ratio", "vespo/")
"""TRL's metrics that are means over tokens."""


@dataclass(frozen=True)
class EvaluationBatch:
    """One process's part of a batch of an evaluation.

    Args:
        number: of the part among those of all processes, in the order of the set.
        rows: of this process, repeats included.
        real: of them, in front, that are no repeats.
        all_real: of all processes' rows, in front, that are no repeats.
        all_rows: of all processes.
        run_seed: of the run.
    """

    number: int
    rows: int
    real: int
    all_real: int
    all_rows: int
    run_seed: int

    @property
    def repeats(self) -> int:
        """Of this process's rows."""
        return self.rows - self.real

    @property
    def stream(self) -> AbstractContextManager[None]:
        """The random stream that it is sampled from, inside the evaluation's own, with which the first one begins."""
        return random_stream(derive_seed(self.run_seed, "evaluation", self.number)) if self.number else nullcontext()


@dataclass
class EvaluationSet:
    """What is measured in the evaluation of one set, by rows and tokens of the whole set.

    Args:
        args, accelerator: of the run.
        prefix: of its metrics: "eval", and its name behind it where there are several sets.
        loop: has the dataloader of the evaluation under way.
        logged: whether its metrics are in the log. What is logged between an evaluation and the next step, such as the
            run time, is not of it.
    """

    args: P2OConfig
    accelerator: Accelerator
    prefix: str
    loop: CallbackHandler
    logged: bool = False
    batches: list[EvaluationBatch] = field(default_factory=list)
    rewards: list[Rewards] = field(default_factory=list)
    completions: list[Float[Tensor, "rollouts 2"]] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    by_functions: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    spreads: defaultdict[str, Spread] = field(default_factory=lambda: defaultdict(Spread))

    @property
    def name(self) -> str:
        """ "" where there is only one set."""
        return self.prefix.removeprefix("eval").lstrip("_")

    # -- batch by batch ------------------------------------------------------------------------------------------------

    def next_batch(self, rows: int) -> EvaluationBatch:
        """The next one, of which this process has so many `rows`. Repeats are behind all others."""
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        seen, number = sum(batch.all_real for batch in self.batches), len(self.batches) * processes + index
        total = rows_of(self.loop.eval_dataloader)  # every row counts where that is unknown, as of a stream
        left = rows * processes if total is None else max(total - seen, 0)
        real = min(max(left - index * rows, 0), rows)
        everyones = min(left, rows * processes), rows * processes
        self.batches.append(EvaluationBatch(number, rows, real, *everyones, self.args.seed))
        return self.batches[-1]

    def add_completions(self, generated: tuple[Any, ...], ends: Sequence[int | None]) -> tuple[Any, ...]:
        """Completions of this process's rows; returns what was `generated`.

        Args:
            generated: by TRL: prompts, completions, and which of their tokens the model has written, or None; and more.
            ends: tokens with which a completion ends that is not cut off.
        """
        _, ids, mask, *_ = generated
        rows = [[len(c) if mask is None else sum(mask[i]), c[-1] not in ends] for i, c in enumerate(ids)]
        everyone: Tensor = self.accelerator.gather(torch.tensor(rows, device=self.accelerator.device).float())
        self.completions.append(everyone[: self.batches[-1].all_real])
        return generated

    def add(self, rewards: Rewards, output: dict[str, Tensor], table: Mapping[str, Any]) -> Rewards:
        """The rewards of all processes' rows; returns those without repeats.

        Repeats are masked in the `output`, and taken out of TRL's `table` of completions.
        """
        batch = self.batches[-1]
        drop_last(table, batch.all_rows - batch.all_real)
        present = rewards.of(slice(0, batch.all_real))
        self.rewards.append(present)
        mask = output["completion_mask"]
        mask[batch.real :] = 0
        loss_mask = policy_tokens(output)
        (tokens,) = all_reduce_sum(self.accelerator, int(loss_mask.sum()))
        self.tokens.append(tokens)
        output["num_items_in_batch"] = torch.full_like(output["num_items_in_batch"], int(tokens))
        if "importance_sampling_ratio" in output:
            self._add_mismatch(output, loss_mask.bool())
        return present

    def judging(
        self,
        judge: Callable[[], Tensor],
        functions: list[Any],
        metrics: dict[str, list[float]],
        columns: Mapping[str, list[Any]],
    ) -> Callable[[], Tensor]:
        """`judge`, whose reward functions are not given repeats, which have NaN for a reward.

        Args:
            judge: returns the rewards of all processes' rows, by these functions.
            metrics, columns: what they log of this process's rows. Metrics are taken, and columns filled up.
        """
        batch = self.batches[-1]

        def judge_real_rows() -> Tensor:
            original = list(functions)
            if batch.repeats:
                functions[:] = [of_real_rows(function, batch.real, batch.rows) for function in original]
            try:
                by_function = judge()
            finally:
                functions[:] = original
            by_function[batch.all_real :] = torch.nan
            for name, values in metrics.items():
                total, weight = self.by_functions[name]
                self.by_functions[name] = [total + sum(values) * batch.real, weight + len(values) * batch.real]
            metrics.clear()
            for column in columns.values():
                column.extend([None] * (batch.rows - len(column)))
            return by_function

        return judge_real_rows

    def add_loss(self, loss: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The loss of this process's part of the batch, in which masked rows are zeros; returns it."""
        batch = self.batches[-1]
        if self.args.loss_type in LOSSES_BY_TOKEN:
            tokens = float(policy_tokens(inputs).sum())
            everyones = self.tokens[-1] / self.accelerator.num_processes
            total, weight = float(loss) * (tokens if self.args.loss_type == "bnpo" else everyones), tokens
        else:
            total, weight = float(loss) * batch.rows, float(batch.real)
        self.loss = [self.loss[0] + total, self.loss[1] + weight]
        return loss

    def _add_mismatch(self, output: dict[str, Tensor], mask: Bool[Tensor, "rows completion"]) -> None:
        trained, sampled = output["old_per_token_logps"], output["sampling_per_token_logps"]
        is_real = torch.arange(len(mask), device=mask.device) < self.batches[-1].real
        for name, spread in spreads(trained, sampled, output["importance_sampling_ratio"], mask, is_real).items():
            self.spreads[name].merge(spread)

    # -- of the whole set ----------------------------------------------------------------------------------------------

    def accuracy(self) -> float:
        """Share of successes in [0, 1]; NaN where no rollout was scored."""
        scored = sum(int((~rewards.unscored).sum()) for rewards in self.rewards)
        return sum(int(rewards.successes.sum()) for rewards in self.rewards) / scored if scored else math.nan

    def metrics(
        self, trl: Mapping[str, list[float]], logs: dict[str, float], reward_names: Sequence[str]
    ) -> defaultdict[str, list[float]]:
        """TRL's metrics of an evaluation, which has one of each batch, as those of the whole set, with its accuracy.

        They have the name of the set in front: TRL names them alike for every set of a dictionary, and the last one
        would win. The loss in the `logs` becomes that of the whole set, too.
        """
        found = {name: list(values) for name, values in trl.items()}
        if not self.logged and self.batches:
            self.logged = True
            found = {name: self._of_whole_set(name, values) for name, values in found.items()}
            said = [*self._of_completions().items(), *self._of_rewards(reward_names).items()]
            found |= {name: [value] for name, value in said if name in found}
            found |= {name: [value] for name, value in (self._of_functions() | self._of_mismatch()).items()}
            found["accuracy"] = [self.accuracy()]
            total, weight = all_reduce_sum(self.accelerator, *self.loss)
            logs |= {f"{self.prefix}_loss": total / weight} if weight else {}
        prefix = f"{self.name}_" if self.name else ""
        return defaultdict(list, {prefix + name: values for name, values in found.items()})

    def _of_whole_set(self, name: str, values: list[float]) -> list[float]:
        """One value from those of all batches, weighted by what each is a mean of."""
        if len(values) != len(self.batches) or len(values) == 1:
            return values
        parts = re.split(r"[/_]", name)
        present = [value for value in values if not math.isnan(value)]
        if present and ("min" in parts or "max" in parts):
            return [(min if "min" in parts else max)(present)]
        weights = self.tokens if name.startswith(BY_TOKEN) else [float(batch.all_real) for batch in self.batches]
        pairs = [(v, w) for v, w in zip(values, weights, strict=True) if not math.isnan(v)]
        total = sum(weight for _, weight in pairs)
        return [sum(value * weight for value, weight in pairs) / total] if total else values

    def _of_completions(self) -> dict[str, float]:
        lengths, cut_off = torch.cat(self.completions).unbind(dim=1)
        ended = lengths[cut_off == 0]
        kinds = {"": lengths, "terminated_": ended if len(ended) else torch.zeros(1)}
        summaries: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "min": torch.min, "max": torch.max}
        found = {"completions/clipped_ratio": cut_off.mean().item()}
        for kind, values in kinds.items():
            found |= {f"completions/{name}_{kind}length": of(values).item() for name, of in summaries.items()}
        return found

    def _of_rewards(self, names: Sequence[str]) -> dict[str, float]:
        by_function = torch.cat([rewards.by_function for rewards in self.rewards])
        total = torch.cat([rewards.total for rewards in self.rewards])
        found = {"reward": torch.nanmean(total).item(), "reward_std": nanstd(total).item()}
        for name, column in zip(names, by_function.unbind(dim=1), strict=True):
            found[f"rewards/{name}/mean"] = torch.nanmean(column).item()
            found[f"rewards/{name}/std"] = nanstd(column).item()
        generations = self.args.num_generations_eval or self.args.num_generations
        if self.args.scale_rewards != "batch" and len(total) % generations == 0:
            groups = total.view(-1, generations)
            deviation = nanstd(groups, dim=1) if generations > 1 else torch.zeros(len(groups))
            is_zero = torch.isclose(deviation, torch.zeros_like(deviation))
            found["frac_reward_zero_std"] = is_zero.repeat_interleave(generations).float().mean().item()
        return found

    def _of_functions(self) -> dict[str, float]:
        found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for mine in gather_object([dict(self.by_functions)]):
            for name, (total, weight) in mine.items():
                found[name] = [found[name][0] + total, found[name][1] + weight]
        return {name: total / weight for name, (total, weight) in found.items() if weight}

    def _of_mismatch(self) -> dict[str, float]:
        found: dict[str, Spread] = defaultdict(Spread)
        for mine in gather_object([dict(self.spreads)]):
            for name, spread in mine.items():
                found[name].merge(spread)
        return {name: values[0] for name, values in summaries(found).items() if values}


# -- what of a batch is generated and judged ---------------------------------------------------------------------------


@contextmanager
def evaluation_batch(
    evaluation: EvaluationSet | None, accelerator: Accelerator, rows: int, table: dict[str, Any]
) -> Iterator[None]:
    """Begins the next batch, of which this process has so many `rows`. Inside is its random stream, and TRL's `table`
    of completions keeps all that watchers are told of the batch: by itself it has room for a generation batch."""
    room = {name: table[name].maxlen for name in ("prompt", "completion")}
    for name, most in room.items():
        table[name] = deque(table[name], max(most, rows * accelerator.num_processes))
    try:
        with nullcontext() if evaluation is None else evaluation.next_batch(rows).stream:
            yield
    finally:
        for name, most in room.items():
            table[name] = deque(table[name], most)


def rows_of(dataloader: Any) -> int | None:
    """How many rows a dataloader has over all processes, before it fills up batches; None of a stream."""
    sampler: Any = getattr(dataloader, "batch_sampler", None)
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    try:
        return len(sampler.sampler)
    except (AttributeError, TypeError):
        return None


def completing_real_rows(
    complete: Callable[[list[list[int]]], Completions], contexts: list[list[int]], repeats: int
) -> Completions:
    """Completions of the contexts but the last ones, `repeats` of them, in whose places others are repeated.

    At least one is generated: sharded weights are gathered by all processes or by none.
    """
    ids, logprobs = complete(contexts[: max(len(contexts) - repeats, 1)])
    missing = len(contexts) - len(ids)
    return [*ids, *[ids[-1]] * missing], None if logprobs is None else [*logprobs, *[logprobs[-1]] * missing]


def of_real_rows(function: Any, real: int, rows: int) -> Any:
    """A reward function that is given the first, `real` ones of the rows, and says 0 of the others."""
    if isinstance(function, nn.Module):
        return function

    def cut(columns: dict[str, Any]) -> dict[str, Any]:
        return {n: v[:real] if isinstance(v, list) and len(v) == rows else v for n, v in columns.items()}

    def whole(rewards: Any) -> Any:
        return [*rewards, *[0.0] * (rows - real)]

    if is_async_callable(function):

        async def judge_later(**columns: Any) -> Any:
            return whole(await function(**cut(columns)) if real else [])

        return judge_later

    @wraps(function, updated=())
    def judge(**columns: Any) -> Any:
        return whole(function(**cut(columns)) if real else [])

    return judge


def drop_last(logs: Mapping[str, Any], count: int) -> None:
    """Takes the last rows out of TRL's table of completions."""
    for column in logs.values():
        if isinstance(column, Mapping):
            drop_last(column, count)
        else:
            for _ in range(min(count, len(column))):
                column.pop()
