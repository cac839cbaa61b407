#!lua flags=allow-oom
-- Says whether the cache may be read now, and what has changed in some seasons since the states of the caller's replicas.
-- As `read.lua` for the board `default`. A cached season is at the snapshot of the state, whenever it last changed.
-- USES: seasons
-- KEYS: state, seasons
-- ARGV: max_age_us, known_token, current, ...
-- `cache/scripts.py` makes locals of these names; REST is the index of the first further argument.
-- `max_age_us`: the greatest age of the state in microseconds; -1 accepts any age and an invalid state. The rest: name of
-- each season, and the version of the caller's replica of it. The replicas of the first `current` seasons are those of the
-- state with `known_token`, so nothing is said of them while it is the state.
-- Returns the time in microseconds, token, epoch and asof, and nothing more if the state must not be read. Then how many of
-- the first seasons are left out, and for each of the others: nil if it is not cached; otherwise its entry, and the deltas
-- from the replica's version to this one, oldest first, nil if they are not all kept.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local stored = redis.call('HMGET', state, 'token', 'epoch', 'asof', 'valid')
local token, epoch, asof = stored[1], stored[2], stored[3]
if not (token and epoch and tonumber(asof or '')) then
    return {now}
end
local reply = {now, token, epoch, asof}
local max_age = tonumber(max_age_us)
if max_age >= 0 then
    local age = now - tonumber(asof)
    if stored[4] ~= '1' or age < 0 or age > max_age then
        return reply
    end
end

-- A delta begins with the version before it and the version after it, 16 characters each.
local function deltas_between(key, version, newest)
    if version == '' then
        return false
    end
    local found, at = {}, newest
    while at ~= version do
        local delta = redis.pcall('LINDEX', key, -1 - #found)
        if type(delta) ~= 'string' or delta:sub(17, 32) ~= at then
            return false
        end
        found[#found + 1] = delta
        at = delta:sub(1, 16)
    end
    local oldest_first = {}
    for i = #found, 1, -1 do
        oldest_first[#oldest_first + 1] = found[i]:sub(33)
    end
    return oldest_first
end

local left_out = token == known_token and tonumber(current) or 0
reply[#reply + 1] = left_out
for i = REST + 2 * left_out, #ARGV, 2 do
    local entry = redis.call('HGET', seasons, ARGV[i])
    local answer = false
    if entry then
        local load, version, count = entry:match('^([^|]*)|([^|]*)|([^|]*)|')
        if is_whole(load, count) then
            local _, _, deltas = keys_of(load)
            answer = {entry, deltas_between(deltas, ARGV[i + 1], version)}
        end
    end
    reply[#reply + 1] = answer
end
return reply
