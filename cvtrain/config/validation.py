"""Check a composed config against its dataclasses: known names, set values, ranges."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from cvtrain.config.composer import Composer
from cvtrain.config.errors import Problem
from cvtrain.config.hints import OTHER_NAMES, closest, closest_keys, did_you_mean
from cvtrain.config.reflection import Setting, breaks_rule, is_missing, settings_by_key, settings_of
from cvtrain.config.text import first_line


def find_rule_problems(cfg: DictConfig, composer: Composer) -> list[Problem]:
    """Return every setting that is unknown, not set, unresolvable or out of its range.

    OmegaConf checks types while it composes. But it lets `+optimizer.lrr=1` add a key to a dataclass, and knows no
    ranges.
    """
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    raw.pop("hydra", None)
    return list(_walk(cfg, raw, "", composer))


def _walk(node: DictConfig, raw: dict[Any, Any], prefix: str, composer: Composer) -> Iterator[Problem]:
    """Yield the problems of a section, whose values are `raw` before interpolation."""
    schema: Any = OmegaConf.get_type(node)
    settings = {item.key: item for item in settings_of(schema, prefix)}
    for name, value in raw.items():
        key = f"{prefix}.{name!s}" if prefix else str(name)
        if name not in {field.name for field in fields(schema)}:
            yield unknown_key(key, value, composer)
        elif key in settings:
            yield from _check_setting(node, str(name), value, settings[key])
        elif isinstance(value, dict):
            yield from _walk(node[name], value, key, composer)


def _check_setting(node: DictConfig, name: str, raw: Any, item: Setting) -> Iterator[Problem]:
    if is_missing(raw):
        meaning = item.rule.help if item.rule else ""
        yield Problem(item.key, rule=f"has to be set: {meaning}", remedy=f"set {item.key}=...")
        return
    try:
        value = node[name]
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except InterpolationToMissingValueError:
        return  # the missing value is reported by itself
    except OmegaConfBaseException as error:
        yield Problem(item.key, raw, "cannot be resolved", first_line(error))
        return
    if item.rule is not None and plain is not None and not item.is_open() and breaks_rule(plain, item.rule):
        yield Problem(item.key, plain, f"must be {item.allowed()}", item.rule.help)


def unknown_key(key: str, value: Any, composer: Composer) -> Problem:
    """The problem of a key that the composed config does not have: it belongs to other options, or it is misspelt."""
    known = settings_by_key(composer.verb)
    if key in known:
        owners = owners_of(key, composer)
        rule = f"has no effect here: {key.rpartition('.')[2]} belongs to {owners}"
        remedy = f"choose {owners.split(', ')[0]}, or leave {key} out"
        other = OTHER_NAMES.get(key.rpartition(".")[2], key)
        if other != key and other.partition(".")[0] == key.partition(".")[0]:
            remedy = f"{did_you_mean([other])}\n{remedy}"
        return Problem(key, value, rule, remedy)
    if "." not in key and isinstance(value, str):
        groups = closest(key, [group for group in composer.groups if not group.startswith("hydra")])
        if groups and value in composer.options(groups[0]):
            return Problem(key, value, "no such setting or group", did_you_mean([f"{groups[0]}={value}"]))
    group, _, last = key.rpartition(".")
    if last == "name" and str(value) in composer.options(group):
        return Problem(key, value, "no such setting", did_you_mean([f"{group}={value}"]))
    sections = sorted({name.rpartition(".")[0] for name in known if "." in name})
    names = closest_keys(key, [*known, *sections])
    if not names or names[0] in sections:
        part = f" -p {names[0]}" if names and composer.verb == "train" else ""
        verb = "" if composer.verb == "train" else f"{composer.verb} "
        return Problem(key, value, "no such setting", f"cvtrain {verb}--cfg job{part} shows what there is")
    return Problem(key, value, "no such setting", did_you_mean(names))


def owners_of(key: str, composer: Composer) -> str:
    """The options that have a key, such as `optimizer=sgd, rmsprop, muon`."""
    schemas = list(settings_by_key(composer.verb)[key])
    group = schemas[0].partition("/")[0]
    ranked = []
    for name in composer.options(group):
        schema = f"{group}/{composer.schema_of(group, name)}"
        if schema in schemas:
            # The option that carries the schema's own name leads: model=torchvision before the networks by name.
            ranked.append((schema != f"{group}/{name}", schemas.index(schema), name))
    names = [name for _, _, name in sorted(ranked)]
    if len(names) > 6:
        names = [*names[:6], "..."]
    return f"{group}={', '.join(names)}"
