#!lua flags=allow-oom
-- Reads the names of the cached seasons.
-- KEYS: seasons
-- `cache/scripts.py` makes locals of these names.
-- Returns the names.
return redis.call('HKEYS', seasons)
