-- What several scripts about cached seasons share. `cache/scripts.py` puts it before those that declare `-- USES: seasons`.

-- Returns the keys of a load: scores, metadata, deltas. As `keys.loading_season` names them.
local function keys_of(load)
    local prefix = '{leaderboard}:load:' .. load
    return prefix .. ':scores', prefix .. ':metadata', prefix .. ':deltas'
end

-- Returns whether a load has as many users as its entry says.
local function is_whole(load, count)
    local scores, metadata = keys_of(load)
    count = tonumber(count)
    return redis.call('ZCARD', scores) == count and redis.call('HLEN', metadata) == count
end

-- Returns how often a season was read of late, by its value in `reads`, and how many milliseconds ago that was noted, nil if
-- it was not. The clock of another server may have noted it.
local function rate_of(noted, now, half_life_ms)
    local reads_then, at = (noted or ''):match('^([%d.]+)|(%d+)$')
    if not reads_then then
        return 0, nil
    end
    local ago = math.max(0, now - tonumber(at))
    return tonumber(reads_then) * 0.5 ^ (ago / half_life_ms), ago
end
