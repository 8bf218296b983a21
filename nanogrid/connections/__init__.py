"""Clients for S3, SQS and the result Redis: how each is created, how long it waits and what it retries.

Also the check for private parts of other packages, which every package above may need.
"""
