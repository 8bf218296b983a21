"""How much memory a function needs, learned from its runs.

The rule: the path from sample to advice is pure functions over plain data. They read no clock, setting or store; the record
of what was learned is an argument and a return value. Only `store` and `learner` know Redis.

    sample ──► learn ──► record ──► recommend ──► recommendation     (what the result suggests)
                            └─────► decide ─────► advice             (what the next run gets)

Sources: the recommender of Kubernetes' VPA (decaying histogram, exponential buckets, an OOM as a sample), Google's Autopilot
(a percentile with a margin), AWS Compute Optimizer ("insufficient data" as an answer).
"""
