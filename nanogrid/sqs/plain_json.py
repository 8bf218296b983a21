"""JSON that means what it says, as Celery's serializer for requests and results.

kombu's own reads an object with the keys `__type__` and `__value__` as one of its types, or fails on it. A payload is any
JSON, so that one too must arrive as it was sent. Registered under a name and a content type of its own: what another
Celery app in the process does with "json" stays as it is.
"""

from __future__ import annotations

import json

from kombu.serialization import register
from kombu.utils.json import dumps

NAME = "nanogrid-json"
CONTENT_TYPE = "application/x-nanogrid-json"

register(NAME, dumps, json.loads, content_type=CONTENT_TYPE, content_encoding="utf-8")
