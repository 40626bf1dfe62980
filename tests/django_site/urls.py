"""The routes of the site."""

from __future__ import annotations

from django.urls import path

from django_site import views

urlpatterns = [
    path("pid", views.pid),
    path("apid", views.apid),
    path("add/<int:number>", views.add),
    path("fail/<int:number>", views.fail),
    path("raw/<int:number>/<int:status>", views.raw),
    path("stream", views.stream),
    path("astream", views.astream),
    path("rawstream", views.rawstream),
    path("rawastream", views.rawastream),
    path("sleep/<str:seconds>", views.sleep),
    path("asyncdb", views.asyncdb),
    path("atomic/<int:number>", views.atomically),
]
