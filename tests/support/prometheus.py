"""A real Prometheus, with the shipped rules, scraping one address."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.services import Service, accepts, free_port
from tests.support.worker import ROOT

SHIPPED = ROOT / "deploy" / "observability"
SCRAPE_S = 2


class Prometheus:
    """Prometheus with the shipped scrape configuration and rules, except for the target's address and the intervals."""

    def __init__(self, folder: Path, target: str) -> None:
        binary = shutil.which("prometheus", path="/usr/bin:/usr/local/bin")
        assert binary, "prometheus is not installed: run scripts/setup --tests"
        configuration = (SHIPPED / "prometheus.yml").read_text()
        for shipped, here in (
            ("127.0.0.1:9747", target),
            ("scrape_interval: 15s", f"scrape_interval: {SCRAPE_S}s"),
            ("scrape_timeout: 10s", f"scrape_timeout: {SCRAPE_S}s"),
            ("evaluation_interval: 15s", f"evaluation_interval: {SCRAPE_S}s"),
            ("alerts.yml", str(SHIPPED / "alerts.yml")),
        ):
            assert configuration.count(shipped) == 1, shipped
            configuration = configuration.replace(shipped, here)
        path = folder / "prometheus.yml"
        path.write_text(configuration)
        port = free_port()
        argv = [
            binary,
            f"--config.file={path}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self.service = Service(argv, port, folder / "prometheus.log", lambda: accepts(port) and self._is_ready())

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The current series of an expression."""
        found: list[dict[str, Any]] = self._get("/api/v1/query", query=expression)["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """The one value of an expression; 0 if it has none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else 0.0

    def alerts(self) -> dict[str, str]:
        """Name → expression of every rule."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return {rule["name"]: rule["query"] for group in groups for rule in group["rules"]}

    def targets(self) -> list[dict[str, Any]]:
        """The scrape targets, each with its health and last error."""
        found: list[dict[str, Any]] = self._get("/api/v1/targets")["data"]["activeTargets"]
        return found

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.service.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.service.port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)
