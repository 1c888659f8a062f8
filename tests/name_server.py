"""A DNS server on 127.0.0.1 that answers every question for an address with the addresses it is told, like a headless
Service of Kubernetes does."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence
from typing import Self

_TYPE_A = 1


class NameServer:
    """`addresses` may change while it runs. `url(port)` is a gRPC target of some name, resolved here."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def url(self, port: int) -> str:
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/frontrow.test:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                query, asker = self._socket.recvfrom(512)
            except OSError:  # closed
                return
            end = query.index(b"\0", 12) + 5  # header, one question: name, type, class
            (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
            found = self.addresses if kind == _TYPE_A else []
            header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
            answers = (b"\xc0\x0c" + struct.pack(">HHIH", _TYPE_A, 1, 0, 4) + socket.inet_aton(a) for a in found)
            self._socket.sendto(header + query[12:end] + b"".join(answers), asker)
