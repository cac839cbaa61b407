#!lua
-- Offers a season that was loaded beside the cache, so that the next catching up admits it. Makes room for it first:
-- evicts seasons that are read less often.
-- USES: seasons
-- KEYS: seasons, pending, reads, loading_scores, loading_metadata, claim
-- ARGV: nonce, season, offer, count, least_weight, max_users, reads_of_it, half_life_ms, keep_ms
-- `cache/scripts.py` makes locals of these names.
-- `offer`: what is pending then; a season counts as `least_weight` users at least, and all together as `max_users` at most.
-- `reads_of_it`: how often it was read since the last report. `keep_ms`: when the load expires unless it is admitted.
-- Returns the names of the evicted seasons; nil if it was not offered: it is cached or pending, another process has the
-- claim, not everything that was loaded is there, or there is no room.
count = tonumber(count)
if redis.call('GET', claim) ~= nonce or redis.call('HEXISTS', pending, season) == 1
    or redis.call('ZCARD', loading_scores) ~= count or redis.call('HLEN', loading_metadata) ~= count then
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
local used, victims = math.max(count, least_weight), {}
local others = redis.call('HGETALL', seasons)
for i = 1, #others, 2 do
    if others[i] ~= season then
        local load, users = others[i + 1]:match('^([^|]*)|[^|]*|([^|]*)|')
        local weight = math.max(tonumber(users) or 0, least_weight)
        used = used + weight
        victims[#victims + 1] = {name = others[i], load = load or '', weight = weight, rate = rate(others[i])}
    end
end
for _, waiting in ipairs(redis.call('HVALS', pending)) do
    used = used + math.max(tonumber(waiting:match('^[^|]*|[^|]*|([^|]*)|')) or 0, least_weight)
end
table.sort(victims, function(a, b) return a.rate < b.rate end)
local own_rate, chosen, excess = rate(season) + tonumber(reads_of_it), {}, used - tonumber(max_users)
for _, victim in ipairs(victims) do
    if excess <= 0 then
        break
    end
    if victim.rate >= own_rate then
        return false
    end
    chosen[#chosen + 1] = victim
    excess = excess - victim.weight
end
if excess > 0 then
    return false
end

if entry then
    -- Some of its keys have expired or were evicted.
    redis.call('HDEL', seasons, season)
    redis.call('UNLINK', keys_of(entry:match('^[^|]*')))
end
local evicted = {}
for _, victim in ipairs(chosen) do
    redis.call('HDEL', seasons, victim.name)
    redis.call('UNLINK', keys_of(victim.load))
    evicted[#evicted + 1] = victim.name
end
redis.call('HSET', pending, season, offer)
redis.call('HSET', reads, season, string.format('%.3f|%.0f', own_rate, now))
redis.call('PEXPIRE', loading_scores, keep_ms)
redis.call('PEXPIRE', loading_metadata, keep_ms)
redis.call('DEL', claim)
return evicted
