"""Uploading the model of a run to the hub."""

import os
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from p2o.cli.arguments import Run
from p2o.cli.errors import InputError


def prepare_upload(run: Run, directory: Path) -> Callable[[], str] | None:
    """Creates the repository now; returns a function that uploads `model/` at the end and returns its URL, or None.

    Only `model/` is uploaded. The trainer's `push_to_hub` would upload all of its output directory, which here is the
    run's, with questions, answers and rollouts; and it saves its token with the model.

    Raises:
        InputError: the repository cannot be created.
    """
    training = run.training
    wanted, token = training.push_to_hub, training.hub_token
    training.push_to_hub, training.hub_token = False, None
    run.config.pop("hub_token", None)
    if not wanted or os.environ.get("RANK", "0") != "0":
        return None
    api = HfApi(token=token)
    name = training.hub_model_id or directory.name
    try:
        repository = api.create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
    except Exception as error:  # of the hub, the network or its client
        raise InputError(f"push_to_hub: cannot create or open the repository {name}: {error}") from error
    training.hub_model_id = repository  # what the card's example loads

    def upload() -> str:
        return api.upload_folder(
            repo_id=repository,
            folder_path=directory / "model",
            commit_message="End of training",
            revision=training.hub_revision,
        ).commit_url

    return upload
