"""Settings of the site. The database is in DATABASE_URL, what else may differ in variables of Django's name."""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict

_database = conninfo_to_dict(os.environ.get("DATABASE_URL", "dbname=logistics"))

DATABASES = {
    "default": {
        "ENGINE": os.environ.get("DJANGO_ENGINE", "serverless_pg_kit_django"),
        "NAME": _database.get("dbname", ""),
        "USER": _database.get("user", ""),
        "PASSWORD": _database.get("password", ""),
        "HOST": _database.get("host", ""),
        "PORT": _database.get("port", ""),
    }
}
INSTALLED_APPS = ["serverless_pg_kit_django", "logistics_django"]
MIDDLEWARE = [
    "serverless_pg_kit_django.middleware.ServerlessPgMiddleware",
    "django.middleware.common.CommonMiddleware",
]
ROOT_URLCONF = "logistics_django.urls"
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "this example signs nothing")
ALLOWED_HOSTS = ["*"]
APPEND_SLASH = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
