"""The results stream: a copy of every result, as an entry of one bounded Redis stream that a control plane follows.

The rule: one step of Redis stores a result and its entry. Entries are numbered without gaps, so that a follower knows how
many it missed.

    entry      what an entry holds, and what is cut off
    append     how an entry gets into the stream
    position   where a follower starts
    readers    reading with a consumer group, and without
    follower   the iterator over the results, which survives a restart of Redis
"""
