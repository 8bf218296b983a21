"""The child's side of the pool: request a lease, run in the container, retain it or give it back.

Runs in: the children of the worker, one request at a time in each.
"""
