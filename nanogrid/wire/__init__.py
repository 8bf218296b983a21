"""The JSON form of requests and results, the bounds of JSON, and the names on messages. Imports nothing of NanoGrid."""
