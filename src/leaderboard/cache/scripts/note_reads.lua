#!lua
-- Notes how often seasons were read since the last report of a process, and forgets those that are not read any more.
-- KEYS: seasons, reads
-- ARGV: half_life_ms, idle_ms, ...
-- `cache/scripts.py` makes locals of these names; REST is the index of the first further argument.
-- `half_life_ms`: after so long, a read counts half. `idle_ms`: after so long without a read, a season is evicted. The rest:
-- name and number of reads of each season.
-- Returns the names of the seasons that were evicted.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
half_life_ms, idle_ms = tonumber(half_life_ms), tonumber(idle_ms)
-- So many seasons are noted at most that are not cached: what follows reads all of them.
local MAX_OTHERS = 10000
for i = REST, #ARGV, 2 do
    local entry, noted = redis.call('HGET', seasons, ARGV[i]), redis.call('HGET', reads, ARGV[i])
    if entry or noted or redis.call('HLEN', reads) < MAX_OTHERS then
        local before, at = (noted or ''):match('^([^|]*)|(.*)$')
        local rate = before and tonumber(before) * 0.5 ^ ((now - tonumber(at)) / half_life_ms) or 0
        redis.call('HSET', reads, ARGV[i], string.format('%.3f|%.0f', rate + tonumber(ARGV[i + 1]), now))
    end
    if entry then
        local prefix = '{leaderboard}:load:' .. entry:match('^[^|]*')
        for _, key in ipairs({prefix .. ':scores', prefix .. ':metadata', prefix .. ':deltas'}) do
            redis.call('PEXPIRE', key, idle_ms)
        end
    end
end

local evicted = {}
local noted = redis.call('HGETALL', reads)
for i = 1, #noted, 2 do
    if now - tonumber(noted[i + 1]:match('|(.*)$')) > idle_ms then
        redis.call('HDEL', reads, noted[i])
        local entry = redis.call('HGET', seasons, noted[i])
        if entry then
            local prefix = '{leaderboard}:load:' .. entry:match('^[^|]*')
            redis.call('HDEL', seasons, noted[i])
            redis.call('UNLINK', prefix .. ':scores', prefix .. ':metadata', prefix .. ':deltas')
            evicted[#evicted + 1] = noted[i]
        end
    end
end
return evicted
