"""One request on one host: code, layers, a container, a run. Knows no Celery, SQS or Redis."""
