"""Acceptance tests through pytest-celery: every part of NanoGrid in a container, functions on this host's engine."""
