"""Plain JSON as Celery's serializer for requests and results.

kombu's own JSON serializer reads an object with the keys `__type__` and `__value__` as one of its types, or fails on it. A
payload is any JSON, so such an object must arrive as it was sent. This serializer has its own name and content type: "json"
of other Celery apps in the process does not change.
"""

from __future__ import annotations

import json

from kombu.serialization import register
from kombu.utils.json import dumps

from nanogrid.wire.names import PLAIN_JSON

NAME = PLAIN_JSON
CONTENT_TYPE = "application/x-nanogrid-json"

register(NAME, dumps, json.loads, content_type=CONTENT_TYPE, content_encoding="utf-8")
