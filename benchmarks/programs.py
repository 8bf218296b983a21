"""The functions that are measured, as files.

The rule: each prints one line that is known beforehand, so that a run which went wrong never counts as a fast one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Program:
    """Files by name, and what the function prints."""

    files: Mapping[str, str]
    prints: str

    def write(self, folder: Path) -> Path:
        """Write the files to a new folder, read-only as in the code cache, and return it."""
        folder.mkdir(parents=True)
        for name, text in self.files.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o444)
        folder.chmod(0o755)
        return folder

    def variation(self, number: int) -> Program:
        """The same function as other code: one comment differs."""
        mark = {"main.py": f"\n# {number}\n", "main.cpp": f"\n// {number}\n"}
        return Program({name: text + mark.get(name, "") for name, text in self.files.items()}, self.prints)


HELLO = Program({"main.py": 'print("hello, world")\n'}, "hello, world\n")

STDLIB = (
    "argparse",
    "asyncio",
    "csv",
    "datetime",
    "decimal",
    "email.message",
    "hashlib",
    "json",
    "logging",
    "urllib.request",
    "xml.etree.ElementTree",
)

IMPORTS = Program(
    {"main.py": "".join(f"import {name}\n" for name in STDLIB) + 'print(json.dumps({"imported": 11}))\n'},
    '{"imported": 11}\n',
)

PRIMES_CPP = """#include <iostream>
#include <vector>
int main() {
    std::vector<bool> composite(1000);
    int count = 0;
    for (int n = 2; n < 1000; n++) {
        if (composite[n]) continue;
        count++;
        for (int m = n * n; m < 1000; m += n) composite[m] = true;
    }
    std::cout << count << " primes" << std::endl;
}
"""

COMPILED = Program({"run.sh": "g++ -O1 main.cpp -o main && ./main\n", "main.cpp": PRIMES_CPP}, "168 primes\n")

BUILT = Program(
    {"build.sh": "g++ -O1 main.cpp -o main\n", "run.sh": "exec ./main\n", "main.cpp": PRIMES_CPP}, "168 primes\n"
)


def numpy_program(version: str) -> Program:
    """A main whose time is its import of numpy."""
    return Program(
        {
            "requirements.txt": f"numpy=={version}\n",
            "main.py": "import numpy\nprint(int(numpy.arange(10).sum()))\n",
        },
        "45\n",
    )
