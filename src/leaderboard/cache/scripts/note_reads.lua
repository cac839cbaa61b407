#!lua
-- Notes how often seasons were read since the last report of a process. Then evicts seasons that are not read any more, and
-- those that are read least if all together have become too large: a season that was small when it was admitted may grow.
-- USES: seasons
-- KEYS: seasons, reads
-- ARGV: half_life_ms, idle_ms, least_weight, max_users, ...
-- `cache/scripts.py` makes locals of these names; REST is the index of the first further argument.
-- `half_life_ms`: after so long, a read counts half. `idle_ms`: after so long without a read, a season is evicted. A season
-- counts as `least_weight` users at least, and all together as `max_users` at most. The rest: name and number of reads of
-- each season.
-- Returns the names of the seasons that were evicted.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
half_life_ms, idle_ms, least_weight = tonumber(half_life_ms), tonumber(idle_ms), tonumber(least_weight)
-- So many seasons are noted at most that are not cached: what follows reads all of them.
local MAX_OTHERS = 10000

for i = REST, #ARGV, 2 do
    local entry, noted = redis.call('HGET', seasons, ARGV[i]), redis.call('HGET', reads, ARGV[i])
    if entry or noted or redis.call('HLEN', reads) < MAX_OTHERS then
        redis.call('HSET', reads, ARGV[i], string.format('%.3f|%.0f', rate_of(noted, now, half_life_ms) + tonumber(ARGV[i + 1]), now))
    end
    if entry then
        for _, key in ipairs({keys_of(entry:match('^[^|]*'))}) do
            redis.call('PEXPIRE', key, idle_ms)
        end
    end
end

local rates = {}
local noted = redis.call('HGETALL', reads)
for i = 1, #noted, 2 do
    local rate, ago = rate_of(noted[i + 1], now, half_life_ms)
    if not ago or ago > idle_ms then
        redis.call('HDEL', reads, noted[i])
    else
        rates[noted[i]] = rate
    end
end

local evicted, stay, used = {}, {}, 0
local function evict(season)
    redis.call('HDEL', seasons, season.name)
    redis.call('UNLINK', keys_of(season.load))
    evicted[#evicted + 1] = season.name
end

local cached = redis.call('HGETALL', seasons)
for i = 1, #cached, 2 do
    local load, users = cached[i + 1]:match('^([^|]*)|[^|]*|([^|]*)|')
    local season = {name = cached[i], load = load or '', weight = math.max(tonumber(users) or 0, least_weight)}
    season.rate = rates[season.name]
    if season.rate then
        used = used + season.weight
        stay[#stay + 1] = season
    else
        evict(season)
    end
end
table.sort(stay, function(a, b) return a.rate < b.rate end)
for _, season in ipairs(stay) do
    if used <= tonumber(max_users) then
        break
    end
    evict(season)
    used = used - season.weight
end
return evicted
