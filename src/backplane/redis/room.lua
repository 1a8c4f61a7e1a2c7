-- Who holds the slots of a room, by Redis's clock.
-- KEYS: the room
-- Answers {now in ms, desktop or '', mobile or ''}.
return {now, holder('desktop'), holder('mobile')}
