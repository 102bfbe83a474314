/* lease.pml - leases, results and one step of a run: coordinator with its ledger, two workers, the
 * policy trainer.
 *
 * The rules are those of rollout/ (coordinator.c, leases.c, results.c, members.c, recover.c,
 * steps.c, worker_samples.c, worker_session.c) and of cli/run_remote.c.  One batch of NS samples,
 * one step.  A result is a number: TRUE_BITS is what keyed noise gives every honest worker, LIE is
 * anything else.  What the trainer accepted is hashed by listing it.
 *
 * Time is left out: a resend, a loss of a worker by silence, a sync of the ledger may come at any
 * moment.  One record is one bit of "recorded" or "durable" state; d_ variables are the disk.
 *
 * Variants:  LIAR         worker 1 may answer with LIE, the trainer's audit sees every lie
 *            LIVE         in order but for the fault budget, for liveness, one sample; ltl below
 * Seeded bugs: BUG_ACK_BEFORE_SYNC, BUG_NO_EPOCH; BUG_REFUSE_BY_UID: REFUSE says whose sample, not
 * which of its results; BUG_BATCH_BEFORE_SYNC: BATCH counts groups that are not durable;
 * BUG_SECOND_IS_GUILTY: who differs from a durable result is expelled before that is audited. */

#ifndef NS
#define NS 1 /* samples */
#endif
#define NW 2 /* workers are 0 and 1 */
#define TR 2 /* the trainer */
#define NOBODY 3

/* Budgets of faults. */
#ifndef N_COORDINATOR
#define N_COORDINATOR 1
#endif
#ifndef N_WORKER
#define N_WORKER 1
#endif
#ifndef N_SILENT
#define N_SILENT 1
#endif
#ifndef N_TRAINER
#define N_TRAINER 1
#endif
#ifndef N_DOUBLED
#define N_DOUBLED 1
#endif
#ifndef N_LOST
#define N_LOST 1
#endif
#ifndef N_SWAPPED
#define N_SWAPPED 1
#endif
#ifndef N_WANT
#define N_WANT 1 /* not of LIVE: said again for ever */
#endif
#ifndef CAP
#define CAP 2 /* messages under way to the coordinator; what comes on top is lost */
#endif
#ifndef CAP_N
#define CAP_N 2 /* to each of the others */
#endif

#define NONE 0
#define TRUE_BITS 1
#define LIE 2

/* messages */
#define HELLO 1
#define WELCOME 2
#define REJECT 3
#define STATUS 4
#define GROUP 5
#define BATCH 6
#define LEASE 7
#define REVOKE 8
#define RESULT 9
#define ACK 10
#define WANT 11
#define REFUSE 12
#define CONSUME 13
#define EXPEL 14 /* REJECT for good: quarantine */

/* sample states of coordinator_internal.h; record states, too: NOT, RECORDED, DURABLE */
#define PENDING 0
#define LEASED 1
#define RECORDED 2
#define DURABLE 3
#define VOIDED 4

/* to the coordinator: type, who, incarnation, epoch, two arguments and a try;
 * to the others: type, epoch, sample, bits, try */
chan to_c = [CAP] of { byte, byte, byte, byte, byte, byte, byte };
chan to_n[3] = [CAP_N] of { byte, byte, byte, byte, byte };

#ifdef LIVE
#define PUT !
#else
#define PUT !! /* sorted, and taken from either place: a bag */
#endif

#define BIT(i) (1 << (i))

/* ---- the coordinator; d_ is its disk ---- */
bit c_up = 1; /* epoch 1 has begun, and all have joined it */
byte c_epoch = 1, d_epoch = 1;
byte c_group, d_group; /* NONE, RECORDED, DURABLE */
byte st[NS], val[NS], try[NS];
byte holder[NS] = NOBODY, by[NS] = NOBODY;
byte d_val[NS], d_try[NS];
byte refused_seq[NS]; /* of BUG_REFUSE_BY_UID */
byte was_leased;      /* bit by sample */
byte c_step, c_hash, c_step_by;
byte d_step_done, d_hash;
byte mem[3] = 2, minc[3]; /* 0 not a member, 1 said HELLO, 2 its first STATUS came */
bit expelled[NW];     /* this incarnation of it */
byte differs[NW];     /* from the durable result of this sample (+ 1): out, until that is audited */

/* ---- workers ---- */
byte w_epoch[NW] = 1, w_inc[NW], running[NW], held[NW];
bit w_joined[NW] = 1, w_over[NW], w_due[NW]; /* due: STATUS */
byte w_try[4]; /* of the lease it has: by 2 * worker + sample */

/* ---- the trainer ---- */
byte t_epoch = 1, t_inc, t_got[NS], t_try[NS], t_seq;
bit t_joined = 1, t_known, t_done, t_consuming;

/* ---- what was ever true, for the claims only ---- */
byte was_durable[NS]; /* bit by bits: such a result was durable */
byte n_live[NS];      /* results on record and not refused */

byte n_want = N_WANT;
byte n_coordinator = N_COORDINATOR, n_worker = N_WORKER, n_silent = N_SILENT;
byte n_trainer = N_TRAINER, n_doubled = N_DOUBLED, n_lost = N_LOST, n_swapped = N_SWAPPED;

inline forget(v1, v2, v3, v4, v5)
{
    v1 = 0;
    v2 = 0;
    v3 = 0;
    v4 = 0;
    v5 = 0
}

inline to_coordinator(xt, xw, xi, xe, xa, xb, xg)
{
    if
    :: full(to_c)
    :: nfull(to_c) && to_c ?? [eval(xt), eval(xw), eval(xi), eval(xe), eval(xa), eval(xb),
           eval(xg)]
    :: nfull(to_c) && !(to_c ?? [eval(xt), eval(xw), eval(xi), eval(xe), eval(xa), eval(xb),
           eval(xg)]) -> to_c PUT xt, xw, xi, xe, xa, xb, xg
    fi
}

inline to_peer(xw, xt, xa, xb, xg)
{
    if
    :: full(to_n[xw])
    :: nfull(to_n[xw]) && to_n[xw] ?? [eval(xt), eval(c_epoch), eval(xa), eval(xb), eval(xg)]
    :: nfull(to_n[xw]) && !(to_n[xw] ?? [eval(xt), eval(c_epoch), eval(xa), eval(xb), eval(xg)]) ->
        to_n[xw] PUT xt, c_epoch, xa, xb, xg
    fi
}

/* ---- a worker ---- */

/* Its timers run slower than messages travel: without that nothing is ever live. */
#ifdef LIVE
#define RESTS(who) empty(to_n[who])
/* A heartbeat that tells nothing new is left out. */
#define STATUS_IS_DUE(w)                                                                        \
    (w_due[w] || mem[w] != 2 || minc[w] != w_inc[w] || w_epoch[w] != c_epoch ||                 \
        (st[0] == LEASED && holder[0] == w && !((running[w] | held[w]) & 1)) ||                 \
        ((running[w] & 1) && !(st[0] == LEASED && holder[0] == w)))
#else
#define RESTS(who) true
#define STATUS_IS_DUE(who) w_due[who]
#endif

inline rejoin(w)
{
    w_joined[w] = 0
}

inline on_worker_message(w, type, ep, s, g)
{
    if
    :: w_over[w] || ep < w_epoch[w] /* a coordinator that was replaced */
    :: else ->
        if
        :: type == WELCOME ->
            w_due[w] = w_due[w] || !w_joined[w] || ep > w_epoch[w];
            w_epoch[w] = ep;
            w_joined[w] = 1
        :: type == REJECT -> rejoin(w)
        :: type == EXPEL ->
            w_over[w] = 1;
            w_joined[w] = 0;
            running[w] = 0;
            held[w] = 0
        :: else ->
            if
            :: ep > w_epoch[w] -> rejoin(w)
            :: else ->
                if
                :: type == LEASE && (!((running[w] | held[w]) & BIT(s)) || g > w_try[2 * w + s]) ->
                    running[w] = running[w] | BIT(s);
                    held[w] = held[w] & ~BIT(s);
                    w_try[2 * w + s] = g
                :: type == REVOKE ->
                    running[w] = running[w] & ~BIT(s);
                    held[w] = held[w] & ~BIT(s)
                :: type == ACK ->
                    if
                    :: held[w] & BIT(s) ->
                        assert(was_durable[s]); /* a result is forgotten when it cannot be lost */
                        held[w] = held[w] & ~BIT(s)
                    :: else
                    fi
                :: else
                fi
            fi
        fi
    fi
}

#define FINISH(w, s)                                                                            \
    d_step {                                                                                    \
        running[w] & BIT(s) ->                                                                  \
        running[w] = running[w] & ~BIT(s);                                                      \
        held[w] = held[w] | BIT(s)                                                              \
    }
#define REPORT(w, s, bits)                                                                      \
    d_step {                                                                                    \
        w_joined[w] && (held[w] & BIT(s)) && RESTS(w) ->                                        \
        to_coordinator(RESULT, w, w_inc[w], w_epoch[w], s, bits, w_try[2 * w + s])              \
    }

active [NW] proctype worker()
{
    byte w = _pid; /* these two are declared first */
    byte type, ep, a, b, g;

end:
    do
    :: d_step { nempty(to_n[w]) ->
           to_n[w] ? type, ep, a, b, g;
           on_worker_message(w, type, ep, a, g);
           forget(type, ep, a, b, g)
       }
#ifndef LIVE
    :: d_step { len(to_n[w]) > 1 ->
           to_n[w] ? type, ep, a, b, g;
           to_n[w] ! type, ep, a, b, g;
           to_n[w] ? type, ep, a, b, g;
           on_worker_message(w, type, ep, a, g);
           forget(type, ep, a, b, g)
       }
#endif
    :: d_step { !w_joined[w] && !w_over[w] && RESTS(w) ->
           to_coordinator(HELLO, w, w_inc[w], 0, 0, 0, 0)
       }
    :: d_step { w_joined[w] && STATUS_IS_DUE(w) && RESTS(w) ->
           w_due[w] = 0;
           to_coordinator(STATUS, w, w_inc[w], w_epoch[w], running[w], held[w], 0)
       }
    :: FINISH(w, 0)
    :: REPORT(w, 0, TRUE_BITS)
#ifdef LIAR
    :: d_step { w == 1 && w_joined[w] && (held[w] & BIT(0)) ->
           to_coordinator(RESULT, w, w_inc[w], w_epoch[w], 0, LIE, w_try[2 * w])
       }
#endif
#if NS == 2
    :: FINISH(w, 1)
    :: REPORT(w, 1, TRUE_BITS)
#endif
    od
}

/* No message of an older epoch changes anything: every handler that changes state says so. */
#define OF_THIS_EPOCH(ep) assert((ep) == c_epoch)

inline end_lease(s)
{
    if
    :: st[s] == LEASED ->
        st[s] = PENDING;
        holder[s] = NOBODY
    :: else
    fi
}

inline return_leases(who, k)
{
    k = 0;
    do
    :: k < NS ->
        if
        :: holder[k] == who -> end_lease(k)
        :: else
        fi;
        k++
    :: else -> break
    od;
    k = 0
}

inline quarantine(who, k)
{
    if
    :: who < NW ->
        assert(who == 1); /* an honest worker is never expelled */
        expelled[who] = 1;
        differs[who] = 0;
        if
        :: mem[who] ->
            to_peer(who, EXPEL, 0, 0, 0);
            return_leases(who, k);
            mem[who] = 0
        :: else
        fi
    :: else
    fi
}

/* members_suspend: it may come back when the audit says that the other one lied. */
inline suspend(who, s, k)
{
    differs[who] = s + 1;
    if
    :: mem[who] ->
        to_peer(who, REJECT, 0, 0, 0);
        return_leases(who, k);
        mem[who] = 0
    :: else
    fi
}

/* members_pardon */
inline pardon(s)
{
    differs[0] = (differs[0] == s + 1 -> 0 : differs[0]);
    differs[1] = (differs[1] == s + 1 -> 0 : differs[1])
}

/* members_convict: all samples of a step passed the audit. */
inline convict()
{
    assert(differs[0] == 0); /* an honest worker is never expelled */
    expelled[1] = expelled[1] || differs[1];
    differs[1] = 0
}

/* results_send */
inline send_result(s)
{
    if
    :: mem[TR] -> to_peer(TR, RESULT, s, val[s], try[s])
    :: else
    fi
}

inline send_ack(who, s)
{
    assert(was_durable[s] & BIT(val[s])); /* no ACK for what is not durable */
    to_peer(who, ACK, s, 0, 0)
}

/* What the next block of the ledger holds reaches the disk. */
inline commit(k)
{
    k = 0;
    do
    :: k < NS ->
        if
        :: st[k] == RECORDED || st[k] == DURABLE ->
            d_val[k] = val[k];
            was_durable[k] = was_durable[k] | BIT(val[k])
        :: else -> d_val[k] = NONE
        fi;
        d_try[k] = try[k];
        k++
    :: else -> break
    od;
    k = 0;
    if
    :: c_group != NONE -> d_group = DURABLE
    :: else
    fi;
    if
    :: c_step != NONE ->
        d_step_done = 1;
        d_hash = c_hash
    :: else
    fi
}

/* pl_coordinator_synced: what waited for the disk leaves. */
inline synced(k)
{
    k = 0;
    do
    :: k < NS ->
        if
        :: st[k] == RECORDED ->
            st[k] = DURABLE;
            if
            :: by[k] < NW && mem[by[k]] -> send_ack(by[k], k)
            :: else
            fi;
            send_result(k)
        :: st[k] == VOIDED -> st[k] = PENDING
        :: else
        fi;
        k++
    :: else -> break
    od;
    k = 0;
    if
    :: c_group == RECORDED -> c_group = DURABLE
    :: else
    fi;
    if
    :: c_step == RECORDED ->
        c_step = DURABLE;
        if
        :: mem[TR] -> to_peer(TR, CONSUME, 0, c_hash, 0)
        :: else
        fi
    :: else
    fi
}

/* results_on_result */
inline on_result(who, s, v, g, k)
{
    if
    :: !(was_leased & BIT(s)) || g != try[s] -> to_peer(who, REVOKE, s, 0, 0)
    :: else ->
        if
        :: st[s] == RECORDED || st[s] == DURABLE ->
            if
            :: val[s] == v ->
                if
                :: st[s] == DURABLE -> send_ack(who, s)
                :: else
                fi
#ifdef BUG_SECOND_IS_GUILTY
            :: else -> quarantine(who, k)
#else
            :: else -> suspend(who, s, k) /* the audit decides about the first */
#endif
            fi
        :: else ->
            if
            :: st[s] == LEASED && holder[s] != who -> to_peer(holder[s], REVOKE, s, 0, 0)
            :: else
            fi;
            holder[s] = NOBODY;
            assert(n_live[s] == 0); /* two results never stand side by side */
            n_live[s]++;
            st[s] = RECORDED;
            val[s] = v;
            by[s] = who;
#ifdef BUG_ACK_BEFORE_SYNC
            send_ack(who, s)
#endif
        fi
    fi
}

/* results_on_refuse: of the result that it names, or of an older one. */
inline on_refuse(s, g, seq, k)
{
    if
#ifdef BUG_REFUSE_BY_UID
    :: st[s] == DURABLE && seq > refused_seq[s] ->
#else
    :: st[s] == DURABLE && g == try[s] ->
#endif
        assert(val[s] != TRUE_BITS); /* no honest result is refused, no honest worker expelled */
        n_live[s]--;
        st[s] = VOIDED;
        val[s] = NONE;
        try[s]++;
        refused_seq[s] = seq;
        quarantine(by[s], k);
        pardon(s);
        by[s] = NOBODY
    :: else
    fi
}

inline all_durable(yes, k)
{
    yes = c_group == DURABLE;
    k = 0;
    do
    :: k < NS ->
        yes = yes && st[k] == DURABLE;
        k++
    :: else -> break
    od;
    k = 0
}

#if NS == 1
#define HASH(array) array[0]
#else
#define HASH(array) (array[0] * 4 + array[1])
#endif

/* steps_on_consume */
inline on_consume(inc, h, yes, k)
{
    if
    :: c_step != NONE ->
        assert(h == c_hash); /* trained again: the same samples */
        if
        :: c_step_by != inc ->
            c_step = RECORDED; /* again = 1 */
            c_step_by = inc
        :: else ->
            if
            :: c_step == DURABLE -> to_peer(TR, CONSUME, 0, c_hash, 0)
            :: else
            fi
        fi
    :: else ->
        all_durable(yes, k);
        assert(yes);
        assert(h == HASH(val)); /* what is consumed is what stands in the ledger, each sample once */
        assert(!d_step_done);
        convict();
        c_step = RECORDED;
        c_step_by = inc;
        c_hash = h
    fi;
    yes = 0
}

/* leases_on_status: what it runs, what it holds. */
inline on_status(who, runs, holds, k)
{
    k = 0;
    do
    :: k < NS ->
        if
        :: runs & BIT(k) ->
            if
            :: st[k] == PENDING && mem[who] == 1 && c_group == DURABLE && try[k] == 0 -> /* adopted */
                st[k] = LEASED;
                was_leased = was_leased | BIT(k);
                holder[k] = who
            :: st[k] == DURABLE || st[k] == VOIDED || (st[k] == LEASED && holder[k] != who) ||
                   (st[k] == PENDING && (mem[who] == 2 || c_group != DURABLE || try[k])) ->
                to_peer(who, REVOKE, k, 0, 0)
            :: else
            fi
        :: else
        fi;
        if
        :: st[k] == LEASED && holder[k] == who && !((runs | holds) & BIT(k)) ->
            to_peer(who, LEASE, k, 0, try[k])
        :: else
        fi;
        k++
    :: else -> break
    od;
    k = 0;
    mem[who] = 2
}

inline on_trainer(type, inc, a, b, g, yes, k)
{
    if
    :: type == GROUP ->
        if
        :: c_group == NONE -> c_group = RECORDED
        :: else
        fi
#ifdef BUG_BATCH_BEFORE_SYNC
        ;
        to_peer(TR, BATCH, 0, 0, 0)
#else
        ;
        if
        :: c_group == DURABLE -> to_peer(TR, BATCH, 0, 0, 0)
        :: else
        fi
#endif
    :: type == WANT ->
        if
        :: st[a] == DURABLE -> send_result(a)
        :: else
        fi
    :: type == REFUSE -> on_refuse(a, g, b, k)
    :: type == CONSUME -> on_consume(inc, a, yes, k)
    :: else
    fi
}

inline on_hello(who, inc)
{
    if
    :: who < NW && expelled[who] && inc == minc[who] -> to_peer(who, EXPEL, 0, 0, 0)
    :: who < NW && !expelled[who] && differs[who] && inc == minc[who] /* told to wait */
    :: mem[who] && minc[who] != inc /* its name is taken: until that one is lost */
    :: else ->
        if
        :: mem[who] == 0 ->
            mem[who] = 1;
            minc[who] = inc;
            if
            :: who < NW ->
                expelled[who] = 0;
                differs[who] = 0
            :: else
            fi
        :: else
        fi;
        to_peer(who, WELCOME, 0, 0, 0)
    fi
}

inline on_message(type, who, inc, ep, a, b, g, yes, k)
{
    if
    :: type == HELLO -> on_hello(who, inc)
#ifndef BUG_NO_EPOCH
    :: type != HELLO && ep != c_epoch -> to_peer(who, REJECT, 0, 0, 0)
#endif
    :: else ->
        if
        :: mem[who] == 0 || minc[who] != inc ->
            if
            :: who < NW && expelled[who] && minc[who] == inc -> to_peer(who, EXPEL, 0, 0, 0)
            :: else -> to_peer(who, REJECT, 0, 0, 0)
            fi
        :: else ->
            OF_THIS_EPOCH(ep);
            if
            :: who == TR -> on_trainer(type, inc, a, b, g, yes, k)
            :: who < NW && type == STATUS -> on_status(who, a, b, k)
            :: who < NW && type == RESULT -> on_result(who, a, b, g, k)
            :: else
            fi
        fi
    fi;
    type = 0;
    who = 0;
    inc = 0;
    ep = 0;
    a = 0;
    b = 0;
    g = 0
}

/* leases_grant ends every event: nothing else happens before. */
#define FREE(s) (st[s] == PENDING && c_group == DURABLE && (mem[0] == 2 || mem[1] == 2))
#if NS == 1
#define GRANTS (c_up && FREE(0))
#else
#define GRANTS (c_up && (FREE(0) || FREE(1)))
#endif

active proctype coordinator()
{
    byte type, who, inc, ep, a, b, g, k, yes;

end:
    do
    /* 1. The epoch, durable before a word. */
    :: d_step { !c_up ->
           d_epoch++;
           c_epoch = d_epoch;
           c_up = 1
       }
    /* 2. A message, of those under way any. */
    :: d_step { c_up && !GRANTS && nempty(to_c) ->
           to_c ? type, who, inc, ep, a, b, g;
           on_message(type, who, inc, ep, a, b, g, yes, k)
       }
#ifndef LIVE
    :: d_step { c_up && !GRANTS && len(to_c) > 1 ->
           to_c ? type, who, inc, ep, a, b, g;
           to_c ! type, who, inc, ep, a, b, g;
           to_c ? type, who, inc, ep, a, b, g;
           on_message(type, who, inc, ep, a, b, g, yes, k)
       }
#endif
    od
}

#define UNSYNCED(s) (st[s] == RECORDED || st[s] == VOIDED)
#if NS == 1
#define ANY_UNSYNCED (UNSYNCED(0) || c_group == RECORDED || c_step == RECORDED)
#else
#define ANY_UNSYNCED (UNSYNCED(0) || UNSYNCED(1) || c_group == RECORDED || c_step == RECORDED)
#endif

/* Group commit. */
active proctype ledger()
{
    byte k;

end:
    do
    :: d_step { c_up && !GRANTS && ANY_UNSYNCED ->
           commit(k);
           synced(k)
       }
    od
}

/* leases_grant: any worker that can take it, for a batch that is durable. */
#define GRANT(s, w)                                                                             \
    d_step {                                                                                    \
        c_up && c_group == DURABLE && mem[w] == 2 && st[s] == PENDING ->                        \
        st[s] = LEASED;                                                                         \
        was_leased = was_leased | BIT(s);                                                       \
        holder[s] = w;                                                                          \
        to_peer(w, LEASE, s, 0, try[s])                                                              \
    }

active proctype grants()
{
end:
    do
    :: GRANT(0, 0)
    :: GRANT(0, 1)
#if NS == 2
    :: GRANT(1, 0)
    :: GRANT(1, 1)
#endif
    od
}

/* ---- the trainer ---- */

#if NS == 1
#define HAS_ALL (t_got[0] != NONE)
#define ALL_TRUE (t_got[0] == TRUE_BITS)
#else
#define HAS_ALL (t_got[0] != NONE && t_got[1] != NONE)
#define ALL_TRUE (t_got[0] == TRUE_BITS && t_got[1] == TRUE_BITS)
#endif

inline on_trainers_message(type, ep, s, v, g)
{
    if
    :: type == WELCOME ->
        t_joined = 1;
        t_epoch = ep
    :: type == REJECT -> t_joined = 0
    :: type == BATCH ->
        assert(d_group == DURABLE); /* or it would never be said again */
        t_known = 1
    :: type == RESULT ->
        assert(was_durable[s] & BIT(v)); /* the trainer sees what is durable, only */
        if
#ifdef BUG_REFUSE_BY_UID
        :: t_got[s] == NONE ->
#else
        :: t_got[s] == NONE && g >= t_try[s] ->
#endif
            t_got[s] = v;
            t_try[s] = g
        :: else
        fi
    :: type == CONSUME ->
        if
        :: t_consuming ->
            assert(d_step_done);
            t_done = 1;
            t_consuming = 0
        :: else
        fi
    :: else
    fi
}

#ifdef LIVE
#define MAY_WANT RESTS(TR)
#define SPEND_WANT skip
#else
#define MAY_WANT n_want > 0
#define SPEND_WANT n_want--
#endif
#define SAY(type, a, b, g) to_coordinator(type, TR, t_inc, t_epoch, a, b, g)
#define WANTS(s)                                                                                \
    d_step {                                                                                    \
        t_joined && t_known && !t_done && t_got[s] == NONE && MAY_WANT ->                       \
        SPEND_WANT;                                                                             \
        SAY(WANT, s, 0, 0)                                                                      \
    }
/* The audit, before anything is consumed.  Said once: when it is lost the same result comes again
 * and is refused again. */
#define AUDIT(s)                                                                                \
    d_step {                                                                                    \
        t_joined && !t_done && !t_consuming && HAS_ALL && t_got[s] == LIE ->                    \
        t_seq++;                                                                                \
        SAY(REFUSE, s, t_seq, t_try[s]);                                                        \
        t_got[s] = NONE;                                                                        \
        t_try[s]++                                                                              \
    }

active proctype trainer()
{
    byte type, ep, a, b, g;

end:
    do
    :: d_step { nempty(to_n[TR]) ->
           to_n[TR] ? type, ep, a, b, g;
           on_trainers_message(type, ep, a, b, g);
           forget(type, ep, a, b, g)
       }
#ifndef LIVE
    :: d_step { len(to_n[TR]) > 1 ->
           to_n[TR] ? type, ep, a, b, g;
           to_n[TR] ! type, ep, a, b, g;
           to_n[TR] ? type, ep, a, b, g;
           on_trainers_message(type, ep, a, b, g);
           forget(type, ep, a, b, g)
       }
#endif
    :: d_step { !t_joined && RESTS(TR) -> to_coordinator(HELLO, TR, t_inc, 0, 0, 0, 0) }
    :: d_step { t_joined && !t_known && !t_done && RESTS(TR) -> SAY(GROUP, 0, 0, 0) }
    :: WANTS(0)
#ifdef LIAR
    :: AUDIT(0)
#endif
#if NS == 2
    :: WANTS(1)
#endif
    :: d_step { t_joined && !t_done && !t_consuming && HAS_ALL && ALL_TRUE -> t_consuming = 1 }
    :: d_step { t_joined && t_consuming && RESTS(TR) -> SAY(CONSUME, HASH(t_got), 0, 0) }
    od
}

/* ---- faults ---- */

inline drain(ch)
{
    do
    :: nempty(ch) -> ch ? type, ep, a, b, g
    :: empty(ch) -> break
    od;
    forget(type, ep, a, b, g)
}

/* kill -9 of the coordinator: what is not on the disk never was, nor is any lease. */
inline crash_coordinator(k)
{
    c_up = 0;
    c_epoch = 0;
    c_group = d_group;
    was_leased = 0;
    k = 0;
    do
    :: k < NS ->
        val[k] = d_val[k];
        try[k] = d_try[k];
        by[k] = NOBODY;
        holder[k] = NOBODY;
        refused_seq[k] = 0;
        n_live[k] = (d_val[k] != NONE);
        st[k] = (d_val[k] != NONE -> DURABLE : PENDING);
        if
        :: d_group == DURABLE -> was_leased = was_leased | BIT(k)
        :: else
        fi;
        k++
    :: else -> break
    od;
    c_step = (d_step_done -> DURABLE : NONE);
    c_hash = d_hash;
    c_step_by = 255;
    k = 0;
    do
    :: k < 3 ->
        mem[k] = 0;
        minc[k] = 0;
        k++
    :: else -> break
    od;
    expelled[0] = 0;
    expelled[1] = 0;
    differs[0] = 0;
    differs[1] = 0;
    k = 0
}

#define CRASH_WORKER(w)                                                                         \
    d_step {                                                                                    \
        n_worker > 0 ->                                                                         \
        n_worker--;                                                                             \
        w_inc[w]++;                                                                             \
        w_epoch[w] = 0;                                                                         \
        w_joined[w] = 0;                                                                        \
        w_due[w] = 0;                                                                           \
        w_over[w] = 0;                                                                          \
        running[w] = 0;                                                                         \
        w_try[2 * w] = 0;                                                                       \
        w_try[2 * w + 1] = 0;                                                                   \
        held[w] = 0;                                                                            \
        drain(to_n[w])                                                                          \
    }
/* lost_ms of silence: of one that is gone, or of one that will come back with what it holds. */
#define LOSE(w)                                                                                 \
    d_step {                                                                                    \
        c_up && mem[w] && (minc[w] != w_inc[w] || n_silent > 0) ->                              \
        n_silent = (minc[w] != w_inc[w] -> n_silent : n_silent - 1);                            \
        mem[w] = 0;                                                                             \
        return_leases(w, k)                                                                     \
    }
#define DOUBLE_C                                                                                \
    d_step {                                                                                    \
        n_doubled > 0 && nempty(to_c) && nfull(to_c) ->                                         \
        n_doubled--;                                                                            \
        to_c ? <type, who, inc, ep, a, b, g>;                                                   \
        to_c PUT type, who, inc, ep, a, b, g;                                                   \
        who = 0;                                                                                \
        inc = 0;                                                                                \
        forget(type, ep, a, b, g)                                                               \
    }
#define DOUBLE_N(p)                                                                             \
    d_step {                                                                                    \
        n_doubled > 0 && nempty(to_n[p]) && nfull(to_n[p]) ->                                   \
        n_doubled--;                                                                            \
        to_n[p] ? <type, ep, a, b, g>;                                                          \
        to_n[p] PUT type, ep, a, b, g;                                                          \
        forget(type, ep, a, b, g)                                                               \
    }
#define LOSE_N(p)                                                                               \
    d_step {                                                                                    \
        n_lost > 0 && nempty(to_n[p]) ->                                                        \
        n_lost--;                                                                               \
        to_n[p] ? type, ep, a, b, g;                                                         \
        forget(type, ep, a, b, g)                                                               \
    }

/* The processes: each death at most so often as its budget says. */
active proctype deaths()
{
    byte type, ep, a, b, g, k;

end:
    do
    :: d_step { c_up && n_coordinator > 0 ->
           n_coordinator--;
           crash_coordinator(k)
       }
    :: d_step { c_up && n_coordinator > 0 && ANY_UNSYNCED -> /* on the disk, and nobody told */
           n_coordinator--;
           commit(k);
           crash_coordinator(k)
       }
    :: CRASH_WORKER(0)
    :: CRASH_WORKER(1)
    :: d_step { n_trainer > 0 ->
           n_trainer--;
           t_inc++;
           t_epoch = 0;
           t_joined = 0;
           t_known = 0;
           t_done = 0;
           t_consuming = 0;
           t_got[0] = NONE;
           t_try[0] = 0;
#if NS == 2
           t_got[1] = NONE;
           t_try[1] = 0;
#endif
           t_seq = 0;
           drain(to_n[TR])
       }
    od
}

/* Silence that lasts too long; of the dead it is noticed for certain. */
active proctype clock()
{
    byte k;

end:
    do
    :: LOSE(0)
    :: LOSE(1)
    :: d_step { c_up && mem[TR] && minc[TR] != t_inc -> mem[TR] = 0 }
    od
}

/* The wire.  Order is no one's: in LIVE it breaks n_swapped times, else always. */
active proctype wire()
{
    byte type, who, inc, ep, a, b, g;

end:
    do
    :: DOUBLE_C
    :: DOUBLE_N(0)
    :: DOUBLE_N(1)
    :: DOUBLE_N(TR)
    :: LOSE_N(0)
    :: LOSE_N(1)
    :: LOSE_N(TR)
    :: d_step { n_lost > 0 && nempty(to_c) ->
           n_lost--;
           to_c ? type, who, inc, ep, a, b, g;
           type = 0;
           who = 0;
           inc = 0;
           ep = 0;
           a = 0;
           b = 0;
           g = 0
       }
#ifdef LIVE
    :: d_step { n_swapped > 0 && len(to_c) > 1 ->
           n_swapped--;
           to_c ? type, who, inc, ep, a, b, g;
           to_c ! type, who, inc, ep, a, b, g;
           type = 0;
           who = 0;
           inc = 0;
           ep = 0;
           a = 0;
           b = 0;
           g = 0
       }
#endif
    od
}

#ifdef LIVE
ltl arrives { <>[] (d_val[0] != NONE && d_step_done && t_done) }
#endif
