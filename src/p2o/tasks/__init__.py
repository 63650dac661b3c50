"""Tasks: custom data and named sets, mapped to TRL's columns and checked before anything is trained on them."""

from p2o.tasks.checks import CONFLICTS, Report, check_questions
from p2o.tasks.golds import equal_golds
from p2o.tasks.image_columns import with_image_column
from p2o.tasks.layouts import DataError
from p2o.tasks.loading import load_splits, questions
from p2o.tasks.named import NAMED_SETS, Task, is_task, load_task, verifier_of
from p2o.tasks.rendering import long_prompts, refused_by, refused_chats

__all__ = [
    "CONFLICTS",
    "NAMED_SETS",
    "DataError",
    "Report",
    "Task",
    "check_questions",
    "equal_golds",
    "is_task",
    "load_splits",
    "load_task",
    "long_prompts",
    "questions",
    "refused_by",
    "refused_chats",
    "verifier_of",
    "with_image_column",
]
