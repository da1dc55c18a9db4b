"""An HTTP proxy of a hospital, as far as CONNECT goes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def proxy(answer: Callable[[str, list[str]], bytes | None]) -> Iterator[tuple[int, list[str]]]:
    """An HTTP proxy: `answer(target, headers)` is its refusal, or None to connect. Yields its port and what it was asked for."""
    asked: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while piece := one.recv(65536):
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve(client: socket.socket) -> None:
        with client:
            head = b""
            while not head.endswith(b"\r\n\r\n") and (piece := client.recv(1)):
                head += piece
            line, *headers = head.decode().strip().split("\r\n")
            target = line.split(" ")[1]
            asked.append(line)
            if (refusal := answer(target, headers)) is not None:
                client.sendall(refusal)
                return
            with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as onward:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(onward, client))
                back.start()
                pump(client, onward)
                back.join()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
