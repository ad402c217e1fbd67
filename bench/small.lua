-- wrk's side of the small scenario: small.lua URL -- put SIZE | get FILE, where FILE lists one path a line.

local BOUNDARY = "distfs-bench-7d1f0c"
local paths, body, number = {}, "", 0

function init(args)
  if args[1] == "get" then
    for path in io.lines(args[2]) do paths[#paths + 1] = path end
    return
  end
  local bytes = {}
  for i = 1, tonumber(args[2]) - 16 do bytes[i] = string.char(math.random(0, 255)) end
  body = table.concat(bytes) .. "\r\n--" .. BOUNDARY .. "--\r\n"
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "multipart/form-data; boundary=" .. BOUNDARY
end

function request()
  number = number + 1
  if #paths > 0 then return wrk.format("GET", paths[number % #paths + 1]) end
  return wrk.format(nil, nil, nil, "--" .. BOUNDARY ..
    '\r\nContent-Disposition: form-data; name="file"; filename="small.bin"' ..
    "\r\nContent-Type: application/octet-stream\r\n\r\n" .. string.format("%016d", number) .. body)
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "failed": %d, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
