"""The closest right name for a wrong one."""

import difflib
from collections.abc import Iterable

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
    if "." not in key and OTHER_NAMES.get(last) in keys:
        return [OTHER_NAMES[last]]
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
