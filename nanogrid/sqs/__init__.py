"""SQS: the transport under Celery, queues and dead letters, and how a request becomes a message."""
