"""The local stack: SQS and S3, Redis, a worker and Flower as one user's processes on loopback.

The rule: it stops exactly what it started. Every process is identified by its id *and* its start time, and has the
stack's folder in its environment, so that it is found again after any crash and never mistaken for another.
"""
