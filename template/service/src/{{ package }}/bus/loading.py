"""Imports modules of the service; what is broken in one is told with its file and line."""

import importlib
import traceback
from pathlib import Path
from types import ModuleType

from .errors import WiringError

_ENGINE = Path(__file__).parent
_CONFLICT = b"<<<<<<< "


def load(name: str, within: Path) -> ModuleType:
    """Import a module.

    within is the folder whose code is to blame if that fails. Raises WiringError, caused by what
    the module raised.
    """
    try:
        return importlib.import_module(name)
    except WiringError:
        raise
    except Exception as error:
        raise WiringError(what_broke(error, within, name)) from error


def what_broke(error: Exception, within: Path, name: str) -> str:
    """An error that code in a folder raised when it was loaded, with file and line.

    name is told in place of them if they are not known.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return _what_python_cannot_read(error, Path(error.filename))
    return f"{last_line(error, within) or name}: {type(error).__name__}: {error}"


def last_line(error: Exception, within: Path) -> str | None:
    """File and line of the code in a folder that ran last; None if none of it did."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(within) and not path.is_relative_to(_ENGINE):
            return f"{frame.filename}:{frame.lineno}"
    return None


def _what_python_cannot_read(error: SyntaxError, file: Path) -> str:
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if line.startswith(_CONFLICT):
            return (
                f"{file}:{number}: an update or a merge left conflict markers here. Choose between"
                " what is above and what is below the =======, and remove the markers."
            )
    source = f" in {error.text.strip()!r}" if error.text else ""
    return f"{file}:{error.lineno}: {type(error).__name__}: {error.msg}{source}"
