"""An extension of griffe, which reads the source for the API reference.

Options are documented as transformers does it, `field(default=…, metadata={"help": "…"})`: the help text becomes the
description of the option, the default its value. A class in brackets, [`P2OConfig`], becomes a link to its entry.
"""

import ast
import re
from typing import Any

import griffe


class HelpTexts(griffe.Extension):
    def __init__(self) -> None:
        self.constants: list[tuple[griffe.Attribute, str]] = []

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        call = getattr(node, "value", None)
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "field":
            return
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "default" in given:
            attr.value = ast.unparse(given["default"])
        if isinstance(metadata := given.get("metadata"), ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in metadata.keys]
            text = dict(zip(keys, metadata.values, strict=True)).get("help")
            if isinstance(text, ast.Constant):
                attr.docstring = description(str(text.value), attr)
            elif isinstance(text, ast.Name):
                self.constants.append((attr, text.id))

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Help texts that are constants of another module, which is read by now."""
        for attr, name in self.constants:
            value = pkg.modules_collection[attr.resolve(name)].value
            attr.docstring = description(ast.literal_eval(str(value)), attr)
        self.constants.clear()

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"\[`(P2O\w+)`\]", r"[`\1`][p2o.\1]", obj.docstring.value)
            obj.docstring.value = re.sub(r"\[`(\w+)`\](?!\[)", r"`\1`", obj.docstring.value)


def description(help_text: str, attr: griffe.Attribute) -> griffe.Docstring:
    """A help text as Markdown: in `'anthropic/<model>'` the brackets are none of HTML's, unless they are code."""
    markdown = re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], help_text)
    return griffe.Docstring(markdown, parent=attr)
