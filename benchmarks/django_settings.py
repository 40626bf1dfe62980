"""The settings of the example's site, with what the contestant changes in the database."""

from __future__ import annotations

import json
import os

from logistics_django.settings import *  # noqa: F403
from logistics_django.settings import DATABASES

DATABASES["default"].update(json.loads(os.environ["CONTESTANT"]))
