"""What servers and AWS Lambda call: `wsgi` and `asgi`, `by_wsgi` and `by_asgi`, and `import_orders` for a queue."""

from __future__ import annotations

import logging
import os
from typing import Any

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "logistics_django.settings")

wsgi = get_wsgi_application()
asgi: Any = get_asgi_application()

from apig_wsgi import make_lambda_handler  # noqa: E402 - Django is to be set up first
from mangum import Mangum  # noqa: E402

from logistics import gateway  # noqa: E402
from logistics_django import service  # noqa: E402
from serverless_pg_kit_django import with_db  # noqa: E402

by_wsgi = make_lambda_handler(wsgi)
by_asgi = Mangum(asgi, lifespan="off")


@with_db(atomic=False)
def import_orders(event: dict[str, Any], context: object) -> dict[str, list[dict[str, str]]]:
    """Take a batch of orders from SQS; each is one transaction, and those that fail come again."""
    failures = []
    for record in event["Records"]:
        try:
            service.create_fulfilment(*gateway.order(record))
        except Exception:
            logging.exception("order %s was not taken", record["messageId"])
            failures.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failures}


__all__ = ["asgi", "by_asgi", "by_wsgi", "import_orders", "wsgi"]
