#!/usr/bin/env bash
# pydantic 2.14.4: how deep a value may be nested depends on the method, and two of three say something else than "too deep".
#
# `JsonValue` and `Any` alike. 201 levels is the most that `validate_json` reads: more is "Invalid JSON", though it is JSON. From
# Python objects `validate_python` takes 255, and beyond them names a recursion. `dump_json` writes 254: so a model can write between
# 202 and 254 levels and not read them again; `json.loads` reads them.
#
# Seen:   201: validate_python takes it, validate_json takes it
#         202: validate_python takes it, validate_json says json_invalid
#         255: validate_python takes it, validate_json says json_invalid
#         256: validate_python says recursion_depth_exceeded, validate_json says json_invalid
#         254 levels written by dump_json, read by validate_json: json_invalid
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pydantic==2.14.4
"$folder/env/bin/python" - <<'PYTHON'
import json

from pydantic import JsonValue, TypeAdapter, ValidationError

adapter = TypeAdapter(JsonValue)


def said(call, argument):
    try:
        call(argument)
    except ValidationError as error:
        return f"says {error.errors()[0]['type']}"
    return "takes it"


seen = {}
for levels in (201, 202, 255, 256):
    text = "[" * levels + "]" * levels
    seen[levels] = said(adapter.validate_python, json.loads(text)), said(adapter.validate_json, text)
    print(f"{levels}: validate_python {seen[levels][0]}, validate_json {seen[levels][1]}")
written = adapter.dump_json(json.loads("[" * 254 + "]" * 254))
again = said(adapter.validate_json, written).removeprefix("says ")
print(f"254 levels written by dump_json, read by validate_json: {again}")
expected = {
    201: ("takes it", "takes it"),
    202: ("takes it", "says json_invalid"),
    255: ("takes it", "says json_invalid"),
    256: ("says recursion_depth_exceeded", "says json_invalid"),
}
raise SystemExit(seen != expected or again != "json_invalid")
PYTHON
