#!/usr/bin/env bash
# kombu 5.7.0: purging an SQS queue of one message answers that ten messages were purged.
#
# The channel looks at the queue's approximate size up to ten times before it purges, and adds what it sees each time. So
# `celery purge` says "Purged 10 messages" for one.
#
# Seen:   1 message in the queue; queue_purge() answers 10
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'kombu[sqs]==5.7.0' 'moto[sqs]==5.2.5'
AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1 "$folder/env/bin/python" -W ignore - <<'PYTHON'
from kombu import Connection
from moto import mock_aws

with mock_aws(), Connection("sqs://", transport_options={"region": "us-east-1"}) as connection:
    channel = connection.default_channel
    channel.queue_declare("jobs")
    channel.sqs().send_message(QueueUrl=channel._resolve_queue_url("jobs"), MessageBody="{}")
    there = channel._size("jobs")
    purged = channel.queue_purge("jobs")
print(f"{there} message in the queue; queue_purge() answers {purged}")
raise SystemExit(not (there == 1 and purged == 10))
PYTHON
