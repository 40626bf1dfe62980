"""The logistics example as one REST API, on Powertools for AWS Lambda. See README.md."""

from __future__ import annotations
