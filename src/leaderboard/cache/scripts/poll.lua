#!lua flags=allow-oom
-- Reads the state of the cache, and tries for the lease with which one process at a time catches up.
-- It lacks the flag no-writes on purpose: a replica of Redis and a demoted primary must refuse it.
-- KEYS: scores, metadata, state, lease, seasons, pending
-- ARGV: nonce, lease_ms
-- `cache/scripts.py` makes locals of these names.
-- `lease_ms` 0: do not try for the lease.
-- Returns the time in microseconds, leased 0 or 1, consistent 0 or 1, the fields of the state, and with the lease also the
-- cached seasons and the loads to be admitted; the time only if there is no state.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local current = redis.call('HMGET', state, 'token', 'epoch', 'snapshot', 'floor', 'count', 'total', 'asof', 'valid')
if not current[1] then
    return {now}
end
local count = tonumber(current[5])
local consistent = 0
if redis.call('ZCARD', scores) == count and redis.call('HLEN', metadata) == count then
    consistent = 1
end
local leased = 0
if lease_ms ~= '0' then
    -- Every lease expires within lease_ms. One that does not was written by another program, and is overwritten.
    local left = redis.call('PTTL', lease)
    if left == -1 or left > tonumber(lease_ms) then
        redis.call('DEL', lease)
    end
    if redis.call('SET', lease, nonce, 'NX', 'PX', lease_ms) or redis.call('GET', lease) == nonce then
        leased = 1
    end
end
local others = {{}, {}}
if leased == 1 then
    others = {redis.call('HGETALL', seasons), redis.call('HGETALL', pending)}
end
return {now, leased, consistent, current[1], current[2], current[3], current[4], current[5], current[6], current[7],
    current[8], others[1], others[2]}
