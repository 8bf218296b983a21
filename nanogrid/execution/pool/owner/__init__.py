"""The owner of a worker's containers: starts, grants, cleans, pauses and removes them.

Runs in: threads of the worker's main process.
"""
