"""Small liberties with Hydra's grammar, taken before Hydra reads a command."""

from cvtrain.config.schema import open_keys

# Groups whose option may be none at all, and what Hydra calls that.
NULL_CHOICES = {"experiment": "~experiment", "debug": "~debug", "logger": "logger=[]"}


def open_up(token: str, verb: str) -> str:
    """The token as Hydra wants it.

    `model.kwargs.depth=2` gets the `++` that adds a key to an open mapping: a user knows their class's arguments, and
    should not need to know which mapping is open. `logger=null` becomes the empty choice, which Hydra spells by group.
    """
    key, equals, value = token.partition("=")
    if equals and value in ("null", "None") and key in NULL_CHOICES:
        return NULL_CHOICES[key]
    for name in open_keys(verb):
        if equals and (key.startswith(f"{name}.") or (key == name and value.startswith("{"))):
            return f"++{token}"
    return token
