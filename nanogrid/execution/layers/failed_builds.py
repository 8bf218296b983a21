"""Failed builds, remembered on disk for a while so that they are not repeated for each request.

The rule: who asks meanwhile gets the same error, and is told when it happened and until when it is kept.
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
"""How long an index that does not answer is not asked again. Shorter than what pip needs to find out."""


class FailedBuilds:
    """What failed lately, one file per layer, shared by all processes."""

    def __init__(self, folder: Path, ttl_s: float, network: str) -> None:
        self._folder = folder
        self._ttl_s = ttl_s
        self._network = network

    def check(self, layer_id: str) -> None:
        """Raise the error of a build that failed not long ago."""
        try:
            known = json.loads(self._path(layer_id).read_text())
            message, failed_at, until = str(known["message"]), float(known["failedAt"]), float(known["until"])
            network = str(known["network"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            log.warning("layers: %s cannot be read; the layer is built again", self._path(layer_id))
            return
        # In another network it may succeed, and does where it had none before.
        if time.time() >= until or network != self._network:
            return
        raise (CodeUnavailableError if known.get("retryable") else LayerBuildError)(
            f"{message}\n(It failed at {_shown(failed_at)} and is tried again from {_shown(until)} on.)"
        )

    def remember(self, layer_id: str, error: CodeError) -> None:
        """Keep an error: that of the user for the set time, that of an index for a few seconds."""
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
        """Drop what is remembered of a layer."""
        self._path(layer_id).unlink(missing_ok=True)

    def _path(self, layer_id: str) -> Path:
        return self._folder / f"{layer_id}.json"

    def _forget_old(self) -> None:
        """Remove what nobody is told any more, drafts of killed processes included."""
        oldest = time.time() - self._ttl_s - 60
        for path in self._folder.iterdir():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # another process tidies up as well


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
