#!/usr/bin/env bash
# pip 26.3: in a line of options of a requirements file, words that belong to no option are dropped without a sentence.
#
# `--no-index six requests-like words --find-links wheels` is read as the two options alone. Somebody who puts a requirement
# behind an option on one line gets neither the package nor an error; on the command line pip takes the same words for
# requirements.
#
# Seen:   Would install six-1.17.0                for the line `six` that follows; no word of `idna`, which the first line names
#         and on the command line: No matching distribution found for idna
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check pip==26.3
mkdir wheels
env/bin/pip download --quiet --no-deps --dest wheels six==1.17.0
printf -- '--no-index idna --find-links wheels\nsix\n' >requirements.txt
said=$(env/bin/pip install --dry-run -r requirements.txt 2>&1)
echo "$said" | grep -x 'Would install six-1.17.0'
if echo "$said" | grep -i idna; then
    echo "pip says something about the word now" >&2
    exit 1
fi
told=$(env/bin/pip install --dry-run --no-index idna --find-links wheels six 2>&1) && exit 1
echo "$told" | grep -o 'No matching distribution found for idna'
