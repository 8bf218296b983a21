# SQS and S3 for the acceptance tests in containers. Builds without network from what `scripts/moto-image` gathered.
ARG BASE=python:3.13-slim

FROM ${BASE} AS install
RUN python3 -m venv --without-pip /opt/moto
COPY requirements.txt /context/
COPY locked /context/locked
RUN python3 -m pip --python /opt/moto/bin/python install --quiet --no-cache-dir --no-index \
        --root-user-action ignore --disable-pip-version-check --no-compile \
        --find-links /context/locked --require-hashes -r /context/requirements.txt
# Compiles what is imported: moto imitates far more of AWS than these two.
RUN /opt/moto/bin/python -W ignore -c "import moto.server, moto.s3.urls, moto.sqs.urls"

FROM ${BASE}
COPY --from=install /opt/moto /opt/moto
ENV PYTHONUNBUFFERED=1
USER 65534:65534
CMD ["/opt/moto/bin/python", "-W", "ignore", "-m", "moto.server", "-H", "0.0.0.0", "-p", "4566"]
