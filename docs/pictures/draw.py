"""Draw the pictures of the documents: `make pictures`.

python docs/pictures/draw.py           write the SVG files beside this one
python docs/pictures/draw.py --check   exit with 1 if one of them is not what would be written
"""

from __future__ import annotations

import sys
from pathlib import Path

import container_life
import request_way
import run_cost

HERE = Path(__file__).resolve().parent
PICTURES = {"request-way.svg": request_way, "container-life.svg": container_life, "run-cost.svg": run_cost}


def main() -> int:
    """Write or compare."""
    stale = []
    for name, module in PICTURES.items():
        path, drawn = HERE / name, module.picture().svg()
        if "--check" not in sys.argv:
            path.write_text(drawn)
        elif not path.exists() or path.read_text() != drawn:
            stale.append(name)
    if stale:
        print(f"{', '.join(stale)}: not up to date. Run `make pictures`.")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
