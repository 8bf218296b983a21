#!/usr/bin/env bash
# scipy 1.13.1 with numpy 2.0.2: `import scipy.stats` starts a process (`lscpu`), on processors of any kind.
#
# scipy's modules import numpy.testing, which asks `lscpu` at its import whether an ARM processor has SVE. An import that
# looks like reading files costs a fork and an exec, needs a second process to be allowed, and fails over to "no" silently.
# numpy alone, and scipy without stats, start nothing.
#
# Seen:   numpy: []   scipy: []   scipy.stats: ['lscpu']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.0.2 scipy==1.13.1
"$folder/env/bin/python" - <<'PYTHON'
import importlib
import sys

started = []


def watch(event, arguments):
    if event == "subprocess.Popen":
        started.append(arguments[0])


sys.addaudithook(watch)
seen = {}
for name in ("numpy", "scipy", "scipy.stats"):
    started.clear()
    importlib.import_module(name)
    seen[name] = list(started)
for name, processes in seen.items():
    print(f"{name}: {processes}")
sys.exit(seen != {"numpy": [], "scipy": [], "scipy.stats": ["lscpu"]})
PYTHON
