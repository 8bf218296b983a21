"""How an entry gets into the results stream: a Lua function, for the script that stores the result.

The rule: a problem with the stream never keeps a result from being stored.
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
"""Lua: `append(stream, counter, limit, fields)` returns the number of the result (0 if there is none), and an error text or an
empty string.

An entry's id is the milliseconds of Redis' clock, a dash, and the result's number. If the clock was set back, the last
entry's milliseconds are used again, because ids must grow. A number is used up even if its entry could not be appended, so
that followers notice the gap.
"""


def counter_key(stream: str) -> str:
    """Return the key of the last result's number."""
    return f"{stream}:number"
