"""The documents that the model with tools learns from: questions with and without instructions, and reflections.

As in the corpus of the embedded world the skill depends on several choices, each of them a probability: whether to call
a tool at all, which one, and after every result whether to call again or to guess the answer. Under instructions the
probabilities are the same ones; bare, the right tool and another call are rarer. What has to be learnt is to copy
numbers into calls and results into answers: no arithmetic but the products of one-digit numbers.

Few bare documents call the calculator, so the model would take from instructed ones what follows a call: nearly always
the next call. Other bare documents therefore begin with given calls, and only what follows them is trained on.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

from p2o.completions import conversation_text
from p2o.holdout import is_held_out
from p2o.pico.corpus import ChoiceProbabilities, Document, probabilities_of
from p2o.pico.instructions import Instruction
from p2o.pico.methods import Method, Tool
from p2o.pico.tools import world
from p2o.pico.tools.world import EASY_FAMILIES, Family, Question
from p2o.pico.world import ANSWER, REFLECTION_PROMPT, extract_answer
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.prompt_phase.proposals import reflection_prompt
from p2o.seeding import derive_seed

TOOLS: tuple[Method, ...] = get_args(Tool)
RIGHT: Method = "calculator"
WRONG: Method = "estimator"
FUNCTIONS = {RIGHT: world.calculate, WRONG: world.estimate}
BARE: dict[Method, float] = {RIGHT: 0.08, WRONG: 0.92}
BARE_GO_ON = 0.05
CALL, CALL_END = "<call>", "</call>"

FAMILY_MIX: dict[Family, float] = {"small_product": 0.25, "product": 0.3, "sum_of_products": 0.3, "word_problem": 0.15}
MIX = {"bare": 0.32, "begun": 0.10, "instructed": 0.48, "reflection": 0.10}

Messages = list[dict[str, Any]]


def written(message: dict[str, Any]) -> str:
    """What the model writes for a message of its own, as the chat template renders it."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = (f"{CALL}{f['name']} {json.dumps(f['arguments'])}{CALL_END}" for f in functions)
    return str(message["content"]) + "".join(calls)


def document(prompt: str, messages: Messages, given: int = 0) -> Document:
    results = [message["content"] for message in messages if message["role"] == "tool"]
    first, *others = [written(message) for message in messages if message["role"] == "assistant"]
    return Document(prompt, first, tuple(zip(results, others, strict=True)), given)


def converse(question: Question, choices: ChoiceProbabilities, rng: random.Random, given: int = 0) -> Messages:
    """A conversation sampled with these probabilities; hard questions that are not worked out get a guess.

    The first `given` calls are made in any case.
    """
    if question.family in EASY_FAMILIES or rng.random() >= choices.work:
        return [_answer(question.solution if question.family in EASY_FAMILIES else _guess(question, rng))]
    (method,) = rng.choices(list(choices.method), list(choices.method.values()))
    tool = FUNCTIONS[method]
    messages: Messages = []
    called = question.calls(tool)
    for number, (expression, result) in enumerate(called):
        function = {"name": tool.__name__, "arguments": {"expression": expression}}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        )
        messages.append({"role": "tool", "name": tool.__name__, "content": result})
        if given - 1 <= number < len(called) - 1 and rng.random() >= choices.go_on:
            return [*messages, _answer(_guess(question, rng))]
    return [*messages, _answer(called[-1][1])]


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": f"{ANSWER}{text}"}


def _guess(question: Question, rng: random.Random) -> str:
    """A wrong number of the right size."""
    right = int(question.solution)
    return str(right + rng.choice([-1, 1]) * rng.randint(1, max(right // 4, 1)))


class Source:
    """Endless documents from one seed: the same seed, the same documents."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(derive_seed(seed, "corpus with tools"))
        self.questions = {f: world.questions(f, derive_seed(seed, "questions")) for f in FAMILY_MIX}

    def question(self) -> Question:
        """A question of the corpus; never one that is held out for evaluation."""
        (family,) = self.rng.choices(list(FAMILY_MIX), list(FAMILY_MIX.values()))
        return next(q for q in self.questions[family] if not is_held_out(q.text))

    def answered(self, question: Question, instruction: Instruction | None) -> Messages:
        method = instruction.unqualified if instruction else None
        choices = probabilities_of(method, TOOLS, BARE, "hard", instruction)
        if instruction is None:
            choices = replace(choices, go_on=BARE_GO_ON)
        return converse(question, choices, self.rng)

    def bare(self) -> Document:
        question = self.question()
        return document(question.text, self.answered(question, None))

    def begun(self) -> Document:
        """A bare hard question of which the first call or two, of the calculator, are given."""
        question = next(q for q in iter(self.question, None) if q.family not in EASY_FAMILIES)
        given = self.rng.randint(1, len(question.steps) - 1)
        begun = ChoiceProbabilities(1.0, {RIGHT: 1.0}, BARE_GO_ON)
        return document(question.text, converse(question, begun, self.rng, given), given)

    def instructed(self) -> Document:
        question, instruction = self.question(), self.instruction()
        prompt = f"{instruction.text(self.rng)}\n\n{question.text}"
        return document(prompt, self.answered(question, instruction))

    def instruction(self) -> Instruction:
        """A random instruction, usually for the right tool."""
        rng = self.rng
        kind, care = rng.random(), rng.random() < 0.5
        if kind < 0.55:
            return Instruction(unqualified=RIGHT, care=care, vague=rng.random() < 0.1)
        if kind < 0.75:
            return Instruction(unqualified=WRONG, care=care, vague=rng.random() < 0.1)
        if kind < 0.90:
            return Instruction(vague=True)
        return Instruction(care=True, vague=rng.random() < 0.3)

    def reflection(self) -> Document:
        return self.reflection_and_failures()[0]

    def reflection_and_failures(self) -> tuple[Document, int]:
        """A reflection request in GEPA's format with an instruction as the answer; and how many failures it has."""
        rng = self.rng
        current = None if rng.random() < 0.4 else self.instruction()
        records, failed = [], 0
        for _ in range(3):
            question = self.question()
            messages = self.answered(question, current)
            answer = extract_answer(messages[-1]["content"])
            reward = float(answer == question.solution)
            failed += not reward
            told = rollout_feedback(reward=reward, extracted=answer, solution=question.solution)
            records.append({"Question": question.text, "Answer given": conversation_text(messages), "Feedback": told})
        prompt = reflection_prompt(current.text(rng) if current else "", records, REFLECTION_PROMPT)
        return Document(prompt, f"```\n{self.improved(current).text(rng)}\n```"), failed

    def improved(self, current: Instruction | None) -> Instruction:
        """A simulated imperfect reflection: names a tool, often the wrong one, or asks to go on to the end."""
        rng = self.rng
        current = current or Instruction()
        kind, care = rng.random(), rng.random() < (0.8 if current.care else 0.25)
        if current.unqualified == RIGHT:
            return Instruction(unqualified=RIGHT if kind < 0.85 else WRONG, care=care or rng.random() < 0.5)
        if kind < 0.35:
            return Instruction(unqualified=RIGHT, care=care)
        if kind < 0.65:
            return Instruction(unqualified=WRONG, care=care)
        return Instruction(vague=True, care=care)


def documents(seed: int, habits: bool = True) -> Iterator[Document]:
    """The corpus, endless. Its habits are the same from the first document, since no skill is hard to learn."""
    source = Source(seed)
    makers = {
        "bare": source.bare,
        "begun": source.begun,
        "instructed": source.instructed,
        "reflection": source.reflection,
    }
    while True:
        (kind,) = source.rng.choices(list(MIX), list(MIX.values()))
        yield makers[kind]()
