#!lua
-- Replaces the cache by what was loaded, and leaves it invalid: a write may have been acknowledged since the snapshot
-- while there was no cache to wait for. The next catching up makes it valid.
-- The claim is checked, or a slow rebuild would replace a newer state. The other seasons are dropped, because they are not
-- at this snapshot; they are loaded again when they are read.
-- USES: seasons
-- KEYS: scores, metadata, state, deltas, seasons, loading_scores, loading_metadata, claim
-- ARGV: nonce, count, new_token, epoch, snapshot, asof, floor, total
-- `cache/scripts.py` makes locals of these names.
-- Returns 1; nil if another process has the claim, or not everything that was loaded is still there.
count = tonumber(count)
if redis.call('GET', claim) ~= nonce
    or redis.call('ZCARD', loading_scores) ~= count
    or redis.call('HLEN', loading_metadata) ~= count then
    return false
end
for _, stored in ipairs(redis.call('HVALS', seasons)) do
    redis.call('UNLINK', keys_of(stored:match('^[^|]*')))
end
redis.call('DEL', scores, metadata, state, claim, deltas, seasons)
if count > 0 then
    redis.call('RENAME', loading_scores, scores)
    redis.call('RENAME', loading_metadata, metadata)
    redis.call('PERSIST', scores)
    redis.call('PERSIST', metadata)
end
redis.call('HSET', state, 'token', new_token, 'epoch', epoch, 'snapshot', snapshot, 'asof', asof,
    'floor', floor, 'count', count, 'total', total, 'valid', 0)
return 1
