"""What a worker reports about itself over HTTP: metrics for Prometheus, health, readiness, status.

    event_metrics  counters from events            gauges      current values, read at each scrape
    queue_depths   depth and age of SQS queues     background  checks that take too long for a scrape
    health         whether the parts work          status      the JSON object at /status
    server         the HTTP port                   address     where other processes of the host find it

The rule: a scrape reads memory only. It calls neither SQS, Redis nor Docker, and labels have few, known values: never a
function's name or a request's id.
"""
