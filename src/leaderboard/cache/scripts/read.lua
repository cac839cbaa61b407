#!lua flags=allow-oom
-- Whether the cache may be read now, and what has been done to it since the state that the asker has a copy of.
-- Runs when memory is full; having no `no-writes` flag, it is refused by a replica and by a demoted primary, which
-- may be behind. KEYS scores, metadata, state, moves; ARGV greatest age in µs (-1: any, and usable or not), the
-- token of the asker's copy
-- Returns now, token, epoch, asof; with any doubt about the state no more than that. Then total, floor, count, and 1
-- with the moves from the copy's state to this one, oldest first, or 0 if they are not all known any more.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', KEYS[3], 'token', 'epoch', 'asof', 'usable', 'count', 'floor', 'total')
local count = tonumber(state[5] or '')
if not (state[1] and state[2] and tonumber(state[3] or '') and count and state[6] and tonumber(state[7] or '')) then
    return {now}
end
local reply = {now, state[1], state[2], state[3]}
local max_age = tonumber(ARGV[1])
if max_age >= 0 then
    local age = now - tonumber(state[3])
    if state[4] ~= '1' or age < 0 or age > max_age then
        return reply
    end
end
if redis.call('ZCARD', KEYS[1]) ~= count or redis.call('HLEN', KEYS[2]) ~= count then
    return reply
end

local MOST = 200
local moves, at = {}, state[1]
while at ~= ARGV[2] do
    local move = #moves < MOST and redis.pcall('LINDEX', KEYS[4], -1 - #moves)
    if type(move) ~= 'string' or move:sub(17, 32) ~= at then
        moves = nil
        break
    end
    moves[#moves + 1] = move
    at = move:sub(1, 16)
end
for _, field in ipairs({state[7], state[6], count, moves and 1 or 0}) do
    reply[#reply + 1] = field
end
for i = moves and #moves or 0, 1, -1 do
    reply[#reply + 1] = moves[i]:sub(33)
end
return reply
