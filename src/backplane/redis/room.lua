-- Who holds the slots of a room, by Redis's clock.
-- KEYS: the room
-- Answers {now in ms, desktop or '', mobile or '', the desktop's attempt or '', the mobile's attempt or ''}.
local function attempt(name) return redis.call('HGET', room, name .. ':attempt') or '' end
return {now, holder('desktop'), holder('mobile'), attempt('desktop'), attempt('mobile')}
