"""How a process of the service begins: forked from one that has imported the service already."""

import ctypes
import importlib
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path


def begin(
    program: str,
    arguments: list[str],
    code: Path,
    environment: dict[str, str],
    output: "Connection[bytes, bytes]",
) -> None:
    """Call a module's `main`, as `python -m` would, with these arguments and no environment else.

    What it prints goes to output.
    """
    _heed_permissions()
    os.chdir(code)
    os.environ.clear()
    os.environ.update(environment)
    for printed in (1, 2):
        os.dup2(output.fileno(), printed)
    output.close()
    sys.path.insert(0, str(code / "src"))
    sys.argv = [program, *arguments]
    importlib.import_module(program).main()


def _heed_permissions() -> None:
    """For root, who would write what is read-only: gives up just that (CAP_DAC_OVERRIDE)."""
    libc = ctypes.CDLL(None)
    # Version 3, this thread; effective, permitted and inheritable, twice.
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for one in (0, 1):
        sets[one] &= ~(1 << 1)
    libc.capset(header, sets)
