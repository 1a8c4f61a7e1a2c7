-- Before every script that asks who holds a slot: `room`, the time, and `holder`.
local room = KEYS[1]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- 'connection instance client generation lease_end'; a client that did not name itself is '.'.
local function holder(name)
  local held = redis.call('HGET', room, name)
  if held and tonumber(held:match('(%d+)$')) > now then return held end
  return ''
end
