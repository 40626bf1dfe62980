from __future__ import annotations

from hypothesis import HealthCheck, settings

# What is promised here is a result, never a speed: on a busy machine any example may take a second.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
