/* weights.pml - versions of the policy from the trainer to a worker: publisher, ledger, receiver.
 *
 * The rules are those of cli/run_remote.c (publish, consume, say_version), rollout/steps.c (CONSUME
 * and VERSION are durable before workers hear of them), ipc/ipc.h (the publisher holds the newest
 * K contents; what is fetched is checked chunk by chunk and as a whole) and of take_version in
 * rollout/worker_session.c.  A chunk's bytes are the number of its version; the root hash of a
 * version is right when every chunk is its own.  The wire may change a chunk; its leaf shows it.
 *
 * Versions are made one after another, 1 to NV; version 0 is what everybody starts with.  After a
 * crash the trainer begins at its checkpoint, which is the newest consumed version or the one
 * before it, and makes the same versions again: same bits.
 *
 * Time is left out.  LIVE: in order but for the budgets, timers run slower than messages travel.
 * Seeded bugs: BUG_ANNOUNCE_BEFORE_DURABLE, BUG_NO_HASH (the leaves are not looked at and the whole
 * is not either), BUG_IN_PLACE (the receiver fills the memory that it computes with). */

#ifndef NV
#define NV 3
#endif
#define K 2  /* versions that the publisher holds */
#define NC 2 /* chunks of a version */
#define NOTHING 255
#define HARMED 254 /* what a flipped bit makes of a chunk */

#ifndef N_PUBLISHER
#define N_PUBLISHER 1
#endif
#ifndef N_COORDINATOR
#define N_COORDINATOR 1
#endif
#ifndef N_RECEIVER
#define N_RECEIVER 1
#endif
#ifndef N_DOUBLED
#define N_DOUBLED 2
#endif
#ifndef N_LOST
#define N_LOST 2
#endif
#ifndef N_HARMED
#define N_HARMED 1
#endif
#ifndef N_SWAPPED
#define N_SWAPPED 1
#endif

#define VERSION 1
#define FETCH 2
#define CHUNK 3
#define GONE 4

/* to the receiver: type, version (its root hash), chunk, bytes; to the publisher: version, chunk */
chan to_r = [2] of { byte, byte, byte, byte };
chan to_p = [2] of { byte, byte };

/* The disk of the trainer: newest version whose directory was committed.  Older ones are there as
 * far as the publisher holds them.  The disk of the ledger: CONSUME, VERSION. */
byte on_disk, d_consumed, d_version;

/* The trainer, with its publisher. */
bit p_up = 1;
byte p_version, p_oldest; /* held: p_oldest .. p_version */
bit p_written, p_announced;

/* The coordinator: what it knows, durable or not. */
byte c_consumed, c_version;

/* The receiver: what it computes with; what it fetches. */
byte loaded[NC]; /* bytes of the chunks; all of one version, or it is mixed */
byte r_version;  /* whose leases it takes; NOTHING: none */
byte r_wanted;   /* fetched now; NOTHING: none */
byte r_stage[NC] = NOTHING;

byte n_publisher = N_PUBLISHER, n_coordinator = N_COORDINATOR, n_receiver = N_RECEIVER;
byte n_doubled = N_DOUBLED, n_lost = N_LOST, n_harmed = N_HARMED, n_swapped = N_SWAPPED;

#ifdef LIVE
#define PUT !
#define RESTS(ch) (empty(to_r) && empty(to_p))
#define IS_WANTED(v) (r_wanted == (v))
#else
#define PUT !!
#define RESTS(ch) true
#define IS_WANTED(v) false
#endif

inline tell(xt, xv, xc, xb)
{
    if
    :: full(to_r)
    :: nfull(to_r) && to_r ?? [eval(xt), eval(xv), eval(xc), eval(xb)]
    :: nfull(to_r) && !(to_r ?? [eval(xt), eval(xv), eval(xc), eval(xb)]) ->
        to_r PUT xt, xv, xc, xb
    fi
}

inline ask(xv, xc)
{
    if
    :: full(to_p)
    :: nfull(to_p) && to_p ?? [eval(xv), eval(xc)]
    :: nfull(to_p) && !(to_p ?? [eval(xv), eval(xc)]) -> to_p PUT xv, xc
    fi
}

/* Workers hear of a version. */
inline announce(v)
{
    assert(v <= on_disk);    /* its files are durable */
    assert(v <= d_consumed); /* the step that made it is */
    tell(VERSION, v, 0, 0)
}

/* The trainer: trains a version, writes it, has its step recorded, announces it. */
active proctype trainer()
{
end:
    do
#ifdef BUG_ANNOUNCE_BEFORE_DURABLE
    /* 1. Announced as soon as it is in memory. */
    :: d_step { p_up && !p_written && p_version < NV && p_version == c_consumed ->
           announce(p_version + 1);
           p_written = 1
       }
    :: d_step { p_up && p_written && p_version == c_consumed ->
#else
    /* 1. Written beside, fsync, rename, fsync of the directory; the oldest one goes. */
    :: d_step { p_up && p_version < NV && p_version == d_consumed && p_announced ->
#endif
           p_version++;
           on_disk = (p_version > on_disk -> p_version : on_disk);
           p_oldest = (p_version - p_oldest >= K -> p_version - K + 1 : p_oldest);
           p_written = 0;
           p_announced = 0
       }
    /* 2. CONSUME, until the ledger's echo says that it is durable. */
    :: d_step { p_up && !p_announced && p_version > c_consumed -> c_consumed = p_version }
    /* 3. VERSION, once CONSUME is; again, until the coordinator has it. */
    :: d_step { p_up && p_version <= d_consumed && c_version != p_version ->
           c_version = p_version;
           p_announced = 0
       }
    :: d_step { p_up && !p_announced && d_version == p_version && p_version <= d_consumed ->
           p_announced = 1
       }
    /* Back after a crash, at its checkpoint. */
    :: d_step { !p_up ->
           p_up = 1;
           p_version = d_consumed;
           p_oldest = d_consumed;
           p_written = 0;
           p_announced = 0
       }
    :: d_step { !p_up && d_consumed > 0 -> /* of the step before the last */
           p_up = 1;
           p_version = d_consumed - 1;
           p_oldest = d_consumed - 1;
           p_written = 0;
           p_announced = 0
       }
    :: d_step { p_up && !p_written && p_version < d_consumed && p_announced -> /* trained again */
           p_version++;
           on_disk = (p_version > on_disk -> p_version : on_disk);
           p_oldest = (p_version - p_oldest >= K -> p_version - K + 1 : p_oldest);
           p_announced = 0
       }
    od
}

/* A thread of its own serves what is held. */
active proctype publisher()
{
    byte v, i;

end:
    do
    :: d_step { p_up && nempty(to_p) ->
           to_p ? v, i;
           if
           :: v >= p_oldest && v <= p_version -> tell(CHUNK, v, i, v)
           :: else -> tell(GONE, v, 0, 0)
           fi;
           v = 0;
           i = 0
       }
#ifndef LIVE
    :: d_step { p_up && len(to_p) > 1 ->
           to_p ? v, i;
           to_p ! v, i;
           to_p ? v, i;
           if
           :: v >= p_oldest && v <= p_version -> tell(CHUNK, v, i, v)
           :: else -> tell(GONE, v, 0, 0)
           fi;
           v = 0;
           i = 0
       }
#endif
    od
}

/* The coordinator's group commit, and what it says to workers. */
active proctype coordinator()
{
end:
    do
    :: d_step { d_consumed != c_consumed || d_version != c_version ->
           d_consumed = c_consumed;
           d_version = c_version
       }
    /* Said again until the worker's STATUS shows it. */
    :: d_step { d_version == c_version && d_version != r_version && RESTS(to_r) && !IS_WANTED(d_version) ->
           announce(d_version)
       }
    od
}

#define WHOLE(array, v) (array[0] == (v) && array[1] == (v))

inline stage_clear()
{
    r_stage[0] = NOTHING;
    r_stage[1] = NOTHING
}

/* A version that is not the loaded one is a barrier: no lease is taken until it is swapped in. */
inline on_version(v)
{
    if
    :: v != r_version ->
        r_version = NOTHING;
        if
        :: r_wanted != v ->
            r_wanted = v;
            stage_clear()
        :: else
        fi
    :: else
    fi
}

inline on_chunk(v, i, bytes)
{
    if
#ifdef BUG_NO_HASH
    :: r_wanted != NOTHING && r_stage[i] == NOTHING ->
#else
    :: r_wanted == v && r_stage[i] == NOTHING && bytes == v -> /* as its leaf says */
#endif
        r_stage[i] = bytes;
#ifdef BUG_IN_PLACE
        loaded[i] = bytes;
        r_version = r_wanted
#endif
    :: else
    fi
}

inline on_message(type, v, i, bytes)
{
    if
    :: type == VERSION -> on_version(v)
    :: type == CHUNK -> on_chunk(v, i, bytes)
    :: type == GONE && r_wanted == v -> /* the coordinator will name another */
        r_wanted = NOTHING;
        stage_clear()
    :: else
    fi;
    type = 0;
    v = 0;
    i = 0;
    bytes = 0
}

active proctype receiver()
{
    byte type, v, i, bytes;

end:
    do
    :: d_step { nempty(to_r) ->
           to_r ? type, v, i, bytes;
           on_message(type, v, i, bytes)
       }
#ifndef LIVE
    :: d_step { len(to_r) > 1 ->
           to_r ? type, v, i, bytes;
           to_r ! type, v, i, bytes;
           to_r ? type, v, i, bytes;
           on_message(type, v, i, bytes)
       }
#endif
    :: d_step { r_wanted != NOTHING && r_stage[0] == NOTHING && RESTS(to_r) -> ask(r_wanted, 0) }
    :: d_step { r_wanted != NOTHING && r_stage[1] == NOTHING && RESTS(to_r) -> ask(r_wanted, 1) }
    /* The whole, from the second buffer, at a round border. */
    :: d_step { r_wanted != NOTHING && r_stage[0] != NOTHING && r_stage[1] != NOTHING ->
#ifndef BUG_NO_HASH
           assert(WHOLE(r_stage, r_wanted));
#endif
           loaded[0] = r_stage[0];
           loaded[1] = r_stage[1];
           r_version = r_wanted;
           r_wanted = NOTHING;
           stage_clear()
       }
    /* A round, under the version whose leases it takes. */
    :: d_step { r_version != NOTHING && RESTS(to_r) ->
           assert(WHOLE(loaded, r_version)); /* neither in part nor mixed */
           assert(r_version <= d_consumed && r_version <= on_disk)
       }
    od
}

active proctype faults()
{
    byte type, v, i, bytes;

end:
    do
    :: d_step { n_publisher > 0 && p_up ->
           n_publisher--;
           p_up = 0;
           p_version = 0;
           p_oldest = 0;
           p_written = 0;
           p_announced = 0
       }
    :: d_step { n_coordinator > 0 -> /* what was not on the disk never was */
           n_coordinator--;
           c_consumed = d_consumed;
           c_version = d_version
       }
    :: d_step { n_receiver > 0 ->
           n_receiver--;
           r_version = NOTHING;
           r_wanted = NOTHING;
           stage_clear();
           loaded[0] = NOTHING;
           loaded[1] = NOTHING
       }
    :: d_step { n_doubled > 0 && nempty(to_r) && nfull(to_r) ->
           n_doubled--;
           to_r ? <type, v, i, bytes>;
           to_r PUT type, v, i, bytes;
           type = 0;
           v = 0;
           i = 0;
           bytes = 0
       }
    :: d_step { n_lost > 0 && nempty(to_r) ->
           n_lost--;
           to_r ? type, v, i, bytes;
           type = 0;
           v = 0;
           i = 0;
           bytes = 0
       }
    :: d_step { n_lost > 0 && nempty(to_p) ->
           n_lost--;
           to_p ? v, i;
           v = 0;
           i = 0
       }
    :: d_step { n_harmed > 0 && nempty(to_r) ->
           to_r ? type, v, i, bytes;
           if
           :: type == CHUNK ->
               n_harmed--;
               bytes = HARMED
           :: else
           fi;
           to_r PUT type, v, i, bytes;
           type = 0;
           v = 0;
           i = 0;
           bytes = 0
       }
#ifdef LIVE
    :: d_step { n_swapped > 0 && len(to_r) > 1 ->
           n_swapped--;
           to_r ? type, v, i, bytes;
           to_r ! type, v, i, bytes;
           type = 0;
           v = 0;
           i = 0;
           bytes = 0
       }
#endif
    od
}

#ifdef LIVE
ltl catches_up { <>[] (d_version == NV && r_version == NV) }
#endif
