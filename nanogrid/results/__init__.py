"""Where results live: the Redis backend, claims of request ids, map and reduce, and the stream of all results."""
