#!/usr/bin/env bash
# kombu 5.7.0: a JSON object with the keys "__type__" and "__value__" does not arrive as it was sent.
#
# kombu's serializer "json", which Celery uses by default, marks types such as datetime and UUID with these two keys. It does not
# escape an object that has them already: {"__type__": "decimal", "__value__": "1.50"} arrives as a Decimal, and the same
# object with a type that kombu does not know raises DecodeError. Both are plain JSON, and both are sent without an error, so
# the receiver of somebody's data fails and not its sender.
#
# Seen:   {'__type__': 'decimal', '__value__': '1.50'}   Decimal('1.50')
#         {'__type__': 'point', '__value__': [1, 2]}     DecodeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check kombu==5.7.0
"$folder/env/bin/python" - <<'PYTHON'
from decimal import Decimal

from kombu.exceptions import DecodeError
from kombu.serialization import dumps, loads


def arrives(data):
    content_type, encoding, body = dumps(data, serializer="json")
    try:
        return loads(body, content_type, encoding)
    except DecodeError:
        return DecodeError


known, unknown = {"__type__": "decimal", "__value__": "1.50"}, {"__type__": "point", "__value__": [1, 2]}
for data in (known, unknown):
    print(f"{data!s:<46} {arrives(data)!r}")
raise SystemExit(arrives(known) != Decimal("1.50") or arrives(unknown) is not DecodeError)
PYTHON
