"""The scripts that change a job's hash in Redis. Each runs whole or not at all, which is what makes the guards hold.

The names of keys are those of worker/redis_keys.py, which every script begins with as local variables.
"""

from worker import redis_keys

_NAMES = (
    "JOB",
    "LEASE",
    "EVENTS",
    "JOBS_ALL",
    "JOBS_BY_STATUS",
    "JOBS_WAITING",
    "JOBS_UNSAVED",
    "JOB_COUNTS",
    "JOB_TALLY",
    "DELETIONS",
)
_KEYS = "".join(f"local {name} = '{getattr(redis_keys, name)}'\n" for name in _NAMES)


_UNCOUNT = """
local function uncount(field)
  if redis.call('HINCRBY', JOB_COUNTS, field, -1) == 0 then redis.call('HDEL', JOB_COUNTS, field) end
end
"""


def _script(text: str) -> str:
    return _KEYS + _UNCOUNT + text


WRITE = _script("""
-- Compare-and-set of a whole record. Answers {'ok'} or why not.
local id, expected, kind, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local version, fence, cancel, record = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local queued_ms, lease_ms, worker, only_unleased = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local event_at, event_data, event_limit, event_ttl_s = ARGV[13], ARGV[14], ARGV[15], ARGV[16]
local job, lease, events = JOB .. id, LEASE .. id, EVENTS .. id
local found = redis.call('HGET', job, 'version')
if not found and expected ~= '' then return {'missing'} end
if found and found ~= expected then return {'conflict'} end
if only_unleased == '1' and redis.call('EXISTS', lease) == 1 then return {'leased'} end
local before = redis.call('HGET', job, 'status')
if not found or (status == 'queued' and before ~= 'running') then
  -- Nothing comes back that is being deleted, and nothing begins that needs what is.
  local needed = {'jobs/' .. id .. '/'}
  local job_record = cjson.decode(record)
  if status == 'queued' and type(job_record.model_id) == 'string' then
    local model = 'models/' .. job_record.model_id .. '/'
    table.insert(needed, model)
    if type(job_record.spec.step) == 'number' then
      table.insert(needed, string.format('%scheckpoints/%d/', model, job_record.spec.step))
    end
  end
  for _, folder in ipairs(needed) do
    if redis.call('ZSCORE', DELETIONS, folder) then return {'deleted', folder} end
  end
end
redis.call('HSET', job, 'version', version, 'status', status, 'fence', fence, 'cancel', cancel, 'record', record)
redis.call('ZADD', JOBS_ALL, 0, id)
if before and before ~= status then redis.call('ZREM', JOBS_BY_STATUS .. before, id) end
redis.call('ZADD', JOBS_BY_STATUS .. status, 0, id)
if before ~= status then
  redis.call('HINCRBY', JOB_COUNTS, kind .. '/' .. status, 1)
  if before then uncount(kind .. '/' .. before) end
end
for i = 17, #ARGV, 2 do redis.call('HINCRBYFLOAT', JOB_TALLY, ARGV[i], ARGV[i + 1]) end
if status == 'queued' then redis.call('ZADD', JOBS_WAITING .. kind, queued_ms, id)
else redis.call('ZREM', JOBS_WAITING .. kind, id) end
if status ~= 'running' then redis.call('DEL', lease)
elseif lease_ms ~= '0' then redis.call('SET', lease, worker, 'PX', lease_ms) end
redis.call('SADD', JOBS_UNSAVED, id)
if event_data ~= '' then
  redis.call('XADD', events, 'MAXLEN', '~', event_limit, '*', 'type', 'status', 'at', event_at, 'data', event_data)
end
if status == 'queued' or status == 'running' then redis.call('PERSIST', events)
else redis.call('EXPIRE', events, event_ttl_s) end
return {'ok'}
""")

RENEW = _script("""
-- The record, not the lease key, says whose the job is: a holder that was slow, or whose key was lost with Redis, goes
-- on as long as nobody else was given the job. Answers nothing when it was, else the cancel flag.
local held = redis.call('HMGET', JOB .. ARGV[1], 'status', 'fence', 'cancel')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return false end
redis.call('SET', LEASE .. ARGV[1], ARGV[3], 'PX', ARGV[4])
return held[3]
""")

REPORT = _script("""
-- Sets fields beside the record, if the token still owns the job.
local job = JOB .. ARGV[1]
local held = redis.call('HMGET', job, 'status', 'fence')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
redis.call('HSET', job, unpack(ARGV, 3))
return 1
""")

APPEND_EVENT = _script("""
local held = redis.call('HMGET', JOB .. ARGV[1], 'status', 'fence')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return false end
return redis.call('XADD', EVENTS .. ARGV[1], 'MAXLEN', '~', ARGV[6], '*',
                  'type', ARGV[3], 'at', ARGV[4], 'data', ARGV[5])
""")

MARK_SAVED = _script("""
-- The copy in S3 is current only if nothing was written since it was read.
if redis.call('HGET', JOB .. ARGV[1], 'version') ~= ARGV[2] then return 0 end
redis.call('SREM', JOBS_UNSAVED, ARGV[1])
return 1
""")

RESERVE_PLACE = _script("""
-- A place for one more job, unless its holder has `limit` that wait or run.
-- The set holds job ids with score 0, and reservations with the time they run out. Answers whether there was one.
local limit, reservation, now, runs_out = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]
local members = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
  local until_s = tonumber(members[i + 1])
  local status = redis.call('HGET', JOB .. members[i], 'status')
  local open = status == 'queued' or status == 'running'
  if until_s > 0 then open = until_s > now end
  if not open then redis.call('ZREM', KEYS[1], members[i]) end
end
if redis.call('ZCARD', KEYS[1]) >= limit then return 0 end
redis.call('ZADD', KEYS[1], runs_out, reservation)
return 1
""")

TAKE_AWAY_JOB = _script("""
-- Removes a job that has ended, or with ARGV[3] any, and marks its folder as being deleted. Answers its status; nothing
-- when there is no such job.
local id, folder, always = ARGV[1], ARGV[2], ARGV[3]
local job = JOB .. id
local held = redis.call('HMGET', job, 'status', 'record')
local status = held[1]
if status and always == '' and (status == 'queued' or status == 'running') then return status end
if status or always ~= '' then
  redis.call('ZADD', DELETIONS, 'NX', redis.call('TIME')[1], folder)
  redis.call('DEL', job, LEASE .. id, EVENTS .. id)
end
if not status then return false end
local kind = cjson.decode(held[2]).kind
redis.call('ZREM', JOBS_ALL, id)
redis.call('ZREM', JOBS_BY_STATUS .. status, id)
redis.call('ZREM', JOBS_WAITING .. kind, id)
redis.call('SREM', JOBS_UNSAVED, id)
uncount(kind .. '/' .. status)
return status
""")

MARK_UNUSED = _script("""
-- Marks the folder of a model, or of its checkpoint of a step, as being deleted, unless jobs that wait or run need it.
-- Answers the ids of those.
local folder, model_id, step = ARGV[1], ARGV[2], ARGV[3]
local users = {}
for _, status in ipairs({'queued', 'running'}) do
  for _, id in ipairs(redis.call('ZRANGE', JOBS_BY_STATUS .. status, 0, -1)) do
    local record = cjson.decode(redis.call('HGET', JOB .. id, 'record'))
    local needs = record.model_id == model_id and (step == '' or record.spec.step == tonumber(step))
    if needs then table.insert(users, id) end
  end
end
if #users == 0 then redis.call('ZADD', DELETIONS, 'NX', redis.call('TIME')[1], folder) end
return users
""")
