"""A prompt phase that is interrupted, or whose reflection model fails."""

import json
import random

import pytest

from land import CONFIG, QUESTIONS, Land, run
from p2o.ledger import Ledger
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.journal import Journal
from p2o.prompt_phase.types import Reflection, ReflectionError


@pytest.mark.parametrize("when", [*range(0, 24, 3), 1, 2])
def test_an_interrupted_phase_ends_as_if_it_had_not_been(tmp_path, when):
    straight = run(Land(), tmp_path / "a")
    with pytest.raises(RuntimeError, match="killed"):
        run(Land(fail_at=when), tmp_path / "b")
    resumed = Land()
    result = run(resumed, tmp_path / "b")
    assert result == straight
    # What was done is not done again, and the rest draws from the same streams.
    whole = Land()
    run(whole, tmp_path / "c")
    assert resumed.calls == whole.calls[when:]


def test_a_torn_journal_line_is_done_again(tmp_path):
    straight = run(Land(), tmp_path)
    journal = tmp_path / "journal.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content[: len(content) * 2 // 3])
    assert run(Land(), tmp_path) == straight
    assert journal.read_bytes() == content


def test_a_journal_of_another_phase_is_not_used(tmp_path):
    run(Land(), tmp_path)
    land, fresh = Land(), Land()
    run(land, tmp_path, seed=1)
    run(fresh, tmp_path / "fresh", seed=1)
    assert land.calls == fresh.calls
    assert (tmp_path / "journal.jsonl").read_bytes() == (tmp_path / "fresh" / "journal.jsonl").read_bytes()


def test_a_damaged_journal_goes_on_from_the_damage(tmp_path, caplog):
    straight = run(Land(), tmp_path)
    journal = tmp_path / "journal.jsonl"
    content = journal.read_bytes()
    lines = content.split(b"\n")
    lines[len(lines) // 2] = b'{"kind": \x00'
    journal.write_bytes(b"\n".join(lines))
    assert run(Land(), tmp_path) == straight
    assert journal.read_bytes() == content
    assert f"damaged in line {len(lines) // 2 + 1}" in caplog.text


def test_a_resumed_phase_never_holds_less_on_disk_than_before(tmp_path):
    journal = tmp_path / "journal.jsonl"
    run(Land(), tmp_path)
    content = journal.read_bytes()
    seen = []
    run(Land(), tmp_path, on_progress=lambda progress: seen.append(journal.read_bytes()))
    assert set(seen) == {content}


def test_a_departing_journal_is_cut_where_it_departs(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, {}) as journal:
        assert journal.call("dev", [1], lambda n: "one") == "one"
        assert journal.call("dev", [2], lambda n: "two") == "two"
        journal.lose(["nothing"])
        assert journal.call("dev", [3], lambda n: "three") == "three"
    with Journal(path, {}) as journal:
        assert journal.call("dev", [1], lambda n: "again") == "one"
        assert journal.call("dev", [9], lambda n: f"nine at {n}") == "nine at 1"
    results = [json.loads(line).get("result") for line in path.read_text().splitlines()]
    assert results == [None, ["nothing"], "one", "nine at 1"]
    with Journal(path, {}) as journal:
        assert [record["result"] for record in journal.lost] == [["nothing"]]


def test_a_reflection_model_that_raises_ends_the_phase_with_its_own_error(tmp_path):
    def reflect(prompts, *, seed):
        raise ConnectionError("the reflection server is gone")

    with pytest.raises(ConnectionError, match="is gone"):
        evolve(QUESTIONS, Land().rollout, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)


class Moody(Land):
    """Its reflection model fails now and then, by its seed, and not at all from batch `gone_at` on."""

    def __init__(self, gone_at=None, **options):
        super().__init__(**options)
        self.gone_at, self.batches, self.failures = gone_at, 0, 0

    def reflect(self, prompts, *, seed):
        answers = super().reflect(prompts, seed=seed)
        self.batches += 1
        if self.batches - 1 == self.gone_at:
            raise ReflectionError("the server is gone", [Reflection("", 7, 0, 0.5, "gone")] * len(prompts))
        failed = [random.Random(seed + i).random() < 0.3 for i in range(len(prompts))]
        self.failures += sum(failed)
        return [Reflection("", 1, 0, 0.25, "no luck") if f else a for f, a in zip(failed, answers, strict=True)]


@pytest.mark.parametrize("gone_at", [0, 3])
def test_when_nobody_reflects_any_more_the_phase_ends_with_what_it_has(tmp_path, caplog, gone_at):
    land, spent = Moody(gone_at), Ledger()
    result = run(land, tmp_path, spent=spent)
    assert result.ended_early == "the server is gone"
    assert "before epoch 1 ends early" in caplog.text and "the server is gone" in caplog.text
    whole = run(Moody(), tmp_path / "whole")
    assert result.candidates == whole.candidates[: len(result.candidates)]
    assert len(result.candidates) >= 1 and result.metric_calls < whole.metric_calls
    assert land.calls[-1][0] == "reflection", "no rollout is wasted after it"
    asked = [size for kind, size, _ in land.calls if kind == "reflection"]
    failed = land.failures + asked[-1]
    assert result.rejections["failed"] == result.events["reflection_failed"] == failed
    assert result.reflections == sum(asked) - failed
    # What failed has cost something, too.
    assert result.spent is spent
    assert spent.reflection_cost == 0.5 * asked[-1] + 0.25 * land.failures
    assert spent.prompt_tokens["reflection"] == 7 * asked[-1] + land.failures + 100 * result.reflections


def test_a_phase_that_ended_early_goes_on_where_reflection_failed(tmp_path):
    straight = Moody()
    whole = run(straight, tmp_path / "whole")
    gone, again = Moody(gone_at=2), Moody()
    assert run(gone, tmp_path / "b").ended_early
    _, lost, _ = gone.calls[-1]
    resumed = run(again, tmp_path / "b")
    assert resumed.candidates == whole.candidates and resumed.metric_calls == whole.metric_calls
    # What the batch cost in vain stays counted, beside what it cost in the end.
    assert resumed.spent.reflection_cost == whole.spent.reflection_cost + 0.5 * lost
    assert resumed.spent.prompt_tokens["reflection"] == whole.spent.prompt_tokens["reflection"] + 7 * lost
    assert resumed.events["reflection_failed"] == whole.events["reflection_failed"] + lost
    assert resumed.ended_early is None
    # The batch that nobody answered is the first that is asked for.
    assert again.calls == straight.calls[-len(again.calls) :]
    assert again.calls[0][0] == "reflection" and again.batches == straight.batches - 2


@pytest.mark.parametrize("when", [4, 9, 17])
def test_failed_reflections_are_the_same_in_an_interrupted_phase(tmp_path, when):
    whole = run(Moody(), tmp_path / "whole")
    assert whole.events["reflection_failed"] > 1
    with pytest.raises(RuntimeError, match="killed"):
        run(Moody(fail_at=when), tmp_path / "b")
    assert run(Moody(), tmp_path / "b") == whole


def test_unknown_usage_is_counted(tmp_path):
    def reflect(prompts, *, seed):
        return [Reflection("```\nUse A.\n```", None, None) for _ in prompts]

    result = evolve(QUESTIONS, Land().rollout, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)
    assert result.events == {"reflection_usage_unknown": result.reflections}
    assert result.spent.prompt_tokens["reflection"] == 0
