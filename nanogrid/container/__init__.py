"""Containers: what confines a function, how one is started, watched, measured and removed.

Read `hardening` for the limits, `launch.sh` for the first process inside, `run` for the host's side of a run.
"""
