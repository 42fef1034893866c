"""Start one process a GPU, as torchrun does, but within this session and with this standard input for all of them.

python -m hw_validation.ranks 2 -- python -m hw_validation.vllm_sweep --tensor-parallel-size 2 ...

A campaign ends a job by ending its session, and tells it to go on by a line of standard input; torchrun gives
every rank a session of its own and the line to only one of them. When a rank fails, the others are stopped.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

_POLL_S = 0.05
_PATIENCE_S = 5.0
_FINE = (0, 3)


def start_ranks(count: int, command: list[str]) -> list[subprocess.Popen[bytes]]:
    """`count` processes of `command` on this machine, with the variables that torch's env:// rendezvous reads."""
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    return [
        subprocess.Popen(command, stdin=subprocess.PIPE, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]


def wait_for_ranks(processes: list[subprocess.Popen[bytes]]) -> int:
    """The first failure's exit code, else the largest. When a rank fails, the others have 5 s to end by themselves."""
    failed_s: float | None = None
    code = 0
    while None in (codes := [process.poll() for process in processes]):
        bad = [each for each in codes if each is not None and each not in _FINE]
        if bad and failed_s is None:
            failed_s, code = time.monotonic(), bad[0]
        if failed_s is not None and time.monotonic() - failed_s > _PATIENCE_S:
            for process in processes:
                process.kill()
        time.sleep(_POLL_S)
    ended = [process.wait() for process in processes]
    return code or next((each for each in ended if each not in _FINE), max(ended))


def _copy_input(processes: list[subprocess.Popen[bytes]]) -> None:
    for line in sys.stdin.buffer:
        for process in processes:
            with contextlib.suppress(BrokenPipeError, ValueError):
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
    for process in processes:
        with contextlib.suppress(BrokenPipeError, ValueError):
            assert process.stdin is not None
            process.stdin.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line's command on as many ranks as it says."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) < 3 or not words[0].isdigit() or int(words[0]) < 1 or words[1] != "--":
        print("usage: python -m hw_validation.ranks COUNT -- COMMAND ...", file=sys.stderr)
        return 2
    processes = start_ranks(int(words[0]), words[2:])
    threading.Thread(target=_copy_input, args=(processes,), daemon=True).start()
    code = wait_for_ranks(processes)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    os._exit(exit_code)  # the thread may still wait for input
