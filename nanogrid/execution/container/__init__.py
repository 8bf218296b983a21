"""Containers: what confines a function, and how a container is started, watched, measured and removed.

Read `hardening` for the limits, `link` for the messages to the runner inside (`nanogrid/execution/runner`), `run` for the
host's side of a run, and `launched_run` for the same in an image without Python.
"""
