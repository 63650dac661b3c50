"""Tasks: own data and named sets, mapped to TRL's columns and checked before anything is trained on them."""

from p2o.tasks.checks import Report, check_questions, long_prompts
from p2o.tasks.loading import DataError, load_splits, questions
from p2o.tasks.named import NAMED_SETS, Task, is_task, load_task, verifier_of

__all__ = [
    "NAMED_SETS",
    "DataError",
    "Report",
    "Task",
    "check_questions",
    "is_task",
    "load_splits",
    "load_task",
    "long_prompts",
    "questions",
    "verifier_of",
]
