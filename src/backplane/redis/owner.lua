-- The owner of this prefix: the first fleet, as long as one of its instances renews it.
-- KEYS: the owner's key
-- ARGV: a hash of the issuer and the audience, how long it holds without renewal in ms
-- Answers {1} when it is ours, {0} when it is another fleet's.
local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'table' and owner.err then return redis.error_reply(owner.err .. ' (get)') end
if owner and owner ~= ARGV[1] then return {0} end
local set = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if type(set) == 'table' and set.err then return redis.error_reply(set.err .. ' (set)') end
return {1}
