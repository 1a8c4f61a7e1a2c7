-- Frees a slot if the connection still holds it (the rules: src/relay/record.rs, Record::release).
-- KEYS: the room, the desktop's channel, the mobile's channel
-- ARGV: device, connection, PUBLISH or SPUBLISH, the `released` envelope without its generation
-- Answers {1} when it was freed, {0} when somebody else holds it or nobody does.
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held or held:match('^(%S+)') ~= ARGV[2] then return {0} end
redis.call('HDEL', KEYS[1], ARGV[1])
local generation = held:match('^%S+ %S+ %S+ (%d+)')
redis.call(ARGV[3], KEYS[2], ARGV[4] .. generation)
redis.call(ARGV[3], KEYS[3], ARGV[4] .. generation)
return {1}
