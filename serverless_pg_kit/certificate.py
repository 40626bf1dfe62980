"""Why a server's certificate was refused: libpq says no more than that it was.

So the kit shakes hands with the server once more, by Python's own TLS and with the same authorities, and hears the
reason. Nothing else is said on that line. It is done only after a refusal, which is final.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

from serverless_pg_kit.connect import CERTIFICATE_REFUSED
from serverless_pg_kit.conninfo import parameter

ENCRYPT = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
"""The protocol's request for encryption, which is answered by one byte, S for yes."""


def explained(message: str, params: Mapping[str, str], environ: Mapping[str, str], seconds: float) -> str:
    """Return `message` with the reason why the certificate was refused, found out within about `seconds`.

    Unchanged if it could not be found out. `params` are those of the one address that refused; what a service file says
    is not known here.
    """
    reason = ""
    with contextlib.suppress(OSError, ValueError, LookupError, ImportError):
        reason = reason_of(params, environ, time.monotonic() + seconds)
    return message.replace(CERTIFICATE_REFUSED, f"{CERTIFICATE_REFUSED}: {reason}", 1) if reason else message


def reason_of(params: Mapping[str, str], environ: Mapping[str, str], until: float) -> str:
    """Return OpenSSL's reason to refuse the certificate of a server, empty if it has none.

    Raises ``OSError`` if there is no handshake until the moment `until` on the monotonic clock.
    """
    import ssl  # costs milliseconds to load, and hardly anybody needs it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # libpq names the hosts itself
    roots = parameter(params, environ, "sslrootcert") or os.path.expanduser("~/.postgresql/root.crt")
    context.load_default_certs() if roots == "system" else context.load_verify_locations(roots)
    is_direct = parameter(params, environ, "sslnegotiation") == "direct"
    if is_direct:
        context.set_alpn_protocols(["postgresql"])
    host, port = params.get("hostaddr") or params["host"], int(params.get("port") or 5432)
    with socket.create_connection((host, port), timeout=left(until)) as line:
        if not is_direct:
            line.sendall(ENCRYPT)
            line.settimeout(left(until))
            line.recv(1)
        line.settimeout(left(until))
        try:
            context.wrap_socket(line, server_hostname=params.get("host") or host).close()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


def left(until: float) -> float:
    """Return the seconds until that moment, never 0, which sockets take for none at all."""
    return max(0.001, until - time.monotonic())
