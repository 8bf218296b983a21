#!/usr/bin/env bash
# pip 26.3: a line `-r FILE` inside a file of constraints installs what FILE names.
#
# Constraints are documented to say only which version is installed, never what. A file given with `-c` is read by the same
# parser, and `-r` in it begins a file of requirements: what that names is installed although no requirement asks for it.
# Who takes a `-c` for harmless, because it can only narrow what was asked for, is wrong.
#
# Seen:   Would install six-1.17.0
# where the file of requirements is empty, and the file of constraints says `-r more.txt`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check pip==26.3
mkdir wheels
env/bin/pip download --quiet --no-deps --dest wheels six==1.17.0
: >requirements.txt
echo six >more.txt
echo "-r more.txt" >constraints.txt
said=$(env/bin/pip install --dry-run --no-index --find-links wheels -r requirements.txt -c constraints.txt 2>&1)
echo "$said" | grep -x 'Would install six-1.17.0'
