"""The tables of the example."""

from __future__ import annotations

import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Fulfilment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "db_table": "fulfilments",
            },
        ),
        migrations.CreateModel(
            name="Product",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sku", models.TextField(unique=True)),
                ("name", models.TextField()),
                ("unit_price", models.DecimalField(decimal_places=2, max_digits=10)),
            ],
            options={
                "db_table": "products",
            },
        ),
        migrations.CreateModel(
            name="Warehouse",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("code", models.TextField(unique=True)),
                ("city", models.TextField()),
            ],
            options={
                "db_table": "warehouses",
            },
        ),
        migrations.CreateModel(
            name="Item",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "fulfilment_id", "product_id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("quantity", models.IntegerField()),
                (
                    "fulfilment",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="items",
                        to="logistics_django.fulfilment",
                    ),
                ),
                (
                    "product",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, to="logistics_django.product"),
                ),
            ],
            options={
                "db_table": "fulfilment_items",
            },
        ),
        migrations.AddField(
            model_name="fulfilment",
            name="warehouse",
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, to="logistics_django.warehouse"),
        ),
        migrations.CreateModel(
            name="Sale",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("quantity", models.IntegerField()),
                ("unit_price", models.DecimalField(decimal_places=2, max_digits=10)),
                ("sold_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "product",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, to="logistics_django.product"),
                ),
            ],
            options={
                "db_table": "sales",
                "indexes": [models.Index(fields=["-sold_at", "-id"], name="sales_newest")],
            },
        ),
        migrations.CreateModel(
            name="Shelf",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "warehouse_id", "product_id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("quantity", models.IntegerField()),
                (
                    "product",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, to="logistics_django.product"),
                ),
                (
                    "warehouse",
                    models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.PROTECT, to="logistics_django.warehouse"
                    ),
                ),
            ],
            options={
                "db_table": "inventory",
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("quantity__gte", 0)), name="inventory_quantity_check")
                ],
            },
        ),
    ]
