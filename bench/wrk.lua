-- What wrk asks for: wrk.lua URL -- get FILE [TOKEN] | wrong FILE | put SIZE | form SIZE | hello
-- get: FILE lists one path a line, drawn at random; wrong: one token a line, shown in turn; put: a raw body; form: a form of one file; hello: the URL itself.

local BOUNDARY = "distfs-bench-7d1f0c"
local paths, body, number = {}, "", 0

local function get() return wrk.format("GET", paths[math.random(#paths)]) end

local function wrong()
  number = number % #paths + 1
  return wrk.format("GET", nil, {Authorization = "Bearer " .. paths[number]})
end

-- No two bodies are alike.
local function put()
  number = number + 1
  return wrk.format(nil, nil, nil, string.format("%016d", number) .. body)
end

local function form()
  number = number + 1
  return wrk.format(nil, nil, nil, "--" .. BOUNDARY ..
    '\r\nContent-Disposition: form-data; name="file"; filename="small.bin"' ..
    "\r\nContent-Type: application/octet-stream\r\n\r\n" .. string.format("%016d", number) .. body)
end

function init(args)
  if args[1] == "hello" then return end -- without a request() wrk sends the same one again and again
  if args[1] == "get" or args[1] == "wrong" then
    for path in io.lines(args[2]) do paths[#paths + 1] = path end
    if args[3] then wrk.headers["Authorization"] = "Bearer " .. args[3] end
    request = args[1] == "get" and get or wrong
    return
  end
  local bytes = {}
  for i = 1, tonumber(args[2]) - 16 do bytes[i] = string.char(math.random(0, 255)) end
  body = table.concat(bytes)
  if args[1] == "put" then
    wrk.method = "PUT"
    request = put
    return
  end
  body = body .. "\r\n--" .. BOUNDARY .. "--\r\n"
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "multipart/form-data; boundary=" .. BOUNDARY
  request = form
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"answers": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
