"""Settings for Django's own tests; the backend to test and the server are in the environment."""

from __future__ import annotations

import json
import os

import django

DATABASES = {
    alias: {
        "ENGINE": os.environ["DJANGO_SUITE_ENGINE"],
        "NAME": f"suite_{alias}",
        **json.loads(os.environ["DJANGO_SUITE_SERVER"]),
    }
    for alias in ("default", "other")
}
SECRET_KEY = "only for tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if django.VERSION < (6,):
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"  # what the tests of that release expect
USE_TZ = False
TEST_RUNNER = "recorder.Recorder"
