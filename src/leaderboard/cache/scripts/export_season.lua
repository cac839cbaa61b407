#!lua flags=allow-oom
-- Reads a whole cached season at one instant, for replicas and audits.
-- USES: seasons
-- KEYS: state, seasons
-- ARGV: season
-- `cache/scripts.py` makes locals of these names.
-- Returns token, epoch and snapshot of the state, the season's entry, the members with their scores, and the metadata by id;
-- nil if the season is not cached.
local entry = redis.call('HGET', seasons, season)
local current = redis.call('HMGET', state, 'token', 'epoch', 'snapshot')
if not entry or not current[1] then
    return false
end
local scores, metadata = keys_of(entry:match('^[^|]*'))
return {current[1], current[2], current[3], entry,
    redis.call('ZRANGE', scores, 0, -1, 'WITHSCORES'), redis.call('HGETALL', metadata)}
