#!/usr/bin/env bash
# docker-py 7.2.0: the CPU limit of a container that was made with `nano_cpus` cannot be changed with docker-py.
#
# `create(nano_cpus=...)` is the one way of docker-py that says "half a core" in one number. `update()` has no such argument, only
# the older cpu_period and cpu_quota, and the engine refuses these for a container that has NanoCPUs: "Conflicting options".
# The engine itself takes NanoCpus in an update (`docker update --cpus` does it), so only the raw API is left.
#
# Seen:   update(nano_cpus=...)            TypeError: ... unexpected keyword argument 'nano_cpus'
#         update(cpu_period, cpu_quota)    409 ... Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set
#         the same number by POST /update  NanoCpus is 750000000
# Needs a Docker engine. Makes an empty image and a container that is never started, and removes both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check docker==7.2.0
"$folder/env/bin/python" - <<'PYTHON'
import io
import tarfile

import docker

client = docker.from_env()
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w") as tar:
    tar.addfile(tarfile.TarInfo("empty"))
image = "nano-cpus-finding:1"
client.api.import_image_from_data(archive.getvalue(), repository="nano-cpus-finding", tag="1")
container = client.containers.create(image, ["none"], nano_cpus=500_000_000)
try:
    try:
        container.update(nano_cpus=750_000_000)
        unknown = "accepted"
    except TypeError as error:
        unknown = f"TypeError: {error}"
    try:
        container.update(cpu_period=100_000, cpu_quota=75_000)
        quota = "accepted"
    except docker.errors.APIError as error:
        quota = f"{error.status_code} {error.explanation}"
    client.api.post(
        f"{client.api.base_url}/v{client.api.api_version}/containers/{container.id}/update", json={"NanoCpus": 750_000_000}
    ).raise_for_status()
    container.reload()
    raw = container.attrs["HostConfig"]["NanoCpus"]
finally:
    container.remove()
    client.images.remove(image)
print(f"update(nano_cpus=...)            {unknown}")
print(f"update(cpu_period, cpu_quota)    {quota}")
print(f"the same number by POST /update  NanoCpus is {raw}")
raise SystemExit(not unknown.startswith("TypeError") or "Conflicting options" not in quota or raw != 750_000_000)
PYTHON
