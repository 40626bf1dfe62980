"""The parts of `soak.py`: who asks, who answers, one run of it, what came of it, and how that is told."""
