"""Which numbers of processes, rows and rollouts go together. Pure.

TRL checks them one at a time, for the processes that there are, and some of them only after the model is loaded. Here
all is said at once, with what would fit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

MOST_PROCESSES = 64
"""So many are tried for a message; a run may have more."""
SHOWN = 4
"""So many values of an option are suggested, those next to the present one."""


@dataclass(frozen=True)
class BatchSizes:
    """The numbers of a configuration that have to divide one another, by the names of its options.

    Args:
        processes: one a device.
        steps_per_generation: batches of a device that are generated at once; `gradient_accumulation_steps` where
            neither it nor `generation_batch_size`, rollouts of all processes, is given.
        evaluates: whether there is an evaluation.
        vllm_tensor_parallel_size: processes that share a colocated engine; 1 without one.
    """

    processes: int
    num_generations: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int = 1
    steps_per_generation: int | None = None
    generation_batch_size: int | None = None
    evaluates: bool = False
    per_device_eval_batch_size: int = 8
    num_generations_eval: int | None = None
    vllm_tensor_parallel_size: int = 1

    @classmethod
    def of(cls, args: Any, processes: int, *, evaluates: bool) -> "BatchSizes":
        """Those of a `GRPOConfig` that is being made: as they are given."""
        shared_engine = args.use_vllm and args.vllm_mode == "colocate"
        return cls(
            processes=processes,
            num_generations=args.num_generations,
            per_device_train_batch_size=args.per_device_train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            steps_per_generation=args.steps_per_generation,
            generation_batch_size=args.generation_batch_size,
            evaluates=evaluates,
            per_device_eval_batch_size=args.per_device_eval_batch_size,
            num_generations_eval=args.num_generations_eval,
            vllm_tensor_parallel_size=args.vllm_tensor_parallel_size if shared_engine else 1,
        )

    @classmethod
    def of_complete(cls, args: Any, *, evaluates: bool, batch_is_given: bool = False) -> "BatchSizes":
        """Those of a `GRPOConfig` as it is; it has filled in both ways to say how large a batch is.

        Args:
            batch_is_given: whether `generation_batch_size` is the one that was given.
        """
        sizes = cls.of(args, args.world_size, evaluates=evaluates)
        return (
            replace(sizes, steps_per_generation=None) if batch_is_given else replace(sizes, generation_batch_size=None)
        )

    @property
    def step(self) -> int:
        """Rollouts of one backward pass of all processes."""
        return self.per_device_train_batch_size * self.processes

    @property
    def batch(self) -> int:
        """Rollouts that are generated at once."""
        return self.generation_batch_size or self.step * (self.steps_per_generation or self.gradient_accumulation_steps)

    @property
    def eval_generations(self) -> int:
        return self.num_generations_eval or self.num_generations

    def faults(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """What does not go together, in words, each with the options that could be changed, or none."""
        if self.generation_batch_size and self.steps_per_generation:
            yield "generation_batch_size and steps_per_generation both say how large a batch is: give one of them", ()
            return
        size = "generation_batch_size" if self.generation_batch_size else self._steps
        options = ("num_generations", "per_device_train_batch_size", size, "processes")
        if self.num_generations < 2:
            yield f"num_generations={self.num_generations}: an advantage needs two rollouts of a question", options[:1]
        if self.batch % self.step:
            yield f"generation_batch_size={self.batch} is no multiple of {self._product}", options[1:]
        elif self.batch % self.num_generations:
            yield (
                f"all rollouts of a question belong to one batch, and num_generations={self.num_generations} does not "
                f"divide {self._batch}",
                options,
            )
        evaluated = self.per_device_eval_batch_size * self.processes
        if self.evaluates and evaluated % self.eval_generations:
            name = "num_generations" if self.num_generations_eval is None else "num_generations_eval"
            yield (
                f"in evaluation {name}={self.eval_generations} does not divide {evaluated} rollouts "
                f"(per_device_eval_batch_size={self.per_device_eval_batch_size} × {self._processes})",
                ("num_generations_eval", "per_device_eval_batch_size", "processes"),
            )
        if self.processes % self.vllm_tensor_parallel_size:
            yield (
                f"vllm_tensor_parallel_size={self.vllm_tensor_parallel_size} does not divide {self._processes}",
                ("vllm_tensor_parallel_size", "processes"),
            )

    def problem(self) -> str | None:
        """What does not go together and what would, in one message; None where everything does."""
        faults = list(self.faults())
        if not faults:
            return None
        options = dict.fromkeys(option for _, changed in faults for option in changed)
        fitting = {option: values for option in options if (values := self.fitting(option))}
        said = f"These numbers do not go together: {'; '.join(fault for fault, _ in faults)}."
        if not fitting:
            return said
        fits = ", or ".join(f"{option}={_either(values)}" for option, values in fitting.items())
        return f"{said} With all else as it is, this fits: {fits}."

    def fitting(self, option: str) -> list[int]:
        """Values of one option, the others as they are, with which everything goes together; those next to its own."""
        present = self._present(option)
        most = MOST_PROCESSES if option == "processes" else 2 * max(present, self.batch, self.eval_generations)
        values = range(2 if option.startswith("num_generations") else 1, most + 1)
        changed: Iterator[dict[str, Any]] = ({option: value} for value in values)
        fitting = (change[option] for change in changed if not any(replace(self, **change).faults()))
        return sorted(sorted(fitting, key=lambda value: (abs(value - present), value))[:SHOWN])

    def summary(self) -> str:
        """A batch in words, and what it is on other numbers of processes."""
        others = [replace(self, processes=number) for number in (1, 2, 4, 8) if number != self.processes]
        fit = [f"{o.batch // o.num_generations} on {o.processes}" for o in others if not any(o.faults())]
        unfit = [str(o.processes) for o in others if any(o.faults())]
        said = f"A batch is {self._batch} on {self._processes}: {self.batch // self.num_generations} questions"
        said = ", ".join([said, *fit])
        return said + (f"; it does not fit on {', '.join(unfit)}." if unfit else ".")

    def _present(self, option: str) -> int:
        if option == "num_generations_eval":
            return self.eval_generations
        if option == self._steps:
            return self.steps_per_generation or self.gradient_accumulation_steps
        return int(getattr(self, option))

    @property
    def _steps(self) -> str:
        return "steps_per_generation" if self.steps_per_generation else "gradient_accumulation_steps"

    @property
    def _processes(self) -> str:
        return f"{self.processes} process{'es' if self.processes > 1 else ''}"

    @property
    def _batch(self) -> str:
        return f"generation_batch_size={self.batch}" if self.generation_batch_size else self._product

    @property
    def _product(self) -> str:
        factors = f"per_device_train_batch_size={self.per_device_train_batch_size} × {self._processes}"
        if self.generation_batch_size:
            return f"{self.step} ({factors})"
        return f"{self.batch} rollouts ({factors} × {self._steps}={self._present(self._steps)})"


def _either(values: list[int]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last
