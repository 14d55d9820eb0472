"""What is done: one verb a file, one Make target a verb."""

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted before it began\n")
    os._exit(128 + number)


if sys.argv[0] == "-m":  # being started: the imports take seconds, and the command's own handlers come after them
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _leave)
