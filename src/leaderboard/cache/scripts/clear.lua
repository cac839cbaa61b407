#!lua flags=allow-oom
-- Deletes a cache that cannot be read, unless it has been replaced meanwhile.
-- KEYS: state, scores, metadata, lease, deltas, seasons, pending
-- ARGV: unreadable_token
-- `cache/scripts.py` makes locals of these names.
-- `unreadable_token`: the token of the state that could not be read, '' to delete in any case.
-- Returns how many keys were deleted.
if unreadable_token ~= '' and redis.pcall('HGET', state, 'token') ~= unreadable_token then
    return 0
end
-- The keys of the other seasons expire.
return redis.call('DEL', state, scores, metadata, lease, deltas, seasons, pending)
