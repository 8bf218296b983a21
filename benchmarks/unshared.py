"""The worker with nothing prepared for its children: `celery -A benchmarks.unshared worker`, a baseline.

The rule: it differs from the real worker only in the step that is left out.
"""

from __future__ import annotations

from nanogrid.celery import app
from nanogrid.worker.sharing_step import SharingStep
from tests.support import probe

__all__ = ["app", "probe"]


SharingStep.include_if = lambda *_: False
