"""Hints (did you mean) for a wrong name, word, flag or bracket."""

import difflib
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cvtrain.config.errors import Problem
from cvtrain.config.overrides import override
from cvtrain.config.provenance import COMMAND_LINE
from cvtrain.config.redact import redact
from cvtrain.config.reflection import settings_by_key
from cvtrain.config.schema.root import GROUP_SCHEMAS, VERB_GROUPS, VERBS

if TYPE_CHECKING:
    from cvtrain.config.composer import Composer

# Names that other tools use for the same setting.
OTHER_NAMES = {
    "learning_rate": "optimizer.lr",
    "max_lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "max_epochs": "trainer.epochs",
    "num_epochs": "trainer.epochs",
    "imgsz": "data.image_size",
    "img_size": "data.image_size",
    "bs": "data.batch_size",
    "workers": "data.num_workers",
    "max_steps": "trainer.max_steps",
    "patience": "trainer.early_stop_patience",
    "mixup": "augment.mixup_alpha",
    "cutmix": "augment.cutmix_alpha",
    "amp": "trainer.precision",
    "grad_clip": "trainer.clip_grad_norm",
    "path": "data.root",
    "data_dir": "data.root",
    "dir": "data.root",
    "warmup": "scheduler.warmup_epochs",
    "label_smoothing": "loss.label_smoothing",
    "early_stopping": "trainer.early_stop_patience",
}


# Options that other tools call otherwise.
OTHER_OPTIONS = {
    ("scheduler", "none"): "constant",
    ("scheduler", "null"): "constant",
    ("scheduler", "reduceonplateau"): "plateau",
    ("scheduler", "reducelronplateau"): "plateau",
    ("loss", "ce"): "cross_entropy",
    ("loss", "crossentropy"): "cross_entropy",
    ("augment", "null"): "none",
    ("data", "folder"): "custom",
    ("data", "imagefolder"): "custom",
}


def closest(name: str, candidates: Iterable[str], count: int = 1) -> list[str]:
    """Up to `count` candidates that `name` may have meant; case does not matter.

    Candidates that begin with it lead (`resnext50` for `resnext50_32x4d`), the shortest first; then the closest spelt.
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    begun = [lower for lower in by_lower if len(name) >= 3 and lower.startswith(name.lower())]
    close = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.6)
    found = dict.fromkeys([*sorted(begun, key=len), *close])
    return [by_lower[match] for match in list(found)[:count]]


def closest_options(group: str, name: str, options: Iterable[str]) -> list[str]:
    """Return the option of a group that a wrong one may have meant."""
    options = list(options)
    other = OTHER_OPTIONS.get((group, name.lower()))
    return [other] if other in options else closest(name, options)


def closest_keys(key: str, candidates: Iterable[str]) -> list[str]:
    """Full keys that a wrong key may have meant: the same last name elsewhere, else the closest spelling.

    `lr` and `optim.lr` give `optimizer.lr`, `optimzer.lr` too, and `learning_rate` by what other tools call it.
    """
    keys = list(candidates)
    last = key.rpartition(".")[2]
    other = OTHER_NAMES.get(last, "")
    if other in keys and ("." not in key or key.partition(".")[0] == other.partition(".")[0]):
        return [other]
    same_last = [candidate for candidate in keys if candidate.rpartition(".")[2] == last]
    if same_last:
        return closest(key, same_last, 3) or same_last[:3]
    if OTHER_NAMES.get(last) in keys:
        return [OTHER_NAMES[last]]
    sections = {candidate.partition(".")[0]: None for candidate in keys}
    found = closest(key, keys if "." in key else sections)
    if found:
        return found
    last_names = {candidate.rpartition(".")[2]: candidate for candidate in reversed(keys)}
    return [last_names[match] for match in closest(last, last_names)] or closest(key, keys)


def did_you_mean(names: Iterable[str]) -> str:
    """A remedy line, or nothing where there is no close name."""
    names = list(names)
    return f"did you mean {' or '.join(names)}?" if names else ""


# Verbs without a config of their own.
PLAIN_VERBS = ("list", "help")
# Words of other command lines.
FLAGS_OF_WORDS = {"usage": "cvtrain --help", "version": "cvtrain --version"}
# The setting that a verb needs, for a command without its name: `cvtrain evaluate best.pt`.
MAIN_KEYS = {
    "check": "data.root",
    "evaluate": "checkpoint",
    "predict": "checkpoint",
    "merge": "output",
    "report": "runs",
    "reproduce": "run",
    "export": "checkpoint",
    "serve": "checkpoint",
    "sweep": "sweep",
    "cache": "clean",
    "auto": "budget",
}
OPENING = {"]": "[", "}": "{", ")": "("}


def explain_word(composer: "Composer", word: str) -> Problem:
    """Return the problem of a word without `=` that is no verb."""
    if word in VERBS or word in PLAIN_VERBS:
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


def _groups(composer: "Composer") -> list[str]:
    """Return the groups that the verb's config chooses from."""
    if composer.verb == "train":
        return composer.groups
    chosen = VERB_GROUPS.get(composer.verb, ())
    return [group for group in composer.groups if group in chosen or group.startswith("hydra")]


def _guess(composer: "Composer", word: str) -> str:
    """Return a remedy line with the closest verb, setting or option."""
    main = MAIN_KEYS.get(composer.verb)
    if word.lower() in FLAGS_OF_WORDS:
        return f"that is {FLAGS_OF_WORDS[word.lower()]}"
    names = closest(word, (*VERBS, *PLAIN_VERBS))
    if not names and main is not None and word.endswith(".pt"):
        names = [f"{main}={word}"]
    elif not names and main is not None:
        names = [f"{key}=..." for key in closest_keys(word, settings_by_key(composer.verb)) if main != key]
        names = names or [f"{main}={word}" if composer.verb != "cache" else "clean=all or clean=stale"]
    if not names and word.endswith(".pt"):
        names = [f"predict checkpoint={word}", f"evaluate checkpoint={word}", f"resume={word}"]
    if not names:
        by_option = {option: group for group in _groups(composer) for option in composer.options(group)}
        names = [f"{by_option[name]}={name}" for name in closest(word, by_option)]
    verbs = ", ".join((*VERBS, *PLAIN_VERBS))
    known = f"verbs: {verbs}; settings are written key=value, and cvtrain --help shows the most used"
    return did_you_mean(names) or known


def unknown_flags(arguments: list[str], unknown: list[str], known: list[str]) -> list[Problem]:
    """Return the problems of unknown flags, with or without a value behind them.

    Args:
        arguments: the whole command line.
        unknown: the words of it that the parser of flags could not use, values among them.
        known: every flag.
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
    """Return a remedy for a value outside Hydra's grammar."""
    if any(value.count(opening) != value.count(closing) for closing, opening in OPENING.items()):
        return f"a bracket is left open; a list is written {key}=[a,b], with spaces '{key}=[a, b]'"
    if value.startswith("("):
        return f"a list is written {key}=[{value.strip('()')}]"
    return f"quote it for Hydra and for the shell: {shlex.quote(override(key, value))}"
