"""What pip itself reads in a requirements file: pip's own parser, in the installed version.

    python pip_reading.py FILE     FILE holds a JSON list of files (name → text); one of answers on stdout (see `answer`)

It needs only pip, from 20.3 on, so that it can also run inside the runtimes' images.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

READ = "requirements.txt"
CONSTRAINTS = "constraints.txt"


def reading(folder: str, constraints: bool = False) -> dict[str, Any]:
    """Everything that pip reads from a folder's requirements.txt (and constraints.txt), run in that folder. Raises what pip raises."""
    before = os.environ.get("PIP_CONFIG_FILE")
    os.environ["PIP_CONFIG_FILE"] = os.devnull  # what this machine is configured for does not count
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _reading(folder, constraints)
    finally:
        os.environ.pop("PIP_CONFIG_FILE")
        if before is not None:
            os.environ["PIP_CONFIG_FILE"] = before


def _reading(folder: str, constraints: bool) -> dict[str, Any]:
    from pip._internal.commands import create_command
    from pip._internal.req.constructors import install_req_from_parsed_requirement
    from pip._internal.req.req_file import parse_requirements

    command: Any = create_command("install", isolated=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        with command.main_context():
            options, _ = command.parse_args(["--only-binary", ":all:", "--index-url", "https://index.example/"])
            command.verbosity = 0
            session = command._build_session(options)
            finder = command._build_package_finder(options, session)
            found = []
            for name, as_constraint in ((CONSTRAINTS, True), (READ, False)) if constraints else ((READ, False),):
                for parsed in parse_requirements(
                    name, session=session, finder=finder, options=options, constraint=as_constraint
                ):
                    wanted = install_req_from_parsed_requirement(parsed, isolated=True)
                    found.append(_shown(wanted, parsed.constraint))
            return {
                "requirements": sorted(found, key=json.dumps),
                "indexes": list(finder.index_urls),
                "links": [str(Path(link).absolute()) if "://" not in link else link for link in finder.find_links],
                "formats": [sorted(finder.format_control.no_binary), sorted(finder.format_control.only_binary)],
                "pre": bool(finder.allow_all_prereleases),
                "binary": bool(finder.prefer_binary),
                "trusted": sorted(map(list, session.pip_trusted_origins), key=str),
                "hashes": bool(getattr(options, "require_hashes", False)),
            }
    finally:
        os.chdir(before)


def _shown(wanted: Any, constraint: bool) -> list[Any]:
    req = wanted.req
    name = req.name.lower() if req is not None else None
    return [
        name,
        sorted(wanted.extras),
        sorted(map(str, req.specifier)) if req is not None else [],
        wanted.link.url if wanted.link else None,
        bool(wanted.link and wanted.link.is_wheel),
        str(wanted.markers) if wanted.markers else None,
        {algorithm: sorted(digests) for algorithm, digests in wanted.hash_options.items()},
        list(getattr(wanted, "global_options", None) or []),
        dict(getattr(wanted, "config_settings", None) or {}),
        bool(wanted.editable),
        bool(constraint),
    ]


def answer(files: dict[str, str]) -> dict[str, Any]:
    """What pip reads from these files, which are written to a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="ascii")
        return reading(folder, constraints=True)


if __name__ == "__main__":
    json.dump([answer(files) for files in json.loads(Path(sys.argv[1]).read_text())], sys.stdout)
