"""Feedback on a rollout for the reflection model (paper: format failure, wrong answer, right answer). Pure."""


def rollout_feedback(*, reward: float, extracted: str | None, solution: str, answer_format: str = "") -> str:
    """Feedback on one rollout, in few words because small models read it too.

    Args:
        reward: the rollout's reward; more than 0 is right.
        extracted: the answer found in the completion, None or empty when there is none.
        solution: the gold answer; empty when the data has none.
        answer_format: the form that was expected of an answer, for feedback after a format failure.
    """
    gold = f" The answer is {solution}." if solution else ""
    if reward > 0:
        verdict = "Right."
    elif extracted:
        verdict = "Wrong." + gold
    else:
        verdict = "No answer found." + (f" {answer_format}" if answer_format else "") + gold
    return f"{verdict} Reward: {reward:g}."
