"""What this checkout's worker adds to NanoGrid's Celery configuration.

`nanogrid/configuration.py` computes Celery's settings from `NANOGRID_*` and says why each is as it is; names that are
set here win over it. Producers and installed packages never read this file.
"""

# A child that has run this many tasks is replaced, so that no leak of a library grows without bound.
worker_max_tasks_per_child = 1000

# SIGTERM: stop taking messages, let running functions end. SIGQUIT: give them this many seconds, then hand them back.
worker_soft_shutdown_timeout = 10
