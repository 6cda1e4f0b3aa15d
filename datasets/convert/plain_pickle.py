"""Reads pickles of plain data so that nothing in them can run."""

import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from util.errors import MissingFileError, UserError

# Plain data needs none of these: each makes, fills or names an object of some class.
CODE_OPCODES = {
    *("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX"),
    *("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"),
}


def read_plain_pickle(file: Path) -> Any:
    """Reads lists, dictionaries, strings and numbers from a pickle; strings of Python 2 as Latin-1.

    Raises:
        UserError: if the file is missing, damaged, or names anything that would be called.
    """
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file; download it")
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # other bytes raise all kinds of errors
        if _holds_code(file):
            raise UserError(
                f"{file}: must be a pickle of lists, dictionaries, texts and numbers, but holds code, which was not "
                "run; download the file again from a source that you trust"
            ) from None
        raise UserError(f"{file}: damaged or not a pickle ({error}); download the file again") from None


class _PlainUnpickler(pickle.Unpickler):
    """Looks up no class and no function; without them no opcode can call anything."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"names {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"names the object {pid}")


def _holds_code(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return any(opcode.name in CODE_OPCODES for opcode, _, _ in pickletools.genops(stream))
    except Exception:  # damaged before such an opcode
        return False
