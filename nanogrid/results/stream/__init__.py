"""The results stream: every result once more, as an entry of one bounded Redis stream that a control plane follows.

The rule: a result and its entry come together, in one step of Redis. Entries are numbered without a gap, so that whoever
follows can say how many it missed.

    entry      what an entry holds, and what is cut off
    append     how it gets into the stream
    position   where a follower begins
    reading    reading with a consumer group, and without
    follower   the iterator over all of it, that rides out a restart of Redis
"""
