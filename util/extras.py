"""Packages that one dataset alone needs."""

import importlib
from typing import Any

from util.errors import UserError


def extra_module(name: str, purpose: str) -> Any:
    """A module of a package that requirements.txt leaves out.

    Args:
        purpose: what needs it, for the message.

    Raises:
        UserError: if the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".", maxsplit=1)[0]
        raise UserError(f"{purpose} needs the package {package}, which is absent; pip install {package}") from None
