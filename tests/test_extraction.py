"""Instructions within what reflection models write: forms of answers, in words of our own."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2o.prompt_phase.extraction import read_reflection
from p2o.prompt_phase.guard import check_template, leaks_answer
from p2o.prompt_phase.proposals import extract_instruction

RULE = "Add the tens first.\nThen add the ones, and write the total on the last line."
OTHER = "Look at every digit twice."
FENCED = f"```\n{RULE}\n```"
DRAFT = f"```\n{OTHER}\n```"
NESTED = "Close in this shape:\n```\nTotal: 7\n```\nand nothing else."

TAKEN = {
    "label and reason around it": f"Here is the improved instruction:\n\n{FENCED}\n\nIt now says where to begin.",
    "headings around it": f"## What goes wrong\nOnes are lost.\n\n## New instruction\n{FENCED}\n\n**Reason**: order.",
    "a question behind it": f"**Instruction**\n{FENCED}\nShall I make it shorter?",
    "opened behind words": f"My proposal: ```\n{RULE}\n```",
    "all behind words": f"My proposal: ```{RULE.replace(chr(10), ' ')}```. Good luck!",
    "closed behind its last word": f"```\n{RULE}```",
    "begun behind the fence": f"```{RULE}\n```",
    "words behind the closing fence": f"```\n{RULE}\n``` This one names the order of steps.",
    "tildes": f"~~~\n{RULE}\n~~~",
    "tildes with a language": f"Sure.\n~~~text\n{RULE}\n~~~",
    "a longer closing fence": f"```\n{RULE}\n`````",
    "five backticks": f"`````md\n{RULE}\n`````",
    "a space before the language": f"``` markdown\n{RULE}\n```",
    "a language in braces": f"```{{.text}}\n{RULE}\n```",
    "a language with attributes": f"```text {{#new}}\n{RULE}\n```",
    "a name for a language": f"```new_instruction\n{RULE}\n```",
    "the wrong language": f"```python\n{RULE}\n```",
    "quoted": "> ```\n" + "".join(f"> {line}\n" for line in RULE.splitlines()) + "> ```",
    "in a list": "1. The new one:\n    ```\n" + "".join(f"    {line}\n" for line in RULE.splitlines()) + "    ```",
    "tags around the fence": f"<instruction>\n{FENCED}\n</instruction>",
    "carriage returns": FENCED.replace("\n", "\r\n"),
    "white space around": f"\n\n  \n{FENCED}  \n\n",
    "blank lines in the fence": f"```\n\n{RULE}\n\n\n```",
    "an end token behind the fence": f"{FENCED}<|im_end|>",
    "an end token on its own line": f"{FENCED}\n</s>",
    "a turn behind the end": f"{FENCED}<|im_end|>\n<|im_start|>user\nMore of it",
    # Several blocks.
    "draft, then final": f"A first draft:\n{DRAFT}\nThat names no order. The final version:\n{FENCED}",
    "draft without a label": f"{DRAFT}\nNo, that is vague.\n{FENCED}",
    "two drafts": f"Draft:\n{DRAFT}\nSecond draft:\n```\nBe exact.\n```\nFinal:\n{FENCED}",
    "blocks in a row": f"{DRAFT}\n{FENCED}",
    "the same twice": f"{FENCED}\n\nAgain, ready to copy:\n\n{FENCED}",
    "alternatives": f"Option A:\n{DRAFT}\nOption B:\n{FENCED}",
    "one or the other": f"{DRAFT}\nor\n{FENCED}",
    "the present one, then the new": f"The current instruction is\n{DRAFT}\nI would replace it by\n{FENCED}",
    "the new one, then the present": f"New instruction:\n{FENCED}\nFor comparison, the original instruction:\n{DRAFT}",
    "an example behind it": f"{FENCED}\nUnder it an answer would look like this:\n```\n20 + 3\nTotal: 23\n```",
    "a sample response before it": f"The assistant's response was\n```\n23?\n```\nBetter:\n{FENCED}",
    "code behind it": f"{FENCED}\nTo check it:\n```python\nassert 20 + 3 == 23\n```",
    "JSON behind it": f'{FENCED}\n```json\n{{"changed": "order"}}\n```',
    "an empty block behind it": f"{FENCED}\n\n```\n```",
    "the request, then the answer": "I provided an assistant with the following instructions to do a task for me:\n"
    f"{DRAFT}\n...\nProvide the new instructions within ``` blocks.\n\n{FENCED}",
    "a draft, and a final one without an end": f"Draft:\n{DRAFT}\nFinal:\n```\n{RULE}",
    # Thoughts.
    "think": f"<think>\nMaybe\n{DRAFT}\nno.\n</think>\n\n{FENCED}",
    "an empty thought": f"<think>\n\n</think>\n\n{FENCED}",
    "opened in the prompt": f"Maybe\n{DRAFT}\nno.\n</think>\n\n{FENCED}",
    "a fence left open in the thought": f"<think>Maybe ```\n{OTHER}\n</think>\n{FENCED}",
    "a mark within the thought": f"<think>I was told to <think> first. {DRAFT}</think>\n{FENCED}",
    "thinking": f"<thinking>{DRAFT}</thinking>{FENCED}",
    "thought": f"<thought>\n{DRAFT}\n</thought>\n{FENCED}",
    "with attributes": f'<think duration="3">\n{DRAFT}\n</think>\n{FENCED}',
    "in capitals": f"<THINK>\n{DRAFT}\n</THINK>\n{FENCED}",
    "with a namespace": f"<seed:think>{DRAFT}</seed:think>{FENCED}",
    "Magistral": f"[THINK]Maybe\n{DRAFT}\n[/THINK]{FENCED}",
    "Kimi": f"◁think▷Maybe\n{DRAFT}\n◁/think▷{FENCED}",
    "Command A": f"<|START_THINKING|>{DRAFT}<|END_THINKING|><|START_RESPONSE|>{FENCED}<|END_RESPONSE|>",
    "OpenThinker": f"<|begin_of_thought|>{DRAFT}<|end_of_thought|>\n<|begin_of_solution|>\n{FENCED}",
    "Gemma 4": f"<|channel>thought\n{DRAFT}<channel|>{FENCED}<turn|>",
    "Ollama": f"Thinking...\n{DRAFT}\n...done thinking.\n\n{FENCED}",
    "gpt-oss": "<|channel|>analysis<|message|>Maybe\n"
    f"{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{FENCED}<|return|>",
    "gpt-oss, commentary between": f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant"
    f"<|channel|>commentary<|message|>So:<|end|><|start|>assistant<|channel|>final<|message|>{FENCED}",
    "gpt-oss without its tokens": f"analysisMaybe\n{DRAFT}\nassistantfinal{FENCED}",
    "a scratchpad": f"<scratchpad>\n{DRAFT}\n</scratchpad>\n{FENCED}",
    "analysis, then reflection": f"<analysis>{DRAFT}</analysis>\n<reflection>hm</reflection>\n{FENCED}",
    "a fenced thought": f"```thinking\n{OTHER}\n```\n{FENCED}",
    "a summary of thoughts": f"**Thinking about order**\n\nOnes get lost.\n\n> {OTHER}\n\n{FENCED}",
}

VERBATIM = {
    "a block within four backticks": (f"````\n{NESTED}\n````", NESTED),
    "a block with a language": (
        f"```\n{NESTED.replace('```', '```text', 1)}\n```",
        NESTED.replace("```", "```text", 1),
    ),
    "tildes within backticks": (f"```\n{NESTED.replace('```', '~~~')}\n```", NESTED.replace("```", "~~~")),
    "a code span of three": (
        "```\nShow code as ```x = 1``` in the text.\n```",
        "Show code as ```x = 1``` in the text.",
    ),
    "indentation of its own": ("```\nSteps:\n  - tens\n    - ones\n```", "Steps:\n  - tens\n    - ones"),
    "another script": ("```\nأجب خطوة بخطوة، ثم می‌خواهم.\n```", "أجب خطوة بخطوة، ثم می‌خواهم."),
    "no spaces": ("```\n先算十位，再算个位。\n```", "先算十位，再算个位。"),
    "tags of the task": (
        "```\nReason in <reasoning></reasoning>, answer in <answer></answer>.\n```",
        "Reason in <reasoning></reasoning>, answer in <answer></answer>.",
    ),
    "a rule about a number": (
        "```\nThe answer is 0 if nothing is left. Otherwise count.\n```",
        "The answer is 0 if nothing is left. Otherwise count.",
    ),
    "a worked example": (
        "```\nAdd tens first. Example: 21 + 34: 50 and 5.\nThe answer is 55.\n```",
        "Add tens first. Example: 21 + 34: 50 and 5.\nThe answer is 55.",
    ),
    "a form to be filled": ("```\nEnd like this:\nThe answer is 12.\n```", "End like this:\nThe answer is 12."),
    "a kind of question": (
        "```\nWhen asked how many pairs there are among n things, take n(n-1)/2.\n```",
        "When asked how many pairs there are among n things, take n(n-1)/2.",
    ),
    "JSON to be written": (
        '```\nAnswer as JSON, such as {"total": 7}.\n```',
        'Answer as JSON, such as {"total": 7}.',
    ),
}

REJECTED = {
    "nothing": ("", "empty"),
    "an empty fence": ("```\n```", "empty"),
    "a lone fence": ("So:\n```", "empty"),
    "no fence": (f"The new instruction: {RULE}", "no_fence"),
    "quotes for a fence": (f"'''\n{RULE}\n'''", "no_fence"),
    "one backtick": (f"`{OTHER}`", "no_fence"),
    "an HTML block": (f"<pre>{RULE}</pre>", "no_fence"),
    "YAML": (f"instruction: |\n  {OTHER}", "no_fence"),
    "a refusal": ("I'm sorry, but I can't help with that.", "no_fence"),
    "a fenced refusal": ("```\nI’m sorry, but I cannot write that.\n```", "no_instruction"),
    "a fenced refusal of an AI": ("```\nAs an AI language model, I have no instructions.\n```", "no_instruction"),
    "only thoughts": (f"<think>\n{FENCED}\n</think>", "empty"),
    "a thought without an end": (f"[THINK]Perhaps\n{FENCED}\nor", "empty"),
    "Kimi's thought without an end": (f"◁think▷\n{FENCED}", "empty"),
    "an analysis without a final channel": (f"<|channel|>analysis<|message|>{FENCED}<|end|>", "empty"),
    "the same without its tokens": (f"analysisPerhaps\n{FENCED}", "empty"),
    "a scratchpad without an end": (f"<scratchpad>\n{FENCED}", "empty"),
    "no answer behind the thought": (f"<think>{FENCED}</think>\nDone, see above.", "no_fence"),
    "blocks alike within one another": (f"```\n{NESTED}\n```", "several_fences"),
    "the same without a colon": ("```\nClose so\n```\nTotal: 7\n```\nThen stop.\n```", "several_fences"),
    "an open block with a block in it": (f"```\n{OTHER}\n\n```text\nTotal: 7\n```", "several_fences"),
    "only the present one": (f"The current instruction is\n{DRAFT}\nand it lacks an order.", "no_instruction"),
    "only code": ("```python\nprint(sum([20, 3]))\n```", "no_instruction"),
    "a script": ("```bash\necho 23\n```", "no_instruction"),
    "JSON": ('```json\n{"instruction": "Add."}\n```', "no_instruction"),
    "JSON without a language": ('```\n["Add.", "Check."]\n```', "no_instruction"),
    "a placeholder in angles": ("```\n<your new instruction>\n```", "no_instruction"),
    "a placeholder in brackets": ("```\n[Insert the instruction here]\n```", "no_instruction"),
    "a placeholder in words": ("```\nNew instruction text here\n```", "no_instruction"),
    "dots": ("```\n...\n```", "no_instruction"),
    "nothing in words": ("```\nN/A\n```", "no_instruction"),
    "no change": ("```\nNo changes needed.\n```", "no_instruction"),
    "the examples again": (
        "```\n# Example 1\n## Question\nWhat is 2 + 3?\n\n## Feedback\nWrong.\n```",
        "no_instruction",
    ),
    "think tags": ("```\nWrite <think> before you add.\n```", "markup"),
    "Magistral's tags": ("```\n[THINK] before you add.\n```", "markup"),
    "Kimi's tags": ("```\nUse ◁think▷ well.\n```", "markup"),
    "a switch": ("```\nAdd. /think\n```", "markup"),
    "GLM's switch": ("```\nAdd. /nothink\n```", "markup"),
    "a start token": ("```\n<bos>Add.\n```", "markup"),
    "Gemma 4's turn": ("```\nAdd.<turn|>\n```", "markup"),
    "a role": ("```\nUser: add these.\n```", "markup"),
    "a bold role": ("```\n**Assistant:** gladly\n```", "markup"),
    "a byte order mark": ("```\n\ufeffAdd.\n```", "markup"),
    "half a character": ("```\nAdd \ufffd well.\n```", "markup"),
    "letters as tags": ("```\nAdd.\U000e0041\n```", "markup"),
    "an answer": ("```\nThe final answer is 391.\n```", "leaked_answer"),
    "an answer in bold": ("```\nAdd.\n**Answer:** 391\n```", "leaked_answer"),
    "an answer in words": ("```\nSo the total is three hundred ninety-one.\n```", "leaked_answer"),
    "an answer with a unit": ("```\nThe result is 391 km.\n```", "leaked_answer"),
    "an answer as a product": ("```\nThe result is 17 * 23.\n```", "leaked_answer"),
    "one question": ("```\nIf asked how many seats 17 rows of 23 have, multiply.\n```", "quoted_question"),
}

CUT_OFF = {
    "within the block": f"```\n{RULE[:30]}",
    "before the block": "The ones are lost, since",
    "within the thought": f"<think>{DRAFT} or",
    "before the final block": f"Draft:\n{DRAFT}\nThis is not yet good, since",
    "at second thoughts": f"{FENCED}\nWait, the tens may be",
    "within a block in it": "```\nClose in this shape:\n```\nTotal:",
    "within the final block": f"Draft:\n{DRAFT}\nFinal:\n```\nAdd the",
    "behind the present one": f"The current instruction is\n{DRAFT}\nI would",
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_instruction_is_found_and_nothing_else(name):
    expected = RULE.replace("\n", " ") if name == "all behind words" else RULE
    assert extract_instruction(TAKEN[name]) == expected, read_reflection(TAKEN[name])


@pytest.mark.parametrize("name", VERBATIM)
def test_what_an_instruction_may_contain(name):
    answer, expected = VERBATIM[name]
    assert extract_instruction(answer) == expected, read_reflection(answer)


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_no_instruction(name):
    answer, reason = REJECTED[name]
    assert extract_instruction(answer) is None
    assert read_reflection(answer).rejection == reason


@pytest.mark.parametrize("name", CUT_OFF)
def test_a_cut_off_answer_proposes_nothing(name):
    assert extract_instruction(CUT_OFF[name], truncated=True) is None
    assert read_reflection(CUT_OFF[name], truncated=True).rejection == "truncated"


def test_an_instruction_that_was_complete_before_the_cut_counts():
    assert extract_instruction(f"{FENCED}\n\nThis names the order of", truncated=True) == RULE
    assert extract_instruction(f"```\n{RULE}") == RULE, "the model ended there by itself"


@pytest.mark.parametrize(
    ("template", "answer", "leaks"),
    [
        ("It comes to four thousand seven hundred and eleven.", "4711", True),
        ("It comes to forty-two.", "42", True),
        ("It comes to 4{,}711 in the end.", "4711", True),
        ("It comes to 4\u202f711.", "4711", True),
        ("It comes to 4 711.", "4,711", True),
        ("It is 4711cm long.", "4711", True),
        ("Take 4700 + 11.", "4711", True),
        ("Take 17 × 23.", "391", True),
        ("Take twenty steps.", "21", False),
        ("Take 4 steps of 711 each.", "4711", False),
        ("Write 3.14 with 2 digits.", "314", False),
        ("Compare 2024-05 and 2024-06.", "51", False),
    ],
)
def test_answers_however_they_are_written(template, answer, leaks):
    assert leaks_answer(template, answer) is leaks


# -- properties --------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["```", "~~~", "````", "\n", "\n\n", "```\n", "```text\n", "<think>", "</think>", "[THINK]", "[/THINK]", "◁think▷",
     "◁/think▷", "<reasoning>", "</reasoning>", "<|channel|>final<|message|>", "<|im_end|>", "\u200b", "Draft:",
     "Final:", RULE, OTHER, "Add.", " ", ">", "    "]
)  # fmt: skip
ANSWERS = st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=80)
THOUGHT = re.compile(r"</?think(?:ing)?>|\[/?THINK\]|◁/?think▷|<\|")
WORDS = st.lists(st.sampled_from("add check the tens ones digits twice first then carefully".split()), min_size=2)
PROSE = st.lists(WORDS.map(" ".join), min_size=1, max_size=5).map("\n".join)


def fenced(text):
    longest = max([len(run) for run in re.findall("`+", text)], default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}\n{text}\n{fence}"


@given(ANSWERS, st.booleans())
@settings(max_examples=100, deadline=None)
@example(f"```\n{NESTED.replace('```', '```text', 1)}\n```", False)
def test_an_instruction_is_one_for_good_and_free_of_marks(answer, truncated):
    found = extract_instruction(answer, truncated)
    if found is None:
        return
    assert found == found.strip() != ""
    assert all(line.strip() in answer for line in found.splitlines())
    assert not THOUGHT.search(found) and "\u200b" not in found
    assert extract_instruction(fenced(found)) == found
    assert check_template(found, questions=[], max_length=10**6) is None
    assert extract_instruction(answer) == found, "a cut takes instructions away and makes none"


@given(PROSE, PROSE, st.sampled_from(["think", "thinking", "scratchpad", "reasoning"]))
@settings(max_examples=60, deadline=None)
def test_prose_in_a_fence_comes_back_as_it_is_whatever_was_thought(instruction, thought, tag):
    assert extract_instruction(fenced(instruction)) == instruction
    said = f"<{tag}>{fenced(thought)}</{tag}>\n{fenced(instruction)}\n\n{thought}"
    assert extract_instruction(said) == instruction
    for cut in range(said.index(f"</{tag}>"), said.rindex("```")):
        assert extract_instruction(said[:cut], truncated=True) is None


@given(PROSE)
@settings(max_examples=30, deadline=None)
def test_prose_without_a_fence_is_none(prose):
    assert extract_instruction(prose) is None
    assert read_reflection(f"{prose}\n\n", fenced=False).instruction == prose, "where the request wanted none"
    assert read_reflection(prose, truncated=True, fenced=False).rejection == "truncated"


def test_an_answer_whose_request_wanted_no_fence_is_looked_through_as_any_other():
    assert read_reflection(f"<think>\n{DRAFT}</think>\n{RULE}<|im_end|>", fenced=False).instruction == RULE
    assert read_reflection(f"Here it is:\n{FENCED}", fenced=False).instruction == RULE
    assert read_reflection("I'm sorry, but I cannot do that.", fenced=False).rejection == "no_instruction"
    assert read_reflection("## Question\nWhat is 2+2?", fenced=False).rejection == "no_instruction"
