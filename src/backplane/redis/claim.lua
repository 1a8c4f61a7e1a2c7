-- Gives a slot to a new connection (the rules: src/relay/record.rs, Record::claim).
-- KEYS: the room, alone. While a slot of a cluster moves, Redis refuses a script with several keys (TRYAGAIN).
-- ARGV: device, connection, instance, client or '', known generation, lease in ms, PUBLISH or SPUBLISH,
--       the `claimed` envelope without its generation, the desktop's channel, the mobile's channel,
--       the client's attempt or ''
-- Answers {1, generation, replaced holder or '', other holder or ''}, {0, retry after ms}, or {2, the holder's later
-- attempt}. The first element is a number, so that no client library can take the answer for a pub/sub message.
local WINDOW_MS, EVICTIONS = 10000, 10
local device = ARGV[1]
local other = device == 'desktop' and 'mobile' or 'desktop'
local client = ARGV[4] == '' and '.' or ARGV[4]
local replaced = holder(device)
local same = replaced ~= '' and client ~= '.' and replaced:match('^%S+ %S+ (%S+)') == client
if same and ARGV[11] ~= '' then
  local connection, attempt = (redis.call('HGET', room, device .. ':attempt') or ''):match('^(%S+) (%d+)$')
  -- One that an older instance left is another connection's.
  if connection == replaced:match('^%S+') and tonumber(attempt) > tonumber(ARGV[11]) then return {2, attempt} end
end
if replaced ~= '' and not same then
  local recent = {}
  for at in (redis.call('HGET', room, device .. ':evictions') or ''):gmatch('%d+') do
    if at + WINDOW_MS > now then recent[#recent + 1] = at end
  end
  if #recent >= EVICTIONS then return {0, recent[1] + WINDOW_MS - now} end
  recent[#recent + 1] = string.format('%.0f', now)
  redis.call('HSET', room, device .. ':evictions', table.concat(recent, ' '))
end

-- Still grows after the record expired, was flushed, or lost its newest writes in a failover.
local last = tonumber(redis.call('HGET', room, 'last') or '0')
local generation = string.format('%.0f', math.max(last + 1, ARGV[5] + 1, now_us))
local held = table.concat({ARGV[2], ARGV[3], client, generation, string.format('%.0f', now + ARGV[6])}, ' ')
redis.call('HSET', room, 'last', generation, device, held, device .. ':newest', ARGV[2] .. ' ' .. generation)
if ARGV[11] ~= '' then redis.call('HSET', room, device .. ':attempt', ARGV[2] .. ' ' .. ARGV[11]) end
-- What is left of a room outlives its leases, so that an overwritten connection still learns of it.
redis.call('PEXPIRE', room, ARGV[6] * 3)
redis.call(ARGV[7], ARGV[9], ARGV[8] .. generation)
redis.call(ARGV[7], ARGV[10], ARGV[8] .. generation)
return {1, generation, replaced, holder(other)}
