"""A process of its own for native DICOM codecs: a crash or a hang in one ends in an error that names the file.

Uncompressed and RLE pixels are decoded by pydicom in plain Python and NumPy, here. Every other transfer syntax reaches
C or C++ libraries (OpenJPEG, GDCM) that have crashed on damaged input before, so a child process decodes it. Children
stay for the next image (starting one takes about 0.3 s) and end with this process, because their standard input closes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import numpy as np
from pydicom.uid import RLELossless

from shared.errors import UnreadableImageError
from shared.imaging.dicom import read_dicom, transfer_syntax
from shared.imaging.pixels import Pixels, unreadable

#: A mammogram takes 1 s; a decoder that works for longer than this hangs.
DEADLINE_S = 120.0

_START = "import json,sys; sys.path[:] = json.loads(sys.argv[1]); from shared.imaging.decoder import serve; serve()"


class _Child:
    """One decoding process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def decode(self, path: Path, frame: int) -> Pixels:
        """Raises UnreadableImageError; EOFError where the child died or was stopped at the deadline."""
        source, sink = self._process.stdin, self._process.stdout
        assert source is not None and sink is not None
        timer = threading.Timer(DEADLINE_S, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            source.write(json.dumps([str(path), frame]).encode() + b"\n")
            source.flush()
            header = json.loads(_line(sink))
            if "error" in header:
                raise UnreadableImageError(header["error"])
            array = np.empty(header["shape"], header["dtype"])
            _fill(sink, array.data.cast("B"))
        except BrokenPipeError:
            raise EOFError from None
        finally:
            timer.cancel()
        return Pixels(array, header["bits"], header["photometric"])

    def end(self) -> str:
        """Stop the process; says how it ended."""
        if self.owner != os.getpid():  # inherited through fork: it belongs to the parent
            return "inherited"
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


_idle: list[_Child] = []
_guard = threading.Lock()


def decode_dicom(path: Path, frame: int = 0) -> Pixels:
    """`read_dicom`, with native codecs kept in a child process. Raises UnreadableImageError naming the file."""
    syntax = transfer_syntax(path)
    if syntax is None or not syntax.is_transfer_syntax or not syntax.is_compressed or syntax == RLELossless:
        return read_dicom(path, frame)
    with _guard:
        child = _idle.pop() if _idle else None
    if child is None or child.owner != os.getpid():
        child = _Child()
    try:
        pixels = child.decode(path, frame)
    except EOFError:
        ending = child.end()
        raise unreadable(path, f"the decoder of '{syntax.name}' {ending} while it worked on this file") from None
    except UnreadableImageError:
        _give_back(child)
        raise
    except BaseException:
        child.end()  # its pipe is out of step, so that it is of no more use
        raise
    _give_back(child)
    return pixels


def close_decoders() -> None:
    """End the idle children. They start again when needed."""
    with _guard:
        children, _idle[:] = list(_idle), []
    for child in children:
        child.end()


atexit.register(close_decoders)


def _give_back(child: _Child) -> None:
    with _guard:
        _idle.append(child)


def _line(sink: IO[bytes]) -> bytes:
    line = sink.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return line


def _fill(sink: IO[bytes], view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = sink.readinto(view[done:])  # type: ignore[attr-defined]  # a BufferedReader, which typeshed does not say
        if not count:
            raise EOFError
        done += count


def serve() -> None:
    """The child's loop: a line [path, frame] in, a line of JSON and the pixels' bytes out, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes standard input
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a codec prints must not get between the answers
    for line in sys.stdin.buffer:
        path, frame = json.loads(line)
        try:
            pixels = read_dicom(Path(path), frame)
        except UnreadableImageError as problem:
            answers.write(json.dumps({"error": str(problem)}).encode() + b"\n")
        else:
            shape, dtype = pixels.array.shape, pixels.array.dtype.str
            header = {"shape": shape, "dtype": dtype, "bits": pixels.bits, "photometric": pixels.photometric}
            answers.write(json.dumps(header).encode() + b"\n")
            answers.write(pixels.array.data.cast("B"))
        answers.flush()
