#!lua
-- Claims the load of a season for one process at a time, if it may find room in the cache.
-- USES: seasons
-- KEYS: seasons, pending, reads, claim
-- ARGV: nonce, season, least_weight, max_users, reads_of_it, half_life_ms, claim_ms
-- `cache/scripts.py` makes locals of these names, which are those of `offer.lua`.
-- Returns 1; nil if the season is cached or pending, if another process has the claim, or if there is no room: all others
-- are read as often. `offer.lua` decides that again, when it is known how many users there are.
if redis.call('HEXISTS', pending, season) == 1 then
    return false
end
local entry = redis.call('HGET', seasons, season)
if entry then
    local load, users = entry:match('^([^|]*)|[^|]*|([^|]*)|')
    if is_whole(load or '', users) then
        return false
    end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
half_life_ms = tonumber(half_life_ms)
local function rate(name)
    return (rate_of(redis.call('HGET', reads, name), now, half_life_ms))
end

least_weight = tonumber(least_weight)
local used, lowest = least_weight, math.huge
local others = redis.call('HGETALL', seasons)
for i = 1, #others, 2 do
    if others[i] ~= season then
        local users = others[i + 1]:match('^[^|]*|[^|]*|([^|]*)|')
        used = used + math.max(tonumber(users) or 0, least_weight)
        lowest = math.min(lowest, rate(others[i]))
    end
end
if used > tonumber(max_users) and lowest >= rate(season) + tonumber(reads_of_it) then
    return false
end
-- Every claim expires. One that does not was written by another program, and is overwritten.
if redis.call('PTTL', claim) == -1 then
    redis.call('DEL', claim)
end
if not redis.call('SET', claim, nonce, 'NX', 'PX', claim_ms) then
    return false
end
return 1
