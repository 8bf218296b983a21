"""The reduce half: the payload is the list of the parts' results, each with what that part wrote as its `value`."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

total = Counter()
for part in json.load(sys.stdin):
    total.update(part["value"])
print(", ".join(f"{word} {count}" for word, count in total.most_common(3)))

Path(os.environ["NANOGRID_RESULT"]).write_text(json.dumps(total))
