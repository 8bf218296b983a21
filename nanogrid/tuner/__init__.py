"""How much memory a function needs, learned from its runs: pure functions over plain data, from sample to advice.

The rule: nothing here reads a clock, a setting or a store. What was learned is a value that goes in and comes out.

    sample ──► learn ──► record ──► recommend ──► recommendation     (what to tell)
                            └─────► decide ─────► advice             (what the next run gets)

Sources: the recommender of Kubernetes' VPA (decaying histogram, exponential buckets, an OOM as a sample), Google's Autopilot
(a percentile with a margin), AWS Compute Optimizer ("insufficient data" as an answer).
"""
