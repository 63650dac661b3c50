"""The words of a command line, before a parser reads them."""

from p2o.cli.errors import InputError


def normalized_option(word: str) -> str:
    """An option as the parser spells it: `--prompt-column` is `--prompt_column`, `--dataset` is `--dataset_name`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    name = "--" + name[2:].replace("-", "_")
    return ("--dataset_name" if name == "--dataset" else name) + equals + value


def take_option(argv: list[str], name: str) -> str | None:
    """Removes `name VALUE` or `name=VALUE` from the command line and returns the value; None if absent.

    Raises:
        InputError: the option without its value.
    """
    for index, word in enumerate(argv):
        if word.startswith(f"{name}="):
            del argv[index]
            return word.partition("=")[2]
        if word == name:
            if index + 1 >= len(argv):
                raise InputError(f"{name} needs a value.")
            value = argv[index + 1]
            del argv[index : index + 2]
            return value
    return None
