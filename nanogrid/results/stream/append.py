"""How an entry gets into the results stream: a piece of Lua, for the step of Redis that stores the result.

The rule: what is wrong with the stream never keeps a result from being stored.
"""

from __future__ import annotations

APPEND = """
local function append(stream, counter, limit, fields)
    local number = redis.pcall('incr', counter)
    if type(number) == 'table' then return 0, number.err end
    local function add(ms)
        return redis.pcall('xadd', stream, 'maxlen', limit, ms .. '-' .. number, unpack(fields))
    end
    local now = redis.call('time')
    local added = add(now[1] .. string.format('%03d', math.floor(now[2] / 1000)))
    if type(added) == 'table' then
        local about = redis.pcall('xinfo', 'stream', stream)
        if about.err then return number, added.err end
        for index = 1, #about, 2 do
            if about[index] == 'last-generated-id' then added = add(string.match(about[index + 1], '^%d+')) end
        end
    end
    return number, type(added) == 'table' and added.err or ''
end
"""
"""Lua: `append(stream, counter, limit, fields)` returns the number, 0 where there is none, and why it could not be done, or an
empty string.

An entry's id is the milliseconds of Redis' clock, a dash, and the result's number. Where the clock was set back, the last
entry's milliseconds are taken again: ids must grow. A number is used up also where its entry could not be appended, so
that followers see that there was one.
"""


def counter_key(stream: str) -> str:
    """The key that holds the number of the last result."""
    return f"{stream}:number"
