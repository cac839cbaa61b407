#!lua flags=allow-oom
-- Drops a cache that cannot be read; a cache that has been replaced in the meantime stays.
-- KEYS state, then the other keys; ARGV token of the state that could not be read ('': drop in any case)
-- Returns how many keys were deleted.
if ARGV[1] ~= '' and redis.pcall('HGET', KEYS[1], 'token') ~= ARGV[1] then
    return 0
end
return redis.call('DEL', unpack(KEYS))
