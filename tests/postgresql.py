"""Where the PostgreSQL servers of tests live, which are not to outlive them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

# The pipe ends without a line only if the process at its other end was killed.
_STOP_IF_KILLED = """
read _ && exit
pid=$(head -n 1 "$0/data/postmaster.pid") && kill -QUIT $pid
while kill -0 $pid; do sleep 0.1; done
rm -rf "$0"
"""


@contextmanager
def server_folder(prefix: str = "slicewise-") -> Iterator[Path]:
    """A folder with room for a server in `data`.

    Should this process be killed before it can stop that server, it stops, and the folder goes.
    """
    # Not below pytest's own folder: root's server runs as another user, whom pytest shuts out.
    with TemporaryDirectory(prefix=prefix) as folder:
        command = ["sh", "-c", _STOP_IF_KILLED, folder]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        ) as watcher:
            yield Path(folder)
            watcher.communicate(b"\n")
