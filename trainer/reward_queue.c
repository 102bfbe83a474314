/* trainer/reward_queue.c - the queues of samples: each stands in one of them. */
#include "trainer/reward_internal.h"

#include <stdlib.h>
#include <string.h>

void reward_push(reward_queue *q, reward_sample *s)
{
    s->next = NULL;
    if (q->last)
        q->last->next = s;
    else
        q->first = s;
    q->last = s;
    q->n++;
}

reward_sample *reward_pop(reward_queue *q)
{
    reward_sample *s = q->first;

    q->first = s->next;
    if (!q->first)
        q->last = NULL;
    q->n--;
    return s;
}

void reward_unlink(reward_queue *q, reward_sample *s)
{
    reward_sample **at = &q->first;
    reward_sample *before = NULL;

    for (; *at != s; at = &(*at)->next)
        before = *at;
    *at = s->next;
    if (q->last == s)
        q->last = before;
    q->n--;
}

void reward_put_before(reward_queue *q, reward_queue *from)
{
    if (!from->first)
        return;
    from->last->next = q->first;
    q->first = from->first;
    if (!q->last)
        q->last = from->last;
    q->n += from->n;
    memset(from, 0, sizeof *from);
}

void reward_sample_free(reward_sample *s)
{
    free(s->line);
    free(s);
}

void reward_drop_all(reward_queue *q)
{
    while (q->first)
        reward_sample_free(reward_pop(q));
}
