-- Frees a slot if the connection still holds it (the rules: src/relay/record.rs, Record::release).
-- KEYS: the room, alone. While a slot of a cluster moves, Redis refuses a script with several keys (TRYAGAIN).
-- ARGV: device, connection, PUBLISH or SPUBLISH, the `released` envelope without its generation,
--       the desktop's channel, the mobile's channel
-- Answers {1, generation} when it was freed, {0} when somebody else holds it or nobody does.
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held or held:match('^(%S+)') ~= ARGV[2] then return {0} end
redis.call('HDEL', KEYS[1], ARGV[1])
local generation = held:match('^%S+ %S+ %S+ (%d+)')
redis.call(ARGV[3], ARGV[5], ARGV[4] .. generation)
redis.call(ARGV[3], ARGV[6], ARGV[4] .. generation)
return {1, generation}
