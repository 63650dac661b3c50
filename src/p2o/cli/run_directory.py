"""Writes the self-describing directory of a run."""

import json
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from p2o.callbacks import P2OCallback, SampledRollout
from p2o.completions import conversation_text
from p2o.files import append_whole, write_whole
from p2o.prompt_phase.hard_samples import Outcome
from p2o.prompt_phase.types import EvolutionResult
from p2o.state import P2OState, write_json
from p2o.templates import Prompt, question_text

EXPLANATION = """# A run of P²O

| file | what it is |
|---|---|
| `config.yaml` | the settings; `p2o train --config config.yaml` repeats the run |
| `versions.json` | versions of Python and the packages |
| `metrics.jsonl` | every log of training and evaluation, one JSON object per line, as trackers get it |
| `samples.jsonl` | some rollouts of every epoch: question, template, completion, reward |
| `answers-before.jsonl`, `answers-after.jsonl` | one bare answer to each question of the evaluations before and after |
| `outcomes/epoch-N.json` | successes and scored rollouts of every row that was mined in epoch N; which had templates |
| `hard_sets/epoch-N.json` | training rows that were hard before epoch N |
| `templates/epoch-N.json` | the evolution before epoch N: all candidates with parents and scores, and those selected |
| `evolution/epoch-N/journal.jsonl` | its rollouts and reflections, from which an interrupted prompt phase resumes |
| `checkpoint-N/` | the complete state after step N |
| `model/` | the trained model and its tokenizer, for `AutoModelForCausalLM.from_pretrained`, with a model card |
| `README.md` | the model card; TRL's, with what P²O did |
| `summary.json` | the outcome |
| `report.html` | all of it as one self-contained page |

To continue after an interruption: `p2o train --resume --output_dir {path}`
"""

SAMPLES_PER_EPOCH = 8


class RunDirectory(P2OCallback):
    """Records a run. On resume, lines of steps that will run again are removed first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = time.monotonic()
        self.seconds = 0.0  # what earlier sessions of this run took, lost work excluded
        self._sampled_epoch = -1
        self._answers: tuple[str, int] | None = None

    def recorded(self, name: str) -> Any:
        """What an earlier session of this run wrote, or None."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    @contextmanager
    def answers(self, when: str, samples: int) -> Iterator[None]:
        """Inside the `with` block, writes one in `samples` of the evaluation rollouts to `answers-<when>.jsonl`."""
        (self.path / f"answers-{when}.jsonl").unlink(missing_ok=True)
        self._answers = (f"answers-{when}.jsonl", samples)
        try:
            yield
        finally:
            self._answers = None

    def on_evaluation_rollouts(
        self, args: Any, state: Any, control: Any, *, rollouts: Sequence[SampledRollout], dataset: str, **kwargs: Any
    ) -> None:
        if self._answers is not None and state.is_world_process_zero:
            name, samples = self._answers
            for prompt, _, completion, reward in rollouts[::samples]:
                self.append(name, {"dataset": dataset, **_rollout(prompt, completion, reward)})

    def create(self, config: dict[str, Any]) -> None:
        """
        Raises:
            OSError: the directory cannot be created or written to.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=True, allow_unicode=True))
        write_whole(self.path / "RUN.md", EXPLANATION.format(path=self.path))
        packages = ("p2o-rl", "torch", "transformers", "trl", "gepa", "datasets", "accelerate", "reasoning-gym")
        write_json(
            self.path / "versions.json",
            {"python": platform.python_version(), **{name: version(name) for name in packages}},
        )

    def rewind(self, step: int) -> None:
        """Removes the records after `step`."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.path / name
            if path.exists():
                kept = []
                for line in path.read_text().splitlines():
                    try:
                        record = json.loads(line)
                    except json.JSONDecodeError:
                        continue  # a partial last line
                    if record["step"] <= step:
                        kept.append(line + "\n")
                        self.seconds = max(self.seconds, record.get("seconds", 0.0))
                        self._sampled_epoch = max(self._sampled_epoch, record.get("sampled_epoch", -1))
                write_whole(path, "".join(kept))

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Adds a line, whole or not at all.

        Raises:
            OSError: it cannot be written; `filename` says where.
        """
        append_whole(self.path / name, json.dumps(record, default=str) + "\n")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            seconds = round(time.monotonic() - self.started, 2)
            self.append("metrics.jsonl", {"step": state.global_step, "seconds": seconds, **logs})

    def on_rollouts(
        self, args: Any, state: Any, control: Any, *, p2o: P2OState, rollouts: Sequence[SampledRollout], **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and p2o.epoch != self._sampled_epoch:
            self._sampled_epoch = p2o.epoch
            if p2o.last_outcomes:
                self.write_outcomes(p2o.epoch - 1, p2o.last_outcomes, p2o.templated_outcomes)
            stride = max(len(rollouts) // SAMPLES_PER_EPOCH, 1)
            for prompt, template, completion, reward in rollouts[::stride][:SAMPLES_PER_EPOCH]:
                record = {"template": template, **_rollout(prompt, completion, reward)}
                # The current step: it runs again when the run resumes from the previous one.
                self.append("samples.jsonl", {"step": state.global_step + 1, "sampled_epoch": p2o.epoch, **record})

    def write_outcomes(self, epoch: int, outcomes: Mapping[int, Outcome], templated: Collection[int]) -> None:
        """Records what mining found in an epoch.

        Args:
            templated: questions whose rollouts, or some of them, were under templates.
        """
        record = {
            "epoch": epoch,
            "outcomes": {str(question): [found.successes, found.rollouts] for question, found in outcomes.items()},
            "templated": sorted(outcomes.keys() & set(templated)),
        }
        (self.path / "outcomes").mkdir(exist_ok=True)
        write_json(self.path / "outcomes" / f"epoch-{epoch:03d}.json", record)

    def on_prompt_phase_end(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        p2o: P2OState,
        result: EvolutionResult | None,
        reason: str | None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        name = f"epoch-{p2o.epoch:03d}.json"
        for folder in ("hard_sets", "templates"):
            (self.path / folder).mkdir(exist_ok=True)
        write_json(self.path / "hard_sets" / name, {"epoch": p2o.epoch, "rows": p2o.hard_set})
        evolution = {"skipped": reason} if result is None else result.to_dict()
        selected = [template.to_dict() for template in p2o.templates]
        write_json(self.path / "templates" / name, {"epoch": p2o.epoch, "selected": selected, "evolution": evolution})


def _rollout(prompt: Prompt, completion: Any, reward: float) -> dict[str, Any]:
    """A rollout as recorded; the reward of an unscored one (NaN) is null."""
    text = completion if isinstance(completion, str) else conversation_text(completion)
    return {"question": question_text(prompt), "completion": text, "reward": None if math.isnan(reward) else reward}


def check_writable(path: Path, needed_bytes: int, *, make: bool = True) -> str | None:
    """Error message if a run cannot be written to `path`, else None.

    With `make=False` the directory is not created; its nearest existing parent is checked.
    """
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        # anonymous file: several processes check at once
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return f"Cannot write to {path}: {error.strerror}. Choose another --output_dir."
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        return (
            f"{path} has {free / 1e9:.1f} GB free; two checkpoints and the final model need about "
            f"{needed_bytes / 1e9:.1f} GB. Make room or choose another --output_dir."
        )
    return None
