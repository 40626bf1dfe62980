"""The tables of examples/logistics, as models."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class Product(models.Model):
    """What is sold."""

    sku = models.TextField(unique=True)
    name = models.TextField()
    unit_price = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        db_table = "products"


class Warehouse(models.Model):
    """Where it lies."""

    code = models.TextField(unique=True)
    city = models.TextField()

    class Meta:
        db_table = "warehouses"


class Shelf(models.Model):
    """How much of a product lies in a warehouse; its primary key is the order of the inventory list."""

    pk = models.CompositePrimaryKey("warehouse_id", "product_id")
    warehouse = models.ForeignKey(Warehouse, models.PROTECT, db_index=False)
    product = models.ForeignKey(Product, models.PROTECT)
    quantity = models.IntegerField()

    class Meta:
        db_table = "inventory"
        constraints = [models.CheckConstraint(condition=models.Q(quantity__gte=0), name="inventory_quantity_check")]


class Sale(models.Model):
    """A sale; the newest come first, with the id to break ties."""

    product = models.ForeignKey(Product, models.PROTECT)
    quantity = models.IntegerField()
    unit_price = models.DecimalField(max_digits=10, decimal_places=2)
    sold_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "sales"
        indexes = [models.Index(fields=["-sold_at", "-id"], name="sales_newest")]


class Fulfilment(models.Model):
    """What leaves the house."""

    warehouse = models.ForeignKey(Warehouse, models.PROTECT)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "fulfilments"


class Item(models.Model):
    """One product of a fulfilment."""

    pk = models.CompositePrimaryKey("fulfilment_id", "product_id")
    fulfilment = models.ForeignKey(Fulfilment, models.CASCADE, related_name="items", db_index=False)
    product = models.ForeignKey(Product, models.PROTECT)
    quantity = models.IntegerField()

    class Meta:
        db_table = "fulfilment_items"
