"""Where the command begins; `python -m` comes here, too."""

import signal
import sys
from pathlib import Path

# What a shell takes for: ended by Ctrl-C.
_INTERRUPTED = 130


def main() -> None:
    """Load the command line and run it: loading takes a while, and may be told to stop as well."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _run() -> None:
    if sys.argv[1:2] in (["run"], ["worker"]):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if sys.argv[1:2] == ["template"]:
        # It does without the rest, in which an update may have left conflicts.
        from .cli_template import template

        template(sys.argv[2:], prog_name=f"{Path(sys.argv[0]).name} template")
    from . import cli

    cli.main()


if __name__ == "__main__":
    main()
