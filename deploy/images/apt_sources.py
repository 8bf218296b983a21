"""The host's own apt sources, rewritten for another Debian release.

The rule: only what the host already trusts is used. Mirrors, keyrings, proxies and credentials are the host's; only
the suite's name changes, so that a machine behind a mirror needs no further configuration.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

Stanza = dict[str, str]
"""One source in deb822 form: field name → value, continuation lines included."""

ALIASES = ("stable", "oldstable", "oldoldstable", "testing")
"""Names that a host's sources may use instead of the release's code name."""

ONE_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$")


def host_stanzas(folder: Path = Path("/etc/apt")) -> list[Stanza]:
    """Every enabled binary source of the host, from `sources.list` and `sources.list.d`."""
    lists = [
        path for path in (folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))) if path.is_file()
    ]
    found = [stanza for path in lists for stanza in parse_one_line(path.read_text())]
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        found += parse_deb822(path.read_text())
    return found


def parse_one_line(text: str) -> list[Stanza]:
    """Read `deb [options] uri suite components` lines."""
    stanzas = []
    for line in text.splitlines():
        match = ONE_LINE.match(line.split("#")[0].strip())
        if match is None:
            continue
        stanza = {
            "Types": "deb",
            "URIs": match["uri"],
            "Suites": match["suite"],
            "Components": match["components"].strip(),
        }
        for option in (match["options"] or "").split():
            name, _, value = option.partition("=")
            stanza[name.title()] = value.replace(",", " ")
        stanzas.append(stanza)
    return stanzas


def parse_deb822(text: str) -> list[Stanza]:
    """Read stanzas of `Field: value` lines. Sources without packages (`deb-src`) and disabled ones are left out."""
    stanzas = []
    for block in re.split(r"\n\s*\n", text):
        stanza: Stanza = {}
        field = ""
        for line in block.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace() and field:
                stanza[field] += "\n" + line
            else:
                field, _, value = line.partition(":")
                field = field.strip().title().replace("Uris", "URIs")
                stanza[field] = value.strip()
        if "deb" in stanza.get("Types", "").split() and stanza.get("Enabled", "yes").lower() not in ("no", "false"):
            stanzas.append(stanza)
    return stanzas


def for_release(stanzas: Iterable[Stanza], host_release: str, release: str) -> list[Stanza]:
    """The Debian sources among `stanzas`, with `host_release` replaced by `release`.

    Other vendors' sources are left out: their suites do not follow Debian's releases, or their keys are not Debian's.
    """
    names = "|".join(map(re.escape, (host_release, *ALIASES)))
    suite = re.compile(rf"^(?:{names})(?P<part>-security|/updates|)/?$")
    result = []
    for stanza in stanzas:
        parts = [
            match["part"].replace("/updates", "-security")
            for match in map(suite.match, stanza["Suites"].split())
            if match
        ]
        if parts and "main" in stanza["Components"].split() and _is_debians(stanza):
            changed = {
                "Types": "deb",
                "Suites": " ".join(dict.fromkeys(release + part for part in parts)),
                "Components": "main",
            }
            result.append(stanza | changed)
    return result


def _is_debians(stanza: Stanza) -> bool:
    signed_by = stanza.get("Signed-By", "")
    return not signed_by.startswith("/") or "debian-archive" in signed_by


def render(stanzas: Iterable[Stanza]) -> str:
    """The stanzas as the text of a `.sources` file."""
    return "\n".join("".join(f"{field}: {value}\n" for field, value in stanza.items()) for stanza in stanzas)


def transport_options() -> str:
    """The host's apt options about how packages are fetched (proxies, certificates, retries), as apt.conf lines."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
    kept = re.compile(r"^Acquire::(http|https|Retries|ForceIPv|Check-|By-Hash)\S* \".*\";$", re.IGNORECASE)
    return "".join(line + "\n" for line in dump.splitlines() if kept.match(line))


def release_of_host(os_release: Path = Path("/etc/os-release")) -> str:
    """The host's Debian code name, or an empty string."""
    match = re.search(r"^VERSION_CODENAME=\"?(\w+)", os_release.read_text(), re.MULTILINE)
    return match[1] if match else ""
