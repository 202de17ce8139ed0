"""Writes docs/config.md, the reference of every setting, from the dataclasses in cvtrain/config and the files in conf/.

python scripts/config_reference.py            write docs/config.md
python scripts/config_reference.py --check    exit with 1 if docs/config.md is not what would be written
"""

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cvtrain.config.composer import conf_dir  # noqa: E402
from cvtrain.config.errors import format_value  # noqa: E402
from cvtrain.config.reflection import Setting, is_missing, own_settings, settings_of  # noqa: E402
from cvtrain.config.schema.root import GROUP_SCHEMAS, VERBS  # noqa: E402

TARGET = ROOT / "docs" / "config.md"
INTRODUCTION = """\
# Every setting

Written by `scripts/config_reference.py` from the dataclasses in `cvtrain/config`; a test keeps it true.

A setting is written `key=value` on the command line, and as a nested mapping in a YAML file. `group=option` chooses a
part: `model=resnet50 data=custom`. The default shown is the dataclass's; an option's own file in `conf/` may set
another, and `cvtrain ... --cfg job` shows what a command comes to. A value out of its range, an unknown key and a
setting without effect are refused before anything is made: see [errors.md](errors.md).
"""
GROUP_WORDS = {
    "data": "where images and labels come from, and how they become batches",
    "augment": "what is done to training images",
    "model": "the network, its weights and what of it trains",
    "optimizer": "how weights move",
    "scheduler": "the learning rate over the run, per optimizer step",
    "loss": "what is minimised",
    "logger": "where metrics go besides the run folder; several may be on",
    "experiment": "whole recipes, each with what it reached",
    "debug": "quick looks: put one after any command",
}
# Schemas that several options share.
SCHEMA_TITLES = {
    "data/torchvision": "data=mnist and the other sets by name",
    "model/torchvision": "model=torchvision and the networks by name",
}


def reference() -> str:
    """The text of docs/config.md."""
    parts = [INTRODUCTION, "## The run\n", *_verb_tables()]
    for group, words in GROUP_WORDS.items():
        parts += [f"## {group}: {words}\n", _option_list(group)]
        schemas = GROUP_SCHEMAS.get(group, {})
        parts += _logger_tables() if group == "logger" else list(_group_tables(group, schemas))
    for verb in ("check", "sweep", "evaluate", "predict", "merge", "report", "reproduce", "export", "serve", "cache"):
        parts += [f"## cvtrain {verb}\n", _table(own_settings(verb))]
    return "\n".join(parts)


def _verb_tables() -> list[str]:
    own = [item for item in settings_of(VERBS["train"]) if item.key.partition(".")[0] not in GROUP_SCHEMAS]
    top = [item for item in own if "." not in item.key]
    sections = sorted({item.key.partition(".")[0] for item in own if "." in item.key}, reverse=True)
    tables = [_table(top)]
    for section in sections:
        tables += [f"### {section}\n", _table([item for item in own if item.key.startswith(f"{section}.")])]
    return tables


def _group_tables(group: str, schemas: dict[str, type]) -> Iterator[str]:
    """One table of what all options share, then one per option with what it adds or changes."""
    listed = {name: list(settings_of(schema, group)) for name, schema in schemas.items()}
    if not listed:
        return
    if len(listed) == 1:
        yield _table(next(iter(listed.values())))
        return
    shared = list(settings_of(_shared_base(schemas), group))
    yield "Shared by all:\n"
    yield _table(shared)
    for name, items in listed.items():
        own = [item for item in items if item not in shared and not item.key.endswith(".name")]
        if own:
            yield f"### {SCHEMA_TITLES.get(f'{group}/{name}', f'{group}={name}')}\n"
            yield _table(own)


def _shared_base(schemas: dict[str, type]) -> type:
    first, *others = schemas.values()
    return next(base for base in first.__mro__ if all(issubclass(other, base) for other in others))


def _logger_tables() -> list[str]:
    tables = []
    for name, schema in GROUP_SCHEMAS["logger"].items():
        items = list(settings_of(schema, f"logger.{name}"))
        if items:
            tables += [f"### logger={name}\n", _table(items)]
    return tables


def _option_list(group: str) -> str:
    lines = ["| option | what it is |", "|---|---|"]
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        lines.append(f"| `{group}={file.stem}` | {_first_sentence(file)} |")
    return "\n".join(lines) + "\n"


def _first_sentence(file: Path) -> str:
    """The comment at the head of an option's file, up to its first blank line."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or line == "#":
            break
        words.append(line[1:].strip())
    return " ".join(words).replace("|", "\\|")


def _table(items: list[Setting]) -> str:
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for item in items:
        default = "required" if is_missing(item.default) else f"`{_short(format_value(item.default))}`"
        meaning = item.rule.help if item.rule else ""
        lines.append(f"| `{item.key}` | {default} | {item.allowed()} | {meaning} |".replace("\\", "\\\\"))
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    return text if text else "''"


def main() -> None:
    text = reference()
    if "--check" in sys.argv[1:]:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if current != text:
            sys.exit("docs/config.md is not true any more: run python scripts/config_reference.py")
        return
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
