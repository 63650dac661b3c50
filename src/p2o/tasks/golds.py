"""Whether two gold answers are equal by the verifier `math`, in its worker processes."""

from p2o.verifiers import Pool, Verdict, verify_stream


def equal_golds(pairs: list[tuple[str, str]], *, pool: Pool | None = None) -> list[bool]:
    """For each pair, whether each answer verifies against the other as gold.

    Pairs that cannot be parsed, or not within the verifier's limits, are not equal.
    """
    jobs = [(_boxed(answer), {"solution": gold}) for a, b in pairs for answer, gold in ((a, b), (b, a))]
    right = [False] * len(jobs)
    for index, verdict in verify_stream(jobs, pool=pool):
        right[index] = isinstance(verdict, Verdict) and verdict.reason == "right"
    return [one and other for one, other in zip(right[::2], right[1::2], strict=True)]


def _boxed(answer: str) -> str:
    return answer if "\\boxed" in answer else rf"\boxed{{{answer.strip().strip('$')}}}"
