"""What a newcomer may have meant by a word that is no `key=value`, by a flag that there is not, by an open bracket."""

import shlex

from cvtrain.config.composer import Composer
from cvtrain.config.errors import Problem
from cvtrain.config.hints import closest, closest_keys, did_you_mean
from cvtrain.config.overrides import override
from cvtrain.config.provenance import COMMAND_LINE
from cvtrain.config.redact import redact
from cvtrain.config.reflection import settings_by_key
from cvtrain.config.schema.root import GROUP_SCHEMAS, VERBS

# Words of other command lines.
FLAGS_OF_WORDS = {"help": "cvtrain --help", "usage": "cvtrain --help", "version": "cvtrain --version"}
# The setting that a verb cannot do without, for who leaves its name out: `cvtrain evaluate best.pt`.
MAIN_KEYS = {"evaluate": "checkpoint", "sweep": "sweep", "cache": "clean"}
OPENING = {"]": "[", "}": "{", ")": "("}


def bare_word(composer: Composer, word: str) -> Problem:
    """A word without `=` that is no verb."""
    if word in VERBS:
        remedy = f"the verb comes first: cvtrain {word} key=value ..."
        return Problem(word, rule="stands in the place of key=value", remedy=remedy, origin=COMMAND_LINE)
    if word[-1:] in OPENING and word.count(OPENING[word[-1]]) < word.count(word[-1]):
        rule, remedy = "is the end of a list that a space has cut off", "leave spaces out, or quote it: 'key=[a, b]'"
        return Problem(word, rule=rule, remedy=remedy, origin=COMMAND_LINE)
    if word in settings_by_key(composer.verb) or word in _groups(composer):
        remedy = f"write {word}=..., without spaces around ="
        return Problem(word, rule="has no value", remedy=remedy, origin=COMMAND_LINE)
    rule = "is neither a verb nor key=value"
    return Problem(word, rule=rule, remedy=_guess(composer, word), origin=COMMAND_LINE)


def _groups(composer: Composer) -> list[str]:
    """Groups that the verb's config chooses from."""
    return [group for group in composer.groups if composer.verb == "train" or group.startswith("hydra")]


def _guess(composer: Composer, word: str) -> str:
    """A remedy line: what the word stands closest to."""
    main = MAIN_KEYS.get(composer.verb)
    if word.lower() in FLAGS_OF_WORDS:
        return f"that is {FLAGS_OF_WORDS[word.lower()]}"
    names = closest(word, VERBS)
    if not names and main is not None and word.endswith(".pt"):
        names = [f"{main}={word}"]
    elif not names and main is not None:
        names = [f"{key}=..." for key in closest_keys(word, settings_by_key(composer.verb)) if main != key]
        names = names or [f"{main}={word}" if composer.verb != "cache" else "clean=all or clean=stale"]
    if not names and word.endswith(".pt"):
        names = [f"evaluate checkpoint={word}", f"resume={word}"]
    if not names:
        by_option = {option: group for group in _groups(composer) for option in composer.options(group)}
        names = [f"{by_option[name]}={name}" for name in closest(word, by_option)]
    verbs = f"verbs: {', '.join(VERBS)}; settings are written key=value, and cvtrain --help shows the most used"
    return did_you_mean(names) or verbs


def unknown_flags(arguments: list[str], unknown: list[str], known: list[str]) -> list[Problem]:
    """What is wrong with flags, which came with their values behind them or not.

    Args:
        arguments: the whole command line.
        unknown: the words of it that the parser of flags could not use, values among them.
        known: the flags that there are.
    """
    problems = []
    for written in (word for word in unknown if word.startswith("-")):
        flag, equals, value = written.partition("=")
        following = [*arguments, "-"][arguments.index(written) + 1]
        if flag.startswith("--") and not equals and not following.startswith("-") and "=" not in following:
            value, written = following, f"{written} {following}"
        shown = redact(written)
        remedy = _flag_remedy(flag, value if shown == written else "", known)
        problems.append(Problem(shown, rule="no such flag", remedy=remedy))
    return problems


def _flag_remedy(flag: str, value: str, known: list[str]) -> str:
    keys = settings_by_key("train")
    key = flag.lstrip("-").replace("-", "_")
    is_setting = key in keys or key in {name.rpartition(".")[2] for name in keys}
    names = closest(flag, [name for name in known if name.startswith("--") == flag.startswith("--")])
    if flag.startswith("--") and (is_setting or key in GROUP_SCHEMAS or not names):
        found = [key] if key in keys or key in GROUP_SCHEMAS else closest_keys(key, keys)
        if found:
            return f"settings are written without dashes: {found[0]}={value or '...'}"
    return did_you_mean(names) or "settings are written key=value, without dashes"


def grammar_remedy(key: str, value: str) -> str:
    """What to do about a value that Hydra's grammar has no place for."""
    if any(value.count(opening) != value.count(closing) for closing, opening in OPENING.items()):
        return f"a bracket is left open; a list is written {key}=[a,b], with spaces '{key}=[a, b]'"
    if value.startswith("("):
        return f"a list is written {key}=[{value.strip('()')}]"
    return f"quote it for Hydra and for the shell: {shlex.quote(override(key, value))}"
