"""The logistics example: a small fulfilment service as four AWS Lambda functions. See README.md."""

from __future__ import annotations
