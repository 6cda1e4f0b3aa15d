"""Typed command-line options, with a YAML file of defaults under them."""

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml

from util.errors import did_you_mean
from util.files import read_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def int_in(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer in [low, high]; no upper bound where ``high`` is None."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got '{text}'") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be {_range_words(low, high)}, got {text}")
        return value

    return parse


def float_in(low: float, high: float | None = None, exclusive: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number in [low, high], or strictly between them if ``exclusive``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, got '{text}'") from None
        ceiling = float("inf") if high is None else high
        inside = low < value < ceiling if exclusive else low <= value <= ceiling and value != float("inf")
        if not inside:  # NaN compares false, so it ends here as well
            raise argparse.ArgumentTypeError(f"must be {_range_words(low, high, exclusive)}, got {text}")
        return value

    return parse


def _range_words(low: float, high: float | None, exclusive: bool = False) -> str:
    if high is None:
        return f"above {low:g}" if exclusive else f"at least {low:g}"
    return f"between {low:g} and {high:g}" + (", both excluded" if exclusive else "")


def add_flag(parser: argparse._ActionsContainer, name: str, default: bool | None, help: str) -> None:
    """Adds an on/off flag to a parser or a group of one: ``--name`` turns it on, ``--no-name`` off."""
    parser.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=help)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults except None, which the help texts explain themselves."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class OptionParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` with ``--config file.yaml`` and errors that name the remedy.

    The YAML file has one key per flag. Its values replace the defaults and are checked as on the command line; flags
    given there win. Unknown flags and keys are errors that suggest the nearest known name.

    Args:
        removed: flags of the original program that no longer exist, each with what to use instead.
    """

    def __init__(self, *args: Any, removed: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        # No abbreviations: a new flag would change the meaning of an old command.
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)
        self.removed = dict(removed or {})
        self.add_argument(
            "--config",
            default=None,
            metavar="FILE",
            help="YAML file of 'flag: value' lines; flags on the command line win",
        )

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line and exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}; --help lists the flags\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", nargs="?")  # without a value the real parser reports the error
        config = finder.parse_known_args(args)[0].config
        if config is not None:
            self._take_defaults_from(Path(config))
        self._refuse_unknown_flags(sys.argv[1:] if args is None else args)
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0])
        return options

    def _refuse_unknown_flags(self, args: Sequence[str]) -> None:
        """Names an unknown flag first: argparse itself would say that the flag it was meant for is missing."""
        for argument in itertools.takewhile(lambda one: one != "--", args):
            if argument.startswith("--") and argument.partition("=")[0] not in self._option_string_actions:
                self._refuse(argument)

    def _refuse(self, argument: str) -> None:
        flag = argument.partition("=")[0]
        removed = flag.replace("--no-", "--", 1)
        if removed in self.removed:
            self.error(f"{removed} was removed: {self.removed[removed]}")
        self.error(f"unrecognized argument: {argument}{did_you_mean(flag, self._option_string_actions)}")

    def _take_defaults_from(self, path: Path) -> None:
        try:
            values = yaml.safe_load(read_text(path))
        except OSError as error:
            self.error(f"--config {path}: cannot be read ({error.strerror}); give an existing YAML file")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"--config {path}: not valid YAML ({' '.join(str(error).split())})")
        if values is None:
            values = {}
        if not isinstance(values, dict):
            self.error(f"--config {path}: must hold 'flag: value' lines, got a {type(values).__name__}")
        known = {a.dest: a for a in self._actions if a.option_strings and a.dest not in ("help", "config")}
        for key, value in values.items():
            if f"--{key}" in self.removed:
                self.error(f"{path}: {key} was removed: {self.removed[f'--{key}']}")
            if key not in known:
                self.error(f"{path}: unknown key '{key}'{did_you_mean(str(key), known)}")
            action = known[key]
            if value is None and action.required:
                continue  # an empty entry of a template: the flag is still required
            self.set_defaults(**{key: self._checked(path, action, value)})
            action.required = False

    def _checked(self, path: Path, action: argparse.Action, value: Any) -> Any:
        """Parses a YAML value as the flag itself would."""
        if isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                self.error(f"{path}: {action.dest} must be true or false, got '{value}'")
            return value
        if value is None and action.default is None:
            return None
        if isinstance(action.nargs, int) and (not isinstance(value, list) or len(value) != action.nargs):
            self.error(f"{path}: {action.dest} must be a list of {action.nargs} entries, got {value!r}")
        if action.nargs in ("+", "*") or isinstance(action.nargs, int):
            if isinstance(value, dict):  # name: number, as the command line's name=number
                value = [f"{name}={number}" for name, number in value.items()]
            if isinstance(value, str | int | float) and not isinstance(value, bool):  # one entry
                value = [value]
            if not isinstance(value, list) or (action.nargs == "+" and not value):
                self.error(f"{path}: {action.dest} must be a list with at least one entry, got {value!r}")
            return [self._checked_scalar(path, action, entry) for entry in value]
        return self._checked_scalar(path, action, value)

    def _checked_scalar(self, path: Path, action: argparse.Action, value: Any) -> Any:
        if isinstance(value, bool | dict | list) or value is None:
            self.error(f"{path}: {action.dest} takes one plain value, got {value!r}")
        try:
            # Through text, as on the command line: YAML reads 5e-5 as a string, 480 as an int.
            parsed = self._get_value(action, str(value))
            self._check_value(action, parsed)
        except argparse.ArgumentError as error:
            self.error(f"{path}: {action.dest} {error.message}")
        return parsed


def from_flags(kind: type[Options], flags: argparse.Namespace, **derived: Any) -> Options:
    """Builds a dataclass of options: each field from the flag of the same name, or from ``derived``."""
    named = {field.name: getattr(flags, field.name) for field in fields(kind) if field.name not in derived}
    return kind(**named, **derived)
