#!lua flags=allow-oom
-- Drops keys that somebody has set to a type that is not ours. KEYS the keys
return redis.call('DEL', unpack(KEYS))
