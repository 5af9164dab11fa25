"""Every Redis key of the product: its type, how long it lives, who writes it and who reads it.

There is one Redis and no cluster, as Celery needs too. What is lost with it: requests under way, counts and limits.
Jobs come back from their copies in S3. Names never change: versions that run side by side share them. Celery keeps keys
of its own beside these (`unacked`, `unacked_index`, `unacked_mutex`, `_kombu.binding.*`).

This module imports nothing, so that every floor of the program may use it.
"""


class Keys(str):
    """The keys of one family: they share a beginning, which this is, and end in the name of what they are about."""

    __slots__ = ()

    def of(self, *names: str) -> str:
        """Return the key of the family's member of that name; several names are joined by colons."""
        return self + ":".join(names)


# Jobs. The scripts of worker/jobs/lua.py write most of these keys; nobody outside worker/jobs/ reads them.

JOB = Keys("job:")
"""Hash, `job:{job id}`: version, status, fence, cancel, record (JSON), progress (JSON), last_loss, last_checkpoint,
health (JSON).

It stays for ever. The record store writes and reads it.
"""
LEASE = Keys("lease:")
"""String, `lease:{job id}`: the worker that runs the job. It lives for `lease_s` after the last sign of life.

Supervisors renew it; the reaper takes the job from a worker whose lease ran out.
"""
EVENTS = Keys("events:")
"""Stream, `events:{job id}`: entries of type, at, data (JSON), the last `event_limit` of them.

It stays while the job is open and for a day after that. A job's process writes it; the routes of events, the metrics of
trainers and the archive in S3 read it.
"""
JOBS_ALL = "jobs:all"
"""Sorted set of all job ids, by name. It stays for ever. The list of jobs reads it."""
JOBS_BY_STATUS = Keys("jobs:status:")
"""Sorted set, `jobs:status:{status}`: the ids of the jobs in that state, by name. It stays for ever."""
JOBS_WAITING = Keys("jobs:queue:")
"""Sorted set, `jobs:queue:{kind}`: the ids of the queued jobs, by the time (ms) at which they were queued.

It stays for ever. Trainers take their next job from it.
"""
JOBS_UNSAVED = "jobs:unsaved"
"""Set of the ids of jobs whose copy in S3 is older than their hash. It stays for ever. The reaper empties it."""
JOBS_RESTORED = "jobs:restored"
"""String, the Unix time of the last restore from S3. It stays for ever: where it is absent, Redis was wiped."""
JOB_COUNTS = "jobs:counts"
"""Hash, KIND/STATUS -> the number of jobs in that state. It stays for ever. The service's metrics read it."""
JOB_TALLY = "jobs:tally"
"""Hash of what became of attempts and jobs; worker/jobs/tally.py names its fields. It stays for ever."""
DELETIONS = "deletions"
"""Sorted set of the folders in storage that are being deleted, by the Unix time (s) at which that was decided.

A folder stays in it until its deletion is settled. worker/jobs/deletion.py and the scripts that guard a record use it.
"""
JOB_PLACES = Keys("quota:")
"""Sorted set, `quota:{API key id}`: the ids of the open jobs of that key, and reservations by the time they run out.

It stays for ever; jobs that have ended leave it when the next one is asked for, deleted ones at once.
worker/jobs/places.py uses it.
"""
GATHERING = "gathering"
"""String, the job that waits for its nodes (JSON, worker/jobs/nodes.py). It lives for `lease_s` after the last renewal.

The trainer that holds the job's lease writes it; trainers without work read it.
"""
NODE = Keys("node:")
"""String, `node:{job id}:{lease token}:{number}`: the trainer that is that node of the job, or that it leaves.

It lives for `lease_s` after the last renewal. The node's supervisor writes it; that of node 0 reads all.
"""
REAPER_LOCK = "reaper:lock"
"""String, the worker that sweeps. It lives for three sweeps after the last one."""

# Queues. Celery pushes messages (JSON) on the left of these lists and takes them from the right.

TRAIN_QUEUE = "train"
"""List of the messages that wake trainers, one for each waiting job. Autoscalers read its length."""
SAMPLE_QUEUE = "sample"
"""List of the requests that any sampler may answer. Autoscalers read its length."""
SAMPLER_QUEUES = Keys("sample@")
"""List, `sample@{worker}`: the requests for the sampler that has their model loaded."""

# Requests to the samplers, and what samplers say of themselves.

INPUT = Keys("input:")
"""String, `input:{request id}`: the array of the request, as .npy. It lives a little longer than its request.

The service writes and removes it; a sampler reads it.
"""
CANCEL = Keys("cancel:")
"""String, `cancel:{request id}`: exists when the request's client has left. It lives for ten minutes.

The service writes it; samplers look for those of their open requests.
"""
REPLY = Keys("reply:")
"""List, `reply:{request id}`: encoded replies, the first one first. It lives for a minute after the last one.

A sampler writes it; the service waits at it.
"""
LOADS = "samplers"
"""Hash, sampler -> its load (JSON, worker/queue/loads.py). Samplers write theirs; the service reads all."""

# Workers and callers.

WORKER = Keys("worker:")
"""String, `worker:{queue}:{worker}`: what the worker says of itself (JSON).

It lives for three and a half heartbeats. Every worker writes its own (worker/observe/presence.py); the routes of
health, the metrics and the doctor read them.
"""
RATE = Keys("rate:")
"""String, `rate:{caller}`: the time (µs) at which the caller will have used up nothing, when it expires too.

service/door/limits.py uses it.
"""
IDEMPOTENCY = Keys("idempotency:")
"""String, `idempotency:{digest}`: the fingerprint of a request and the id of its job.

It lives for three minutes, and for a day once the job is made. service/http/idempotency.py uses it.
"""
