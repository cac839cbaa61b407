#!lua flags=allow-oom
-- Reads the whole cache and its state at one instant, for audits and replicas.
-- KEYS: scores, metadata, state
-- `cache/scripts.py` makes locals of these names.
-- Returns token, epoch, snapshot, floor, total and valid, then the members with their scores, then the metadata by
-- member; nil if there is no state.
local current = redis.call('HMGET', state, 'token', 'epoch', 'snapshot', 'floor', 'total', 'valid')
if not current[1] then
    return false
end
return {current[1], current[2], current[3], current[4], current[5], current[6],
    redis.call('ZRANGE', scores, 0, -1, 'WITHSCORES'), redis.call('HGETALL', metadata)}
