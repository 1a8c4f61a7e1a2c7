-- Proves that Redis does what a handshake needs: each command of the room's scripts, on a key of the prober's own.
-- KEYS: the prober's key
-- ARGV: what comes back through the channel, PUBLISH or SPUBLISH, the channel, how long the key lives in ms
-- Answers {1}, or {0, Redis's words} when it refuses to write. It publishes in either case, so that the prober knows
-- whether messages cross; the first byte says whether Redis has written.
-- Redis does not always say which command it refuses inside a script.
local function refusal(command)
  local answer = redis.pcall(unpack(command))
  if type(answer) == 'table' and answer.err then return answer.err .. ' (' .. string.lower(command[1]) .. ')' end
end
local function prove()
  for _, command in ipairs({
    {'TIME'}, {'HSET', KEYS[1], 'probe', '1'}, {'HGET', KEYS[1], 'probe'}, {'HDEL', KEYS[1], 'probe'},
    {'HSET', KEYS[1], 'probe', '1'}, {'PEXPIRE', KEYS[1], ARGV[4]},
  }) do
    local refused = refusal(command)
    if refused then return refused end
  end
end
local refused = prove()
refused = refusal({ARGV[2], ARGV[3], (refused and '0' or '1') .. ARGV[1]}) or refused
if refused then return {0, refused} end
return {1}
