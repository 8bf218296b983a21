"""Failed builds, remembered on disk for a while so that they are not repeated for each request.

The rule: until then, every request gets the same error, with the times of the failure and of the next attempt.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path

from nanogrid.errors import CodeError, CodeUnavailableError, LayerBuildError

log = logging.getLogger(__name__)

INDEX_TROUBLE_S = 10.0
"""How long an index that does not answer is not asked again. This is shorter than pip's own timeout."""


class FailedBuilds:
    """Builds that failed recently, one file per layer, shared by all processes."""

    def __init__(self, folder: Path, ttl_s: float, network: str) -> None:
        self._folder = folder
        self._ttl_s = ttl_s
        self._network = network

    def check(self, layer_id: str) -> None:
        """Raise the error of this layer's build if it failed recently."""
        try:
            known = json.loads(self._path(layer_id).read_text())
            message, failed_at, until = str(known["message"]), float(known["failedAt"]), float(known["until"])
            network = str(known["network"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            log.warning("layers: %s cannot be read; building the layer again", self._path(layer_id))
            return
        # In another network the build may succeed.
        if time.time() >= until or network != self._network:
            return
        raise (CodeUnavailableError if known.get("retryable") else LayerBuildError)(
            f"{message}\n(It failed at {_shown(failed_at)}; the next attempt is possible at {_shown(until)}.)"
        )

    def remember(self, layer_id: str, error: CodeError) -> None:
        """Store an error: a user's error for the configured time, an index's error for a few seconds."""
        ttl_s = min(self._ttl_s, INDEX_TROUBLE_S) if error.retryable else self._ttl_s
        if ttl_s <= 0:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._forget_old()
        now = time.time()
        draft = self._folder / f"{uuid.uuid4().hex}.draft"
        known = {"message": str(error), "failedAt": now, "until": now + ttl_s, "retryable": error.retryable}
        known["network"] = self._network
        draft.write_text(json.dumps(known))
        draft.rename(self._path(layer_id))

    def forget(self, layer_id: str) -> None:
        """Remove the error of a layer."""
        self._path(layer_id).unlink(missing_ok=True)

    def _path(self, layer_id: str) -> Path:
        return self._folder / f"{layer_id}.json"

    def _forget_old(self) -> None:
        """Remove expired errors, and drafts of killed processes."""
        oldest = time.time() - self._ttl_s - 60
        for path in self._folder.iterdir():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # another process cleans up as well


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
