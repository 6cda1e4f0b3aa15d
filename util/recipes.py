"""Finds how a folder is made that a recipe of ``configs/`` names: the first lines of a recipe hold its commands."""

from pathlib import Path

from util.files import read_text

RECIPES = Path(__file__).parents[1] / "configs"


def how_to_make(path: str) -> str | None:
    """Returns the advice for a missing folder: the command that makes it, or where it is; None if none is known.

    Args:
        path: as the user or the recipe wrote it.
    """
    for recipe in sorted(RECIPES.glob("*.yaml")):
        for line in read_text(recipe).splitlines():
            if line.startswith("# python ") and f" --out {path} " in f"{line} ":
                return f"make it, as configs/{recipe.name} says, with: {line.removeprefix('# ')}"
    own = RECIPES.parent / path
    if path and own.is_dir() and not Path(path).exists():
        return f"it is in the folder of FlowRVS's code: run this program there, or give {own}"
    return None
