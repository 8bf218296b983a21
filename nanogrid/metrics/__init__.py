"""What a worker shows of itself over HTTP: counts and gauges for Prometheus, health, readiness, status.

    account     what children told, counted            gauges    what is so right now, read at each scrape
    queue_look  how much waits in SQS, and since when   watch     looks in the background at what takes time
    server      the HTTP port                           address   where other processes of the host find it

The rule: a scrape looks at memory only. It asks neither SQS, Redis nor Docker, and labels have few, known values: never a
function's name or a request's id.
"""
