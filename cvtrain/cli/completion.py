"""Shell completion: Hydra's, with the verbs added and the schemas left out."""

import io
import os
from contextlib import redirect_stdout
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import CompletionPlugin

from cvtrain.config.composer import Composer
from cvtrain.config.hints import PLAIN_VERBS
from cvtrain.config.schema.root import GROUP_SCHEMAS, VERB_GROUPS, VERBS

FIRST_WORD_FLAGS = ("--help", "--version", "--cfg", "--multirun", "--config-dir", "--info")


def complete(arguments: list[str]) -> None:
    """Print the words that complete COMP_LINE, the line that Hydra's shell script passes on.

    Args:
        arguments: of the process, such as `-sc query=bash`: which shell asks.
    """
    line = os.environ["COMP_LINE"]
    head, words = _split(line)
    verb = next((word for word in words if word in VERBS), None)
    if verb is not None and words[-1] != verb:
        words.remove(verb)
    found = _ask_hydra(verb or "train", " ".join([head, *words]), arguments)
    if len(words) == 1 and (verb is None or words[0] == verb):
        found = [name for name in (*VERBS, *PLAIN_VERBS, *FIRST_WORD_FLAGS) if name.startswith(words[0])] + found
    print(" ".join(found))


def _split(line: str) -> tuple[str, list[str]]:
    """The program's name and the words after it, the last of them the one that is being typed, perhaps empty."""
    head, *words = line.split()
    return head, words if words and not line.endswith(" ") else [*words, ""]


def _ask_hydra(verb: str, line: str, arguments: list[str]) -> list[str]:
    loader = Composer(verb).loader
    found: Any = Plugins.instance().discover(CompletionPlugin)  # Hydra types them as its base class
    plugins = {plugin.provides(): plugin for plugin in found}
    shell = next((token.partition("=")[2] for token in arguments if token.startswith("query=")), "bash")
    previous, answer = os.environ["COMP_LINE"], io.StringIO()
    os.environ["COMP_LINE"] = line
    try:
        with redirect_stdout(answer):
            plugins[shell](loader).query(config_name=verb)
    finally:
        os.environ["COMP_LINE"] = previous
    return [word for word in answer.getvalue().split() if word.partition("=")[0] not in _hidden_groups(verb)]


def _hidden_groups(verb: str) -> set[str]:
    """Groups that Hydra would offer, but that the verb's config does not choose from."""
    hidden = {"schema", "schema/"} | ({"sweep"} if verb != "sweep" else set())
    if verb == "train":
        return hidden
    return (hidden | set(GROUP_SCHEMAS) | {"experiment", "debug"}) - set(VERB_GROUPS.get(verb, ()))
