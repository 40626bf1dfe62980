"""Settings of the site. The server is in the environment, or is named later by the tests."""

from __future__ import annotations

import json
import os

SECRET_KEY = "only for tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
TIME_ZONE = "Asia/Tokyo"
ROOT_URLCONF = "django_site.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "serverless_pg_kit_django",
    "django_site",
]
MIDDLEWARE = ["serverless_pg_kit_django.middleware.ServerlessPgMiddleware"]
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"django.request": {"level": "CRITICAL"}}}

_server = json.loads(os.environ.get("DJANGO_SITE_SERVER", "{}"))
_engine = os.environ.get("DJANGO_SITE_ENGINE", "serverless_pg_kit_django")
_more = json.loads(os.environ.get("DJANGO_SITE_MORE", "{}"))
DATABASES = {
    "default": {"ENGINE": _engine, "NAME": "app", **_server, **_more},
    "replica": {"ENGINE": _engine, "NAME": "app", **_server, **_more, "TEST": {"MIRROR": "default"}},
    "stock": {"ENGINE": "django.db.backends.postgresql", "NAME": "app", **_server},
}
