#!lua flags=allow-oom
-- Removes one season from the cache. That needs no token: an apply leaves out a season that is not cached any more.
-- KEYS: seasons
-- ARGV: season
-- `cache/scripts.py` makes locals of these names.
-- Returns 1, or 0 if it was not cached.
local entry = redis.call('HGET', seasons, season)
if not entry then
    return 0
end
local prefix = '{leaderboard}:load:' .. entry:match('^[^|]*')
redis.call('HDEL', seasons, season)
redis.call('UNLINK', prefix .. ':scores', prefix .. ':metadata', prefix .. ':deltas')
return 1
