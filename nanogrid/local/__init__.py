"""The local stack: SQS and S3, Redis, a worker and Flower as processes of one person on loopback.

The one rule: it ends exactly what it started. Every process is known by its id *and* its moment of birth, and carries
the stack's folder in its environment, so that it is found again after any crash and never mistaken for another.
"""
