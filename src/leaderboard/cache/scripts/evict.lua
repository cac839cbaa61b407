#!lua flags=allow-oom
-- Removes one season from the cache. That needs no token: an apply leaves out a season that is not cached any more.
-- USES: seasons
-- KEYS: seasons
-- ARGV: season
-- `cache/scripts.py` makes locals of these names.
-- Returns 1, or 0 if it was not cached.
local entry = redis.call('HGET', seasons, season)
if not entry then
    return 0
end
redis.call('HDEL', seasons, season)
redis.call('UNLINK', keys_of(entry:match('^[^|]*')))
return 1
