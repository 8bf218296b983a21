"""Containers: what confines a function, how one is started, watched, measured and removed.

Read `hardening` for the limits, `link` for what is said to the runner inside (`nanogrid/runner`), `run` for the host's side
of a run. `launched_run` is that side where an image has no Python.
"""
