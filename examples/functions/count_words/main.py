"""The map half of map and reduce: counts the words of the text that is the payload."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

counts = Counter(json.load(sys.stdin).lower().split())
print(sum(counts.values()), "words")

Path(os.environ["NANOGRID_RESULT"]).write_text(json.dumps(counts))
