#!lua flags=allow-oom
-- The whole cache and its state at one instant, for the audit and for copies. KEYS scores, metadata, state
-- Returns token, epoch, snapshot, floor, total, usable, then the members with their scores, then the metadata by
-- member; nil if there is no state.
local state = redis.call('HMGET', KEYS[3], 'token', 'epoch', 'snapshot', 'floor', 'total', 'usable')
if not state[1] then
    return false
end
return {state[1], state[2], state[3], state[4], state[5], state[6],
    redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), redis.call('HGETALL', KEYS[2])}
