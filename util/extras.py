"""Imports packages that only one dataset needs."""

import importlib
from typing import Any

from util.errors import UserError


def extra_module(name: str, purpose: str) -> Any:
    """Imports a module of a package that requirements.txt leaves out.

    Args:
        purpose: what needs it, for the error.

    Raises:
        UserError: if the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".", maxsplit=1)[0]
        raise UserError(
            f"{purpose} needs the package {package}, which is not installed; run: pip install {package}"
        ) from None
