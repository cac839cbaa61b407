#!lua flags=allow-oom
-- Says whether the cache may be read now, and what has changed since the state of the caller's replica.
-- It runs when memory is full. It lacks the flag no-writes, so that a replica of Redis and a demoted primary, which may
-- be behind, refuse it.
-- KEYS: scores, metadata, state, deltas
-- ARGV: max_age_us, replica_token
-- `cache/scripts.py` makes locals of these names.
-- `max_age_us`: the greatest age of the state in microseconds; -1 accepts any age and an invalid state.
-- Returns the time in microseconds, token, epoch and asof, and nothing more if the state must not be read. Then total,
-- floor and count; 1 and the deltas from the replica's state to this one, oldest first, or 0 if they are not all kept.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local current = redis.call('HMGET', state, 'token', 'epoch', 'asof', 'valid', 'count', 'floor', 'total')
local token, epoch, asof, floor, total = current[1], current[2], current[3], current[6], current[7]
local count = tonumber(current[5] or '')
if not (token and epoch and tonumber(asof or '') and count and floor and tonumber(total or '')) then
    return {now}
end
local reply = {now, token, epoch, asof}
local max_age = tonumber(max_age_us)
if max_age >= 0 then
    local age = now - tonumber(asof)
    if current[4] ~= '1' or age < 0 or age > max_age then
        return reply
    end
end
if redis.call('ZCARD', scores) ~= count or redis.call('HLEN', metadata) ~= count then
    return reply
end

-- A delta begins with the token of the state before it and that of the state after it, 16 characters each.
local MAX_DELTAS = 200
local found, at = {}, token
while at ~= replica_token do
    local delta = #found < MAX_DELTAS and redis.pcall('LINDEX', deltas, -1 - #found)
    if type(delta) ~= 'string' or delta:sub(17, 32) ~= at then
        found = nil
        break
    end
    found[#found + 1] = delta
    at = delta:sub(1, 16)
end
for _, field in ipairs({total, floor, count, found and 1 or 0}) do
    reply[#reply + 1] = field
end
for i = found and #found or 0, 1, -1 do
    reply[#reply + 1] = found[i]:sub(33)
end
return reply
