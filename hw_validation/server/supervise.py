"""Runs a command in a process group of its own and stops the whole group when the parent is gone, however it went.

python -m hw_validation.server.supervise -- COMMAND...

The parent holds the other end of this process's standard input. Its end (also by SIGKILL) closes the pipe; then the
group gets SIGTERM, and SIGKILL after ten seconds. A server left behind would keep the GPU's memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

_GRACE_S = 10.0


def stop_group(process: subprocess.Popen[bytes], grace_s: float = _GRACE_S) -> None:
    """Terminate all processes of the group that `process` leads; returns when none is left."""
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and (process.poll() is None or group_alive(process.pid)):
        time.sleep(0.05)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def group_alive(group: int) -> bool:
    """Whether any process of the group runs (zombies count until they are waited for)."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command after `--`; returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] != ["--"] or len(words) < 2:
        print("usage: python -m hw_validation.server.supervise -- COMMAND...", file=sys.stderr)
        return 2
    process = subprocess.Popen(words[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop_group(process))
    threading.Thread(target=_watch_parent, args=(process,), daemon=True).start()
    code = process.wait()
    stop_group(process, grace_s=0.0)
    return code


def _watch_parent(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    stop_group(process)


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main())
