-- The requests that wrk sends. The environment says which:
--   BENCH_WRITES  the share of requests that write
--   BENCH_TOP     the reads are of the best BENCH_TOP users
--   BENCH_IDS     … or of contexts of the users in this file, one id per line
--   BENCH_USERS   the number of users; without a file, contexts are of all of them, as are writes
--   BENCH_NAMES   the writes create users, whose names begin with this
--   BENCH_SEED    seed of the random numbers
local writes = tonumber(os.getenv("BENCH_WRITES"))
local top = os.getenv("BENCH_TOP")
local ids_file = os.getenv("BENCH_IDS")
local users = tonumber(os.getenv("BENCH_USERS"))
local names = os.getenv("BENCH_NAMES")

local random = math.random
local ids, made = {}, 0
local head

if ids_file then
    for id in io.lines(ids_file) do ids[#ids + 1] = id end
end

function init()
    math.randomseed(tonumber(os.getenv("BENCH_SEED")))
    head = " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n"
end

-- Built here, because wrk.format takes longer than some contestants take to answer.
local function get(path)
    return "GET " .. path .. head .. "\r\n"
end

local function post(path, body)
    return "POST " .. path .. head .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

-- Scores like those of the users.
local function score()
    return string.format("%d", math.min(100 / (1 - random()), 2147483647))
end

function request()
    if random() < writes then
        if names then
            made = made + 1
            return post("/users", '{"username":"' .. names .. made .. '","score":' .. score() .. "}")
        end
        return post("/users/" .. random(users) .. "/score", '{"score":' .. score() .. "}")
    end
    if top then return get("/leaderboard/top/" .. top) end
    return get("/leaderboard/user/" .. (ids_file and ids[random(#ids)] or random(users)) .. "/context")
end

-- One line for programs, after the text of wrk.
function done(summary, latency)
    local e = summary.errors
    io.write(string.format(
        '{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"p999_ms":%f,"refused":%d,"broken":%d,"late":%d}\n',
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
        e.status, e.connect + e.read + e.write, e.timeout
    ))
end
