"""The smallest function with input, output and a value: payload in, a line on stdout, JSON in the file NANOGRID_RESULT."""

import json
import os
import sys
from pathlib import Path

payload = json.load(sys.stdin)
name = payload.get("name", "world")
print(f"hello, {name}")

Path(os.environ["NANOGRID_RESULT"]).write_text(json.dumps({"greeted": name}))
