"""The application as one AWS Lambda function: ``logistics_flask.function.handler``."""

from __future__ import annotations

from apig_wsgi import make_lambda_handler

from .app import create_app

handler = make_lambda_handler(create_app(SERVERLESS_PG_MAX_SIZE=1))  # a container serves one request at a time
