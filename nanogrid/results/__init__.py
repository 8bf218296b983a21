"""Results in Redis: the result backend, claims of request ids, map and reduce, and the stream of all results."""
