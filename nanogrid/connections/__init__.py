"""Clients for S3, SQS and the result Redis: how each is made, how long it waits and what it tries again."""
