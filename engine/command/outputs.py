"""stdout and stderr that outlive their readers, and take every letter.

A training of days must not end because the terminal of its start was closed, the `head` behind it has seen
enough, or the disk of its log is full: its results are in files.
"""

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


def outlive_readers() -> None:
    """Let prints of this process go nowhere, instead of raising, once nobody can read them any more."""
    sys.stdout = _lasting(sys.stdout, _tell)
    sys.stderr = _lasting(sys.stderr, _ignore)


def _tell() -> None:
    print("nobody reads the output any more; the work goes on, and its results are in files", file=sys.stderr)


def _ignore() -> None:
    pass


def _lasting(stream: TextIO | None, tell: Callable[[], None]) -> TextIO:
    if stream is None:  # started with the stream closed, as by `>&-`
        return open(os.devnull, "w", encoding="utf-8")
    # Another program, such as a notebook or a test, has put its own stream there.
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = _Lasting(stream, tell)
    # A question mark for a letter that the terminal's encoding lacks is better than no line. UTF-8 has all
    # letters; what it cannot write is half of a pair, out of a file name that is no UTF-8.
    utf_8 = codecs.lookup(stream.encoding).name == "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace" if utf_8 else "replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Lasting(io.RawIOBase):
    """Bytes to the file of a stream; from its first error on they are dropped.

    Args:
        stream: it is kept, since with it its file would be closed.
        tell: called once, at the first error.
    """

    def __init__(self, stream: TextIO, tell: Callable[[], None]) -> None:
        self._stream, self._file, self._tell = stream, stream.fileno(), tell
        self._gone = False

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._file

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._file)

    def write(self, data: Any, /) -> int:
        """Write some or all of the bytes; how many."""
        if not self._gone:
            try:
                return os.write(self._file, data)
            except OSError:
                self._gone = True
                self._tell()
        return len(data)
