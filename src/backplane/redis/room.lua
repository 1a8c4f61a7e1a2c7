-- Who holds the slots of a room, by Redis's clock.
-- KEYS: the room
-- Answers {now in ms, desktop or '', mobile or ''}.
local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local function holder(name)
  local held = redis.call('HGET', KEYS[1], name)
  if held and tonumber(held:match('(%d+)$')) > now then return held end
  return ''
end
return {now, holder('desktop'), holder('mobile')}
