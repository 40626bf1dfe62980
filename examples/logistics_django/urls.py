"""The routes of the site."""

from __future__ import annotations

from django.urls import path

from logistics_django import views

urlpatterns = [
    path("sales", views.list_sales),
    path("inventory", views.list_inventory),
    path("fulfilments", views.create_fulfilment),
    path("fulfilments/<int:id>", views.get_fulfilment),
    path("warehouses", views.warehouses),
]
