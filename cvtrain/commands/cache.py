"""The verb `cache`: lists the caches of decoded images on disk, and removes them. Needs no torch."""

import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path

from cvtrain import __version__
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.root import CacheConfig, Clean
from cvtrain.data.cache.entry import Entry
from cvtrain.data.cache.folder import CacheFolder, default_folder


def cache(config: CacheConfig) -> list[Entry]:
    """List the caches in a folder, or remove those that `config.clean` says. Those that a run uses stay.

    Returns:
        What was listed or removed, the longest unused first.

    Raises:
        ConfigError: the folder cannot be read or written.
    """
    folder = CacheFolder(Path(config.cache_dir).expanduser() if config.cache_dir else default_folder())
    try:
        entries = folder.entries()
        if config.clean is not None:
            chosen = entries if config.clean is Clean.all else [entry for entry in entries if stale_reason(entry)]
            entries = folder.remove(chosen) if chosen else []
            for entry in chosen:
                if entry not in entries:
                    print(f"in use, so it stays: {describe_entry(entry)}")
    except OSError as error:
        raise ConfigError(key="cache_dir", value=folder.path, rule=f"cannot be used: {error}") from error
    for line in describe_entries(entries, folder.path, removed=config.clean is not None):
        print(line)
    return entries


def stale_reason(entry: Entry) -> str:
    """Why no run can use the cache again, in words; empty if one may."""
    if entry.damage:
        return f"damaged: {entry.damage}"
    if not Path(entry.description.get("root", "")).is_dir():
        return "its images are gone"
    pixels = entry.description.get("pixels", {})
    if pixels.get("cvtrain") != __version__:
        return f"of cvtrain {pixels.get('cvtrain')}"
    for name in ("torch", "pillow"):
        made_with = pixels.get("versions", {}).get(name)
        if made_with != importlib.metadata.version(name):
            return f"of {name} {made_with}"
    return ""


def describe_entries(entries: Sequence[Entry], folder: Path, *, removed: bool) -> list[str]:
    """A line per cache and one for all."""
    total = sum(entry.num_bytes for entry in entries) / 2**30
    noun = "cache" if len(entries) == 1 else "caches"
    lines = [describe_entry(entry) for entry in entries]
    return [*lines, f"{'removed ' if removed else ''}{len(entries)} {noun}, {total:.2f} GiB, in {folder}"]


def describe_entry(entry: Entry) -> str:
    """`0.06 GiB  244 train images of /photos at 256 pixels  used 3 h ago`."""
    description = entry.description
    content = "unknown images"
    if not entry.damage:
        form = description.get("form", {})
        content = (
            f"{description['num_images']} {description.get('split', '')} images of {description.get('root', '')}, "
            f"{form.get('resize')} at {form.get('short_side')} pixels"
        )
    stale = stale_reason(entry)
    used = "in use" if entry.is_used else f"used {format_age(time.time() - entry.last_used)} ago"
    return f"{entry.num_bytes / 2**30:8.2f} GiB  {content}  {used}{f'  stale: {stale}' if stale else ''}"


def format_age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
