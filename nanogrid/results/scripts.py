"""The steps of a request's life in Redis: Lua scripts, each one round trip.

The rule: each may be executed twice, and late. It compares first, so that it recognizes its own success, and neither a duplicate
nor a late command changes an end.

An "end" is a stored ExecutionResult. It is "unpublished" while it has no time for the last phase, storing.
"""

from __future__ import annotations

from nanogrid.results.stream.append import APPEND

CLAIM = """
local function claim(key, token, life_ms)
    local holder = redis.call('get', key)
    if holder and holder ~= token then return 0 end
    redis.call('set', key, token, 'px', life_ms)
    return 1
end
"""
"""Lua: take a claim, or take it again: if the first answer was lost, the caller holds the claim already and must not wait for it."""

TAKE = CLAIM + "return claim(KEYS[1], ARGV[1], ARGV[2])"

MICROSECONDS = """
local function microseconds()
    local now = redis.call('time')
    return now[1] * 1000000 + now[2]
end
"""

BEGIN = (
    CLAIM
    + MICROSECONDS
    + """
local stored = redis.call('get', KEYS[1])
local ended = stored and string.find(stored, ARGV[5], 1, true)
local claimed = claim(KEYS[2], ARGV[1], ARGV[2])
if claimed == 1 and not ended and stored ~= ARGV[3] then
    redis.call('set', KEYS[1], ARGV[3], 'ex', ARGV[4])
    redis.call('publish', KEYS[1], ARGV[3])
end
return {ended and stored or false, claimed, microseconds(), unpack(redis.call('hmget', KEYS[3], unpack(ARGV, 6)))}
"""
)
"""Take the claim if it is free, and store and publish the state STARTED unless the request has an end. Returns the end or nothing,
whether the claim is taken, the time of Redis' clock in microseconds, and fields of a hash."""

SET_UNLESS_ENDED = """
local stored = redis.call('get', KEYS[1])
if stored and (stored == ARGV[1] or string.find(stored, ARGV[3], 1, true)) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'ex', ARGV[2])
redis.call('publish', KEYS[1], ARGV[1])
return 1
"""
"""Celery reads first and sets afterwards: a duplicate's STARTED in between would erase an end, and the function would run again."""

LONGEST_STORE_MS = 1000
"""A longer time by Redis' clock is not believed: it may have been set meanwhile. Then the sender measures the time."""

STORE_FIRST_END = (
    APPEND
    + MICROSECONDS
    + f"""
local stored = redis.call('get', KEYS[1])
local head, tail = ARGV[1], ARGV[2]
if stored and string.find(stored, ARGV[4], 1, true) then
    if ARGV[6] == '1' then redis.call('set', KEYS[1], stored, 'keepttl') end
    if string.sub(stored, 1, #head) == head and string.sub(stored, #stored - #tail + 1) == tail then
        local time = string.sub(stored, #head + 1, #stored - #tail)
        if time == 'null' then return {{1, 0, ''}} end
        if tonumber(time) then return {{2, 0, '', time}} end
    end
    return {{string.find(stored, ARGV[7], 1, true) and stored or 0, 0, ''}}
end
local time = 'null'
if ARGV[8] ~= '' then
    local ms = (microseconds() - ARGV[8]) / 1000
    if ms >= 0 and ms <= {LONGEST_STORE_MS} then time = string.format('%.3f', ms) end
end
redis.call('set', KEYS[1], head .. time .. tail, 'ex', ARGV[3])
local number, refused = 0, ''
if ARGV[5] ~= '0' then number, refused = append(KEYS[2], KEYS[3], ARGV[5], {{unpack(ARGV, 9)}}) end
if time == 'null' then return {{1, number, refused}} end
redis.call('publish', KEYS[1], head .. time .. tail)
return {{2, number, refused, time}}
"""
)
"""Store an end and append it to the stream, unless the request has an end. `head` and `tail` are its text before and after the time
of storing. If the sender knows when it began by Redis' clock, the time is filled in here and the end is published at once.

Returns three or four values. First 2 if this end is stored and published (fourth: the time), 1 if it is stored and not published, 0
if another one is published, or the stored text of another one that is not published yet. Second the number of the result, if it
was stored now. Third why it has no stream entry.

An end can be stored and unpublished: its answer was lost, or its child was killed or hit its time limit in between. The next
delivery that finds it so publishes it. If replicas are waited for, an end that exists is written once more: WAIT covers only
what *this* connection wrote, and the child that stored it may have died before the replicas had it.
"""

COMPLETE_END = """
local stored = redis.call('get', KEYS[1])
if not (stored and string.find(stored, ARGV[3], 1, true)) then return -1 end
if stored == ARGV[1] then return 1 end
if not string.find(stored, ARGV[4], 1, true) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'ex', ARGV[2])
redis.call('publish', KEYS[1], ARGV[1])
return 1
"""
"""Returns 1 if this end is published, 0 if another one was published, -1 if the end is gone.

It completes only an existing end: if a failover lost it in the meantime, it must be stored again together with its stream
entry. It completes only an unpublished end, so that each is published once. If it was published and the answer was lost, the
script recognizes it.
"""

GONE = -1

REWRITE = """
local stored = redis.call('get', KEYS[1])
if stored then redis.call('set', KEYS[1], stored, 'keepttl') end
return 1
"""
"""A write for WAIT to cover, after the writes of other connections."""
