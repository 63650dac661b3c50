"""Which questions of a profile to train on: buckets, ranges of pass rates, single rows. Pure."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from p2o.difficulty.buckets import BUCKETS, UNSCORED
from p2o.difficulty.profile import Profile, ProfileError

FORMS = f"a bucket ({', '.join(BUCKETS)}), a range of pass rates such as 0.1-0.6, or a row such as row:17"
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})")


@dataclass(frozen=True)
class Selection:
    """Questions of a profile. One that any part names is selected.

    Args:
        buckets: of [`BUCKETS`].
        ranges: of pass rates, each from low to high, both included.
        rows: of the profile.
    """

    buckets: frozenset[str] = frozenset()
    ranges: tuple[tuple[float, float], ...] = ()
    rows: frozenset[int] = frozenset()

    def __contains__(self, question: tuple[int, str, float | None]) -> bool:
        """Whether a question with this row, bucket and pass rate is selected."""
        row, bucket, rate = question
        in_range = rate is not None and any(low <= rate <= high for low, high in self.ranges)
        return row in self.rows or bucket in self.buckets or in_range

    def rows_of(self, profile: Profile) -> list[int]:
        """The selected rows, ascending.

        Raises:
            ProfileError: none, or a row that the profile has not; with what there is instead.
        """
        outside = sorted(row for row in self.rows if row >= len(profile.questions))
        if outside:
            raise ProfileError(
                f"difficulty: the profile has no row {outside[0]}; its {len(profile.questions)} questions are rows 0 "
                f"to {len(profile.questions) - 1}."
            )
        known = zip(profile.questions, profile.buckets, strict=True)
        found = [question.row for question, bucket in known if (question.row, bucket, question.pass_rate) in self]
        if not found:
            counts = Counter(profile.buckets)
            there = ", ".join(f"{counts[bucket]} {bucket}" for bucket in (*BUCKETS, UNSCORED))
            raise ProfileError(
                f"difficulty: no question of the profile is selected. It has {there} ({profile.cutoffs}). Choose "
                "another difficulty, or run `p2o profile` again with other cut-offs (--hard_at_most, "
                "--easy_at_least), which samples nothing anew."
            )
        return found


def parse_selection(text: str) -> Selection:
    """The selection that a user wrote: parts separated by commas, such as `easy,medium`, `0.1-0.6` or `row:17`.

    Raises:
        ValueError: a part that is none of these, or a range out of its order or of [0, 1].
    """
    buckets, ranges, rows = set(), [], set()
    parts = [part.strip() for part in str(text).split(",")]
    for part in parts:
        if part.lower() in BUCKETS:
            buckets.add(part.lower())
        elif row := re.fullmatch(r"row:\s*(\d+)", part):
            rows.add(int(row[1]))
        elif found := _RANGE.fullmatch(part):
            low, high = float(found[1]), float(found[2])
            if not low <= high <= 1:
                raise ValueError(f"difficulty={text!r}: the range {part} must satisfy 0 ≤ low ≤ high ≤ 1.")
            ranges.append((low, high))
        elif part == UNSCORED:
            raise ValueError(f"difficulty={text!r}: no reward is known for unscored questions; train on {FORMS}.")
        else:
            raise ValueError(f"difficulty={text!r}: {part!r} is not {FORMS}; several are separated by commas.")
    return Selection(frozenset(buckets), tuple(ranges), frozenset(rows))


def rows_among(
    keys: Sequence[str], profile: Profile, wanted: Sequence[int], where: str, data: str, again: str
) -> list[int]:
    """Rows of a data set whose question is one of these of the profile, in their order.

    Args:
        keys: digests of the questions of the data set.
        wanted: rows of the profile.
        where, data: the profile's file, and what to call the data set, for the message.
        again: what to do about a profile of other questions.

    Raises:
        ProfileError: the profile is one of other questions.
    """
    there, chosen = set(keys), {profile.questions[row].key for row in wanted}
    if missing := [profile.questions[row] for row in wanted if profile.questions[row].key not in there]:
        first = missing[0]
        raise ProfileError(
            f"{where} is a profile of other questions: {len(missing)} of the {len(wanted)} selected are not in the "
            f"{data}, row {first.row} ({first.text[:60]!r}) the first. Prompt and gold answer have to be the same. "
            f"{again}"
        )
    return [row for row, key in enumerate(keys) if key in chosen]
