"""From a `TransformSpec` and a library's class to an instance, with errors that name the config key."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.text import first_line
from cvtrain.config.transform_specs import TransformSpec, closest_names

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


class Arguments:
    """Reads the arguments of one library's transforms.

    Args:
        library: its name, for errors.
        image_size: S, side of the final image in pixels; None if it is not known.
        filled: argument to value, given to a transform that changes sizes when the config leaves it out.
        sizing: the transforms to which `filled` applies.
        hidden: arguments that a config may not set.
        convert: (argument, value, key) -> value: enums by name, tuples for lists.
        certain: give every transform probability 1, so that a probe runs all of them.
    """

    def __init__(
        self,
        *,
        library: str,
        image_size: int | None,
        filled: Mapping[str, Any],
        sizing: tuple[str, ...],
        hidden: frozenset[str] = frozenset(),
        convert: Callable[[str, Any, str], Any],
        certain: bool = False,
    ) -> None:
        self.library = library
        self.image_size = image_size
        self.filled = filled
        self.sizing = sizing
        self.hidden = hidden
        self.convert = convert
        self.certain = certain

    def read(self, spec: TransformSpec, cls: type, *, given: tuple[str, ...] = ()) -> dict[str, Any]:
        """Keyword arguments for `cls`: those of the spec, checked by name, in the library's own types.

        Args:
            given: arguments that the caller adds itself.

        Raises:
            ConfigError: an argument is unknown, missing, or not to be converted; one problem for each.
        """
        parameters = self._parameters(cls)
        accepted = [name for name in parameters if name not in given]
        problems = [self._unknown(spec, name, accepted) for name in spec.arguments if name not in accepted]
        if problems:
            raise ConfigError(problems=problems)
        values = {
            name: self.convert(name, self._pixels(value, f"{spec.key}.{name}"), f"{spec.key}.{name}")
            for name, value in spec.arguments.items()
        }
        if spec.name in self.sizing:
            values = {**{name: value for name, value in self.filled.items() if name in accepted}, **values}
        missing = [
            name for name in accepted if name not in values and parameters[name].default is inspect.Parameter.empty
        ]
        if missing:
            rule = f"{spec.name} of {self.library} needs {' and '.join(missing)}"
            raise ConfigError(spec.key, rule=rule, remedy=f"write {spec.name}: {{{missing[0]}: ...}}")
        if self.certain and "p" in accepted and isinstance(parameters["p"].default, (int, float)):
            values["p"] = 1.0
        return values

    def _parameters(self, cls: type) -> dict[str, inspect.Parameter]:
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {
            name: parameter
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.kind not in variadic and name not in self.hidden
        }

    def _unknown(self, spec: TransformSpec, name: str, accepted: list[str]) -> Problem:
        close = closest_names(name, accepted)
        remedy = f"closest: {', '.join(close)}; " if close else ""
        remedy += f"it takes {', '.join(accepted)}" if accepted else "it takes none"
        rule = f"{spec.name} of {self.library} takes no argument {name}"
        return Problem(f"{spec.key}.{name}", spec.arguments[name], rule, remedy)

    def _pixels(self, value: Any, key: str) -> Any:
        """`value` with each `12.5%` in it as that share of the image's side, in whole pixels."""
        if isinstance(value, (list, tuple)):
            return [self._pixels(item, key) for item in value]
        if isinstance(value, dict):
            return {name: self._pixels(item, key) for name, item in value.items()}
        share = _PERCENT.fullmatch(value) if isinstance(value, str) else None
        if share is None:
            return value
        if self.image_size is None:
            raise ConfigError(key, value, "is a share of an image size that is not known", "give it in pixels")
        return round(float(share.group(1)) / 100 * self.image_size)


def construct(
    spec: TransformSpec, cls: Callable[..., Any], values: Mapping[str, Any], *, library: str, **extra: Any
) -> Any:
    """Return `cls(**values)`, or raise a `ConfigError` with the library's message."""
    try:
        return cls(**values, **extra)
    except ConfigError:
        raise
    except Exception as error:
        rule = f"{library} refuses these arguments: {first_line(error)}"
        raise ConfigError(spec.key, dict(spec.arguments), rule) from error


def library_class(module: Any, spec: TransformSpec, library: str, version: str) -> type:
    """Return the class that a spec names, or raise an error with the version of the library that lacks it."""
    cls = getattr(module, spec.name, None)
    if cls is None:
        rule = f"{library} {version}, which is installed, has no {spec.name}"
        raise ConfigError(spec.key, rule=rule, remedy=f"install a newer {library}")
    return cls
