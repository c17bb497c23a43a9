"""Where the command begins; `python -m` comes here, too."""

import signal
import sys


def main() -> None:
    """Load the command line and run it: loading takes a while, and may be told to stop as well."""
    if sys.argv[1:2] in (["run"], ["worker"]):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    from . import cli

    cli.main()


if __name__ == "__main__":
    main()
