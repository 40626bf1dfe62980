"""Throw-away certificate authorities, made by the command openssl, and a server that speaks TLS from the first byte."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Certificate(NamedTuple):
    """The files of a certificate and of its key."""

    file: Path
    key: Path


class Authority:
    """A certificate authority called `name`, with its files in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self.own: Certificate = self._files(name)
        openssl(
            "req", "-x509", *CURVE, "-days", "2", "-subj", f"/CN={name}", "-out", self.own.file, "-keyout", self.own.key
        )

    def issue(self, name: str, hosts: str, days: int = 2) -> Certificate:
        """Return a certificate for `hosts`, such as ``"DNS:db.example,IP:127.0.0.1"``; negative `days`: expired."""
        made = self._files(f"{self._name}-{name}")
        request, extensions = made.file.with_suffix(".csr"), made.file.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={hosts}\n", encoding="ascii")
        openssl("req", *CURVE, "-subj", f"/CN={name}", "-out", request, "-keyout", made.key)
        signed_by = ("-CA", self.own.file, "-CAkey", self.own.key, "-CAcreateserial")
        openssl(
            "x509", "-req", "-in", request, *signed_by, "-extfile", extensions, "-days", str(days), "-out", made.file
        )
        return made

    def _files(self, name: str) -> Certificate:
        return Certificate(self._folder / f"{name}.crt", self._folder / f"{name}.key")


def openssl(*args: str | Path) -> None:
    """Run the command; it comes with every system that has PostgreSQL with TLS."""
    program = shutil.which("openssl")
    assert program is not None, "the command openssl is not installed"
    subprocess.run([program, *map(str, args)], check=True, capture_output=True)


class Terminator:
    """Takes the TLS off connections that begin with it, as PostgreSQL 17 does, for a server that has none at `target`.

    `beginnings` are the first bytes that came on each.
    """

    def __init__(self, target: tuple[str, int], certificate: Certificate) -> None:
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.file, certificate.key)
        self._context.set_alpn_protocols(["postgresql"])
        self._ear = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._ear.getsockname()[1]
        self.beginnings: list[bytes] = []
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Terminator:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._ear, *self._clients):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._ear.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._ear.accept()
                self._clients.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self.beginnings.append(client.recv(1, socket.MSG_PEEK))
            with (
                self._context.wrap_socket(socket.socket(fileno=os.dup(client.fileno())), server_side=True) as inner,
                socket.create_connection(self._target) as outer,
            ):
                relay(inner, outer)


def relay(inner: ssl.SSLSocket, outer: socket.socket) -> None:
    """Pass on what comes from either side until one of them ends."""
    while True:
        ready = [inner] if inner.pending() else select.select([inner, outer], [], [])[0]
        for source in ready:
            data = source.recv(1 << 14)
            if not data:
                return
            (outer if source is inner else inner).sendall(data)
