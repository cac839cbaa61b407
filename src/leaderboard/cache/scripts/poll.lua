#!lua flags=allow-oom
-- What state the cache is in, and a try for the lease that lets one process at a time catch it up.
-- No `no-writes` flag on purpose: a replica and a demoted primary must refuse this.
-- KEYS scores, metadata, state, lease; ARGV nonce, lease in ms (0: do not try)
-- Returns now in µs, leased 0/1, whole 0/1, then the state's fields; only now when there is no state.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', KEYS[3], 'token', 'epoch', 'snapshot', 'floor', 'count', 'total', 'asof', 'usable')
if not state[1] then
    return {now}
end
local whole = 0
if redis.call('ZCARD', KEYS[1]) == tonumber(state[5]) and redis.call('HLEN', KEYS[2]) == tonumber(state[5]) then
    whole = 1
end
local leased = 0
if ARGV[2] ~= '0' then
    -- Every lease is set to expire within ARGV[2]: one that does not is not of our making, and counts as free.
    local left = redis.call('PTTL', KEYS[4])
    if left == -1 or left > tonumber(ARGV[2]) then
        redis.call('DEL', KEYS[4])
    end
    if redis.call('SET', KEYS[4], ARGV[1], 'NX', 'PX', ARGV[2]) or redis.call('GET', KEYS[4]) == ARGV[1] then
        leased = 1
    end
end
return {now, leased, whole, state[1], state[2], state[3], state[4], state[5], state[6], state[7], state[8]}
