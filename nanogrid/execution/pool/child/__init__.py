"""The pool as a child of the worker sees it: ask for a lease, run in the container, keep or return it.

Runs in: the worker's children, one request at a time each.
"""
