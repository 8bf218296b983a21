"""Two runs in one container never draw the same random numbers, wherever a generator was made and whoever seeded it.

Generators with a seed of their own stay the same in every run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from benchmarks.packages import NUMPY, PACKAGES
from tests.differential.vendored import code, container, runs
from tests.support.runner_box import Box

MAIN = """import json, os, random, secrets, tempfile, uuid
drawn = {
    "random": random.random(),
    "urandom": os.urandom(8).hex(),
    "secrets": secrets.token_hex(8),
    "uuid4": str(uuid.uuid4()),
    "temporary name": os.path.basename(tempfile.mkdtemp()),
    "SystemRandom": random.SystemRandom().random(),
}
"""

OWN = {
    "draws/__init__.py": """import random, uuid
own = random.Random()
kept = uuid.uuid4()
seeded = random.Random(7)
""",
    "draws-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: draws\nVersion: 1.0\n",
    "draws-1.0.dist-info/RECORD": "draws/__init__.py,,\n",
}
DRAW_OWN = """
import draws
drawn["generator of a package"] = draws.own.random()
drawn["value kept by a package"] = str(draws.kept)
drawn["seeded generator of a package"] = draws.seeded.random()
"""

OWN_NUMPY = {
    **OWN,
    "draws/arrays.py": """import numpy as np
rng, state = np.random.default_rng(), np.random.RandomState()
seeded_rng, seeded_state = np.random.default_rng(7), np.random.RandomState(7)
def draw(rng=np.random.default_rng()):
    return rng.random()
""",
}
DRAW_NUMPY = """
import numpy as np
from draws import arrays
drawn["numpy's global generator"] = np.random.rand()
drawn["default_rng"] = np.random.default_rng().random()
drawn["RandomState"] = np.random.RandomState().rand()
drawn["Generator of a package"] = arrays.rng.random()
drawn["RandomState of a package"] = arrays.state.rand()
drawn["Generator as a default argument"] = arrays.draw()
drawn["seeded Generator of a package"] = arrays.seeded_rng.random()
drawn["seeded RandomState of a package"] = arrays.seeded_state.rand()
"""

DRAW_LEARN = """
import inspect
from scipy import stats
from sklearn.ensemble._hist_gradient_boosting.grower import TreeGrower
from sklearn.model_selection import KFold, train_test_split
drawn["scipy.stats"] = stats.norm.rvs()
drawn["scipy.stats.qmc"] = stats.qmc.Halton(2).random(1).tolist()
drawn["split"] = train_test_split(list(range(1000)))[1][:5]
drawn["folds"] = next(KFold(2, shuffle=True).split(range(1000)))[1][:9].tolist()
drawn["generator made in sklearn's import"] = inspect.signature(TreeGrower.__init__).parameters["rng"].default.random()
"""

PRINT = "\nprint(json.dumps(drawn))\n"

LEARN = next(it for it in PACKAGES if it.name == "scikit-learn").pins


@pytest.fixture(scope="module")
def here() -> Iterator[Box]:
    """One container for all programs."""
    with container() as made:
        yield made


@pytest.mark.parametrize(
    ("draws", "files", "pins"),
    [
        pytest.param(DRAW_OWN, OWN, (), id="standard-library"),
        pytest.param(DRAW_OWN + DRAW_NUMPY, OWN_NUMPY, (NUMPY,), id="numpy"),
        pytest.param(DRAW_NUMPY + DRAW_LEARN, OWN_NUMPY, LEARN, id="scikit-learn", marks=pytest.mark.packages),
    ],
)
def test_two_runs_draw_different_numbers(here: Box, draws: str, files: dict[str, str], pins: tuple[str, ...]) -> None:
    """Of each generator without a seed, all runs right after each other draw different numbers; of a seeded one, the same."""
    with code({**files, "main.py": MAIN + draws + PRINT}, pins) as folder:
        found = runs(here, folder)
    assert [run.err for run in found] == [b""] * len(found)
    drawn = [json.loads(run.out) for run in found]
    for name in drawn[0]:
        values = {json.dumps(one[name]) for one in drawn}
        assert len(values) == (1 if name.startswith("seeded") else len(drawn)), name
