/* ipc/fields.c - the fields of every message, with their limits.
 *
 * Keys on the wire are the names of schema.h; those of pl_sampling stand among the others.  A field
 * that is added, renamed or given another kind is another PL_PROTOCOL, and old ledgers end. */
#include "ipc/fields.h"

#include "ipc/ipc.h"

/* Limits: bytes of strings, elements of spans. */
enum {
    MAX_NAME = 63,     /* workers, runs, hosts, numeric classes */
    MAX_BUILD = 127,   /* version and commit */
    MAX_REASON = 503,  /* what pl_error holds */
    MAX_DIR = 4095,    /* PATH_MAX with its NUL */
    MAX_ADDRESS = 319, /* tcp:// with the longest host name; ipc:// has 107 */
    MAX_NAMES = 4159,  /* of a session's buffers: 65 of the longest */

    MAX_CONFIG = 1 << 18,
    MAX_UIDS = 1 << 16,
    MAX_PROMPT = 1 << 17,
    MAX_TOKENS = 7 << 14, /* of a response: a RESULT of 9 bytes each fits a journal's record */
    MAX_LEAVES = 1 << 15, /* 1 MiB of hashes: 32 GiB of content */
};

_Static_assert(MAX_NAME + MAX_NAME + MAX_BUILD + MAX_NAME + 4 <= PL_TEXT_BYTES, "HELLO");
_Static_assert(MAX_DIR + MAX_NAME + MAX_ADDRESS + 3 <= PL_TEXT_BYTES, "VERSION");
_Static_assert(MAX_NAMES + 1 <= PL_TEXT_BYTES, "TRAIN");
_Static_assert(4 * MAX_PROMPT + 9 * MAX_TOKENS + 4096 <= PL_BODY_MAX, "LEASE");
_Static_assert(2 * 4 * MAX_UIDS + 4096 <= PL_BODY_MAX, "STATUS");
_Static_assert(32 * MAX_LEAVES + 4096 <= PL_BODY_MAX, "LEAVES");
_Static_assert(PL_CHUNK_BYTES + 4096 <= PL_BODY_MAX, "CHUNK");

#define AT(m) (uint32_t) offsetof(pl_msg, u.m)
#define U32(m, f)                                                                                  \
    {                                                                                              \
#f, IPC_U32, 0, 4, 0, AT(m.f)                                                              \
    }
#define U64(m, f)                                                                                  \
    {                                                                                              \
#f, IPC_U64, 0, 8, 0, AT(m.f)                                                              \
    }
#define F32(m, f)                                                                                  \
    {                                                                                              \
#f, IPC_F32, 0, 4, 0, AT(m.f)                                                              \
    }
#define STR(m, f, max)                                                                             \
    {                                                                                              \
#f, IPC_STR, max, 1, 0, AT(m.f)                                                            \
    }
#define PROSE(m, f, max)                                                                           \
    {                                                                                              \
#f, IPC_PROSE, max, 1, 0, AT(m.f)                                                          \
    }
#define HASH(m, f)                                                                                 \
    {                                                                                              \
#f, IPC_HASH, 1, 32, 0, AT(m.f)                                                            \
    }
#define SPAN(m, f, size, max)                                                                      \
    {                                                                                              \
#f, IPC_SPAN, max, size, 0, AT(m.f)                                                        \
    }
#define BESIDE(m, f, size, max)                                                                    \
    {                                                                                              \
#f, IPC_SPAN, max, size, 1, AT(m.f)                                                        \
    }
#define SAMPLING(m)                                                                                \
    U32(m.sampling, max_tokens), F32(m.sampling, temperature), F32(m.sampling, top_p),             \
        F32(m.sampling, min_p), U32(m.sampling, top_k), U64(m.sampling, noise_key),                \
        U32(m.sampling, purpose), U32(m.sampling, ignore_eos), U32(m.sampling, speculative)

/* clang-format off */
static const ipc_field hello[] = {
    U32(hello, role), STR(hello, name, MAX_NAME), STR(hello, numeric_class, MAX_NAME),
    STR(hello, build, MAX_BUILD), STR(hello, host, MAX_NAME), U32(hello, pid),
    U32(hello, n_threads), U32(hello, max_seqs),
};
static const ipc_field welcome[] = {
    STR(welcome, run, MAX_NAME), U32(welcome, heartbeat_ms), U32(welcome, lost_ms),
    U64(welcome, config_hash), SPAN(welcome, config, 1, MAX_CONFIG),
};
static const ipc_field reject[] = {U32(reject, code), PROSE(reject, reason, MAX_REASON)};
static const ipc_field status[] = {
    U32(status, state), U32(status, policy_version), U64(status, batch), F32(status, rate),
    SPAN(status, running, 4, MAX_UIDS), SPAN(status, held, 4, MAX_UIDS), U64(status, session),
    U32(status, drafter_version),
};
static const ipc_field group[] = {
    U64(group, batch), U32(group, n_groups), U32(group, i_group), U32(group, first_uid),
    U32(group, group), U32(group, n), U32(group, policy_version), SAMPLING(group),
    U64(group, prompt_key), SPAN(group, prompt, 4, MAX_PROMPT),
};
static const ipc_field lease[] = {
    U64(lease, batch), U32(lease, uid), U32(lease, group), U32(lease, policy_version),
    SAMPLING(lease), U64(lease, prompt_key), SPAN(lease, prompt, 4, MAX_PROMPT),
    SPAN(lease, prefix, 4, MAX_TOKENS), BESIDE(lease, prefix_logprobs, 4, MAX_TOKENS),
    BESIDE(lease, prefix_sources, 1, MAX_TOKENS), U32(lease, draft), U32(lease, accepted),
    U32(lease, steps), U32(lease, attempt),
};
static const ipc_field progress[] = {
    U64(progress, batch), U32(progress, uid), U32(progress, policy_version), U32(progress, pos0),
    SPAN(progress, tokens, 4, MAX_TOKENS), BESIDE(progress, logprobs, 4, MAX_TOKENS),
    BESIDE(progress, sources, 1, MAX_TOKENS), U32(progress, draft), U32(progress, accepted),
    U32(progress, steps), U32(progress, attempt),
};
static const ipc_field result[] = {
    U64(result, batch), U32(result, uid), U32(result, group), U32(result, policy_version),
    U32(result, finish), SPAN(result, tokens, 4, MAX_TOKENS),
    BESIDE(result, logprobs, 4, MAX_TOKENS), BESIDE(result, sources, 1, MAX_TOKENS),
    U32(result, draft), U32(result, accepted), U32(result, steps), F32(result, temperature),
    STR(result, worker, MAX_NAME), U32(result, has_reward), F32(result, reward),
    U32(result, reward_mark), U32(result, attempt), U64(result, author), U32(result, own),
};
static const ipc_field uids[] = {U64(uids, batch), SPAN(uids, uids, 4, MAX_UIDS)};
static const ipc_field batch[] = {
    U64(batch, batch), U32(batch, n_groups_known), U32(batch, n_samples), U32(batch, n_done),
    U32(batch, n_running), U64(batch, n_tokens), U32(batch, n_lost), U32(batch, n_quarantined),
    U64(batch, n_leased_again), U64(batch, n_recomputed),
};
static const ipc_field reward[] = {
    U64(reward, batch), U32(reward, uid), F32(reward, score), U32(reward, mark),
    U32(reward, attempt),
};
static const ipc_field refuse[] = {
    U64(refuse, batch), U32(refuse, uid), U32(refuse, code), PROSE(refuse, reason, MAX_REASON),
    U32(refuse, attempt), U32(refuse, position),
};
static const ipc_field consume[] = {
    U64(consume, step), U64(consume, batch), U32(consume, n_samples), HASH(consume, samples),
    HASH(consume, weights), U32(consume, again),
};
static const ipc_field traced[] = {U64(traced, step), HASH(traced, head)};
static const ipc_field version[] = {
    U32(version, version), HASH(version, hash), U64(version, n_bytes), STR(version, dir, MAX_DIR),
    STR(version, host, MAX_NAME), STR(version, endpoint, MAX_ADDRESS), HASH(version, bundle),
    U64(version, n_bundle), U32(version, max_ctx),
};
static const ipc_field step[] = {U64(step, step)};
static const ipc_field train[] = {
    U64(train, session), U32(train, is_lead), U64(train, batch), U32(train, policy_version),
    STR(train, buffers, MAX_NAMES),
};
static const ipc_field halt[] = {U64(halt, session)};
static const ipc_field drafter[] = {
    U32(drafter, version), U32(drafter, parent), U64(drafter, session), U64(drafter, step),
    HASH(drafter, hash), U64(drafter, n_bytes), STR(drafter, dir, MAX_DIR),
    STR(drafter, host, MAX_NAME), STR(drafter, endpoint, MAX_ADDRESS), HASH(drafter, bundle),
    U64(drafter, n_bundle), F32(drafter, tau), F32(drafter, tau_parent), F32(drafter, se),
    U32(drafter, rollback),
};
static const ipc_field drafting[] = {
    U64(drafting, batch), STR(drafting, worker, MAX_NAME), U32(drafting, drafter_version),
    U32(drafting, halt_us), U32(drafting, idle_ms), U32(drafting, train_ms), U32(drafting, gate_ms),
    U32(drafting, pack_ms), U32(drafting, wait_ms), U32(drafting, n_optimizer_steps),
    U32(drafting, n_dropped), U64(drafting, n_trained_tokens), F32(drafting, loss),
    SPAN(drafting, alpha, 4, PL_DRAFTING_DEPTHS), U64(drafting, n_drafted_steps),
    U64(drafting, n_drafted_emitted), U64(drafting, n_learned_draft),
    U64(drafting, n_learned_accepted), U64(drafting, n_suffix_draft),
    U64(drafting, n_suffix_accepted), U64(drafting, n_tail_steps), U64(drafting, n_tail_emitted),
    U32(drafting, tail_ms), U32(drafting, draft_ms), U32(drafting, verify_ms),
    U32(drafting, n_swaps), U64(drafting, n_before_steps), U64(drafting, n_before_emitted),
    SPAN(drafting, costs, sizeof(pl_pass_cost), PL_COST_BUCKETS),
};
static const ipc_field fetch[] = {HASH(fetch, hash), U32(fetch, first), U32(fetch, n)};
static const ipc_field leaves[] = {
    HASH(leaves, hash), U64(leaves, n_bytes), U32(leaves, first),
    SPAN(leaves, leaves, 32, MAX_LEAVES),
};
static const ipc_field chunk[] = {
    HASH(chunk, hash), U32(chunk, index), U64(chunk, offset), U32(chunk, crc),
    SPAN(chunk, bytes, 1, PL_CHUNK_BYTES),
};
static const ipc_field gone[] = {HASH(gone, hash), U32(gone, oldest)};
static const ipc_field epoch[] = {
    U64(epoch, epoch), STR(epoch, run, MAX_NAME), STR(epoch, build, MAX_BUILD),
    STR(epoch, numeric_class, MAX_NAME), U64(epoch, config_hash),
};

#define LAYOUT(type, f) [PL_MSG_##type] = {#type, f, sizeof f / sizeof f[0]}
#define EMPTY(type)     [PL_MSG_##type] = {#type, NULL, 0}
static const ipc_layout layouts[] = {
    LAYOUT(HELLO, hello), LAYOUT(WELCOME, welcome), LAYOUT(REJECT, reject), LAYOUT(STATUS, status),
    EMPTY(DRAIN), EMPTY(LEAVE), EMPTY(STOP),
    LAYOUT(GROUP, group), LAYOUT(LEASE, lease), LAYOUT(REVOKE, uids), LAYOUT(PROGRESS, progress),
    LAYOUT(RESULT, result), LAYOUT(ACK, uids), LAYOUT(BATCH, batch), LAYOUT(WANT, uids),
    LAYOUT(REWARD, reward), LAYOUT(REFUSE, refuse), LAYOUT(HANDOVER, uids),
    LAYOUT(CONSUME, consume), LAYOUT(VERSION, version), LAYOUT(CHECKPOINT, step),
    LAYOUT(DONE, step), LAYOUT(TRACED, traced),
    LAYOUT(TRAIN, train), LAYOUT(HALT, halt), LAYOUT(DRAFTER, drafter),
    LAYOUT(DRAFTING, drafting),
    LAYOUT(FETCH, fetch), LAYOUT(LEAVES, leaves), LAYOUT(CHUNK, chunk), LAYOUT(GONE, gone),
    LAYOUT(EPOCH, epoch), EMPTY(END),
};
/* clang-format on */

const ipc_layout *ipc_layout_of(uint16_t type)
{
    if (type >= sizeof layouts / sizeof layouts[0] || layouts[type].name == NULL)
        return NULL;
    return &layouts[type];
}

const char *pl_msg_name(uint16_t type)
{
    const ipc_layout *l = ipc_layout_of(type);
    return l == NULL ? "?" : l->name;
}
