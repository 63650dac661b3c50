"""Models that the commands' options name."""

from p2o.cli.errors import InputError
from p2o.models import model_path


def path_of_model(name: str) -> str:
    """What `from_pretrained` takes for it, see [`p2o.models.model_path`].

    Raises:
        InputError: a model with a name of its own that cannot be had.
    """
    try:
        return model_path(name)
    except (ImportError, OSError) as error:
        raise InputError(f"{name}: {error}") from None
