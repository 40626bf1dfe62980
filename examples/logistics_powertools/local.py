"""The API on this machine: a small gateway, AWS's own runtime client behind it, and a throw-away PostgreSQL.

``python -m logistics_powertools.local`` in the folder above; port 8000, or the first argument.
"""

from __future__ import annotations

import base64
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg

from serverless_pg_kit.testing import InvocationError, LambdaContainer, PostgresServer

EXAMPLES = Path(__file__).resolve().parents[1]
HANDLER = "logistics_powertools.app.handler"
ENVIRONMENT = {
    "POWERTOOLS_SERVICE_NAME": "logistics",
    "POWERTOOLS_METRICS_NAMESPACE": "Logistics",
    "POWERTOOLS_TRACE_DISABLED": "true",
}


@contextmanager
def running(timeout: float = 10.0) -> Iterator[LambdaContainer]:
    """Run the function on a server with the example's tables, for the length of the block."""
    with PostgresServer(max_connections=20) as server:
        with psycopg.connect(server.dsn) as conn:
            for name in ("schema.sql", "data.sql"):
                conn.execute((EXAMPLES / "logistics" / name).read_bytes())
        environment = {**ENVIRONMENT, "DATABASE_URL": server.dsn}
        with LambdaContainer(HANDLER, folder=EXAMPLES, environment=environment, timeout=timeout) as container:
            yield container


def event_of(method: str, url: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """Return the event that API Gateway makes of a request to a REST API, with the parts that matter here."""
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    return {
        "resource": "/{proxy+}",
        "path": parts.path,
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": {name: values[-1] for name, values in query.items()} or None,
        "multiValueQueryStringParameters": query or None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {"stage": "local", "path": parts.path, "httpMethod": method, "requestId": "local"},
        "body": base64.b64encode(body).decode() if body else None,
        "isBase64Encoded": bool(body),
    }


def gateway(container: LambdaContainer, port: int) -> ThreadingHTTPServer:
    """Return a server that passes what it hears on to `container`, one request at a time, as Lambda does."""
    turn = Lock()

    class Gateway(BaseHTTPRequestHandler):
        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            event = event_of(self.command, self.path, dict(self.headers), body)
            try:
                with turn:
                    answer = container.invoke(event)
            except InvocationError as error:
                answer = {"statusCode": 502, "body": str(error)}
            self.reply(answer)

        do_GET = do_POST = serve

        def reply(self, answer: dict[str, Any]) -> None:
            body = str(answer.get("body") or "").encode()
            self.send_response(int(answer["statusCode"]))
            for name, values in (answer.get("multiValueHeaders") or {}).items():
                for value in values:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", port), Gateway)


def main(port: int) -> None:
    """Serve until Ctrl-C."""
    with running() as container, gateway(container, port) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        print(f"{url}/sales?limit=2\n{url}/inventory\n{url}/fulfilments/1\n{url}/openapi", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("done")


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # who was started in the background ignores Ctrl-C
        signal.signal(number, signal.default_int_handler)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
