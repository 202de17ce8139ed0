"""Explain why a command does not compose: each wrong token by itself, with a remedy."""

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvtrain.config.composer import COMPOSITION_ERRORS, Composer
from cvtrain.config.errors import Problem
from cvtrain.config.hints import closest, closest_options, did_you_mean, explain_word, grammar_remedy
from cvtrain.config.launchers import GROUP as LAUNCHERS
from cvtrain.config.launchers import missing_plugin
from cvtrain.config.provenance import COMMAND_LINE, readable
from cvtrain.config.redact import redact
from cvtrain.config.reflection import settings_by_key, settings_of
from cvtrain.config.text import first_line
from cvtrain.config.validation import find_rule_problems, unknown_key


def explain(composer: Composer, overrides: list[str], error: Exception) -> list[Problem]:
    """Return the problems of a command that `composer.compose(overrides)` refused with `error`.

    Each token is tried alone on a config that composes without it, so that one command shows all its faults.
    """
    problems: list[Problem] = []
    parsed: list[Override] = []
    for token in overrides:
        if not token.partition("=")[0].strip("+~"):
            problems.append(Problem(token, rule="names no setting", remedy="write key=value", origin=COMMAND_LINE))
            continue
        try:
            parsed.append(composer.parse(token))
        except OverrideParseException as parse_error:
            problems.append(_grammar_problem(composer, token, parse_error))
    choices = [override for override in parsed if composer.is_choice(override)]
    good_choices = []
    for override in choices:
        problem = _choice_problem(composer, override)
        problems += [problem.with_origin(COMMAND_LINE)] if problem else []
        good_choices += [] if problem else [override.input_line or ""]
    try:
        base = composer.compose(good_choices)
    except COMPOSITION_ERRORS as file_error:
        return problems or [_file_problem(composer, overrides, file_error)]
    for override in parsed:
        if override not in choices and not override.is_sweep_override():
            base, problem = _try_value(composer, base, override)
            problems += [problem.with_origin(COMMAND_LINE)] if problem else []
    known = {problem.key for problem in problems}  # whose values are set, if wrongly
    problems += [problem for problem in find_rule_problems(base, composer) if problem.key not in known]
    if isinstance(error, AssertionError) and not problems:
        raise error
    return problems or [_file_problem(composer, overrides, error)]


def sweep_problems(composer: Composer, overrides: list[str]) -> list[Problem]:
    """Tokens that hold several values although the command is no sweep."""
    problems = []
    for token in overrides:
        try:
            is_sweep = composer.parse(token).is_sweep_override()
        except OverrideParseException:
            continue  # reported by explain
        if is_sweep:
            key, _, value = token.partition("=")
            remedy = (
                f"to run them all, add --multirun; a list is written {key}=[{value}], a text with a comma in quotes"
            )
            problems.append(Problem(key, value, "several values for one run", remedy, COMMAND_LINE))
    return problems


def _grammar_problem(composer: Composer, token: str, error: OverrideParseException) -> Problem:
    key, equals, _ = token.partition("=")
    if not equals:
        return explain_word(composer, token)
    reason = redact(first_line(error))
    shown = redact(token).partition("=")[2]
    remedy = grammar_remedy(key, shown)
    if not reason.startswith("Error parsing override"):
        remedy = f"{reason}\n{remedy}"
    return Problem(key, shown, "is not in Hydra's grammar of values", remedy, COMMAND_LINE)


def _choice_problem(composer: Composer, override: Override) -> Problem | None:
    """Return the problem of `group=option`; None if there is none."""
    group, value = override.key_or_group, override.value()
    options = composer.options(group)
    if override.is_delete() or override.is_sweep_override():
        return None
    if override.is_add() or override.is_force_add():
        if group in composer.compose([]).hydra.runtime.choices:
            return Problem(group, value, "is a group that has a choice already", f"write {group}={value}, without +")
        return None
    if group not in composer.compose([]).hydra.runtime.choices:
        return Problem(group, value, f"cvtrain {composer.verb} has no such group", "leave it out")
    if value is None:
        remedy = did_you_mean(f"{group}={option}" for option in closest_options(group, "null", options))
        remedy = "\n".join(filter(None, [remedy, _option_list(options)]))
        return Problem(group, None, "has to be one option of the group", remedy)
    for name in value if isinstance(value, list) else [value]:
        missing = missing_plugin(str(name), options) if group == LAUNCHERS else None
        if missing is not None:
            return missing
        if name not in options:
            remedy = did_you_mean(f"{group}={option}" for option in closest_options(group, str(name), options))
            return Problem(group, name, "no such option", "\n".join(filter(None, [remedy, _option_list(options)])))
    return None


def _option_list(options: list[str]) -> str:
    return textwrap.fill("options: " + ", ".join(options), 100, subsequent_indent="  ", break_on_hyphens=False)


def _try_value(composer: Composer, base: DictConfig, override: Override) -> tuple[DictConfig, Problem | None]:
    """The config with one `key=value` more; or the config as it was, and the problem of the value."""
    try:
        return composer.with_values(base, [override]), None
    except COMPOSITION_ERRORS as error:
        return base, _describe_value(composer, base, override, error)


def _describe_value(composer: Composer, base: DictConfig, override: Override, error: Exception) -> Problem:
    key, value = override.key_or_group, override.value()
    if override.is_delete():
        return Problem(f"~{key}", rule="a setting cannot be taken out", remedy=f"set {key} to another value")
    if override.package is not None:
        return _unknown_group(composer, f"{key}@{override.package}", value)
    if key == "sweep" and composer.verb == "train":
        return Problem(key, value, "a search has a verb of its own", f"did you mean cvtrain sweep sweep={value}?")
    if not _has_key(base, key):
        is_choice = "/" in key
        return _unknown_group(composer, key, value) if is_choice else _unknown(composer, base, key, value)
    if override.is_add():
        group = key.removesuffix(".name")
        meant = f"{group}={value}" if str(value) in composer.options(group) else f"{key}={value}"
        return Problem(f"+{key}", value, "is a setting that is there already", did_you_mean([meant]))
    owners = settings_by_key(composer.verb).get(key)
    if owners is not None:
        item = _owner_in(base, key, owners)
        meaning = item.rule.help if item.rule else ""
        return Problem(key, value, f"must be {item.allowed()}", meaning)
    if isinstance(OmegaConf.select(base, key, throw_on_missing=False), DictConfig):
        return Problem(key, value, "is a section with settings of its own", f"set one of them: {key}.<name>=...")
    return Problem(key, value, first_line(error.__cause__ or error))


def _owner_in(base: DictConfig, key: str, owners: dict[str, Any]) -> Any:
    """The setting as the chosen option has it: options may differ in default and range."""
    node = OmegaConf.select(base, key.rpartition(".")[0]) if "." in key else base
    chosen: Any = OmegaConf.get_type(node)
    for item in settings_of(chosen, key.rpartition(".")[0]):
        if item.key == key:
            return item
    return next(iter(owners.values()))


def _has_key(base: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(base, parent, throw_on_missing=False) if parent else base
    return isinstance(node, DictConfig) and name in list(node)


def _unknown(composer: Composer, base: DictConfig, key: str, value: Any) -> Problem:
    if key.startswith("hydra."):
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(base, parent, throw_on_missing=False)
        names = closest(name, (str(item) for item in node)) if isinstance(node, DictConfig) else []
        return Problem(key, value, "no such setting", did_you_mean(f"{parent}.{item}" for item in names))
    return unknown_key(key, value, composer)


def _unknown_group(composer: Composer, group: str, value: Any) -> Problem:
    return Problem(group, value, "no such config group", did_you_mean(closest(group, composer.groups)))


def _file_problem(composer: Composer, overrides: list[str], error: BaseException) -> Problem:
    """A fault that is not on the command line: in a file of the composition."""
    text = str(error)
    match = re.match(r"In '([^']+)'", text)
    origin = f"in {readable(composer.file_of(match.group(1)))}" if match else ""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f"{readable(Path(mark.name))}, line {mark.line + 1}" if mark else ""
        return Problem(place, rule=f"is not valid YAML: {error.problem}")
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        options = composer.options(group) if group else []
        remedy = did_you_mean(f"{group}={name}" for name in closest(option, options))
        origin = _file_choosing(composer, overrides, group, option) or origin
        return Problem(
            group, option, "no such option", "\n".join(filter(None, [remedy, _option_list(options)])), origin
        )
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _file_value_problem(composer, cause, origin)
    first, _, rest = text.partition("\n")
    return Problem(rule=first, remedy=rest, origin=origin)


def _file_choosing(composer: Composer, overrides: list[str], group: str, option: str) -> str:
    """Return the chosen file with `override /group: option`; Hydra itself names only the primary config."""
    for token in overrides:
        chosen, _, name = token.partition("=")
        result = composer.repository.load_config(f"{chosen}/{name}") if name in composer.options(chosen) else None
        for default in (result.defaults_list if result else None) or []:
            wanted = str(getattr(default, "group", "")).lstrip("/")
            if getattr(default, "override", False) and (wanted, getattr(default, "value", "")) == (group, option):
                return f"in {readable(composer.file_of(f'{chosen}/{name}'))}"
    return ""


def _file_value_problem(composer: Composer, cause: OmegaConfBaseException, origin: str) -> Problem:
    key = str(cause.full_key)
    owners = settings_by_key(composer.verb).get(key)
    if owners is not None and f"Key '{key}'" in str(cause):  # written `optimizer.lr: 1`
        nested = "\n".join(f"{'  ' * depth}{name}:" for depth, name in enumerate(key.split(".")))
        return Problem(
            key, rule="is a dotted key, which files do not have", remedy=f"nest it:\n{nested} ...", origin=origin
        )
    if owners is None or type(cause).__name__ in ("ConfigKeyError", "ConfigAttributeError"):
        problem = unknown_key(key, None, composer)
        return Problem(key, rule=problem.rule, remedy=problem.remedy, origin=origin)
    item = next(iter(owners.values()))
    return Problem(key, rule=f"must be {item.allowed()}", remedy=first_line(cause), origin=origin)
