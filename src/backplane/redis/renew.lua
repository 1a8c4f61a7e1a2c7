-- Extends a lease, or puts back a slot that Redis lost (the rules: src/relay/record.rs, Record::renew).
-- KEYS: the room, alone. While a slot of a cluster moves, Redis refuses a script with several keys (TRYAGAIN).
-- ARGV: device, connection, instance, client or '', generation, lease in ms, PUBLISH or SPUBLISH,
--       the `claimed` envelope, the desktop's channel, the mobile's channel, the client's attempt or ''
-- Answers {1, other holder or ''} or, overwritten, {0, newest connection, newest generation, holder or ''}.
local device = ARGV[1]
local other = device == 'desktop' and 'mobile' or 'desktop'
local known = redis.call('HGET', room, device)
local newest = redis.call('HGET', room, device .. ':newest')
if newest then
  local connection, generation = newest:match('^(%S+) (%d+)$')
  -- Nobody holds the slot though it was mine last: I have released it, and this renewal was overtaken by that.
  local released = connection == ARGV[2] and not known
  if tonumber(generation) > tonumber(ARGV[5]) or released then
    return {0, connection, generation, holder(device)}
  end
end
local client = ARGV[4] == '' and '.' or ARGV[4]
local held = table.concat({ARGV[2], ARGV[3], client, ARGV[5], string.format('%.0f', now + ARGV[6])}, ' ')
redis.call('HSET', room, device, held, device .. ':newest', ARGV[2] .. ' ' .. ARGV[5])
if tonumber(redis.call('HGET', room, 'last') or '0') < tonumber(ARGV[5]) then
  redis.call('HSET', room, 'last', ARGV[5])
end
redis.call('PEXPIRE', room, ARGV[6] * 3)
if not known or known:match('^(%S+)') ~= ARGV[2] then
  if ARGV[11] ~= '' then redis.call('HSET', room, device .. ':attempt', ARGV[2] .. ' ' .. ARGV[11]) end
  redis.call(ARGV[7], ARGV[9], ARGV[8])
  redis.call(ARGV[7], ARGV[10], ARGV[8])
end
return {1, holder(other)}
