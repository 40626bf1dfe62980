"""One table."""

from __future__ import annotations

from django.db import models


class Entry(models.Model):
    """An entry of a ledger."""

    number: models.IntegerField[int, int] = models.IntegerField(unique=True)

    class Meta:
        """Named for the tests to look into."""

        db_table = "django_entry"
        app_label = "django_site"
