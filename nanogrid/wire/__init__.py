"""How NanoGrid's nouns look in JSON, what JSON may hold, and the names that stand on messages. Imports nothing of NanoGrid."""
