/* trainer/moments.c - AdamW's moments as optimizer.safetensors: "exp_avg.<name>" for all
 * parameters, then "exp_avg_sq.<name>", fp32, in the order of the param table.
 *
 * The header is a function of the architecture alone, so reading needs no parser: a file whose
 * header differs by one byte was not written for this model.  Format: huggingface/safetensors. */
#include "core/file.h"
#include "core/json.h"
#include "trainer/checkpoint.h"

#include <string.h>

static size_t param_bytes(const pl_param *p)
{
    return (size_t)p->rows * (size_t)p->cols * sizeof(float);
}

static void add_tensors(pl_json *j, const pl_param_table *t, const char *prefix, size_t *at)
{
    for (int i = 0; i < t->n_params; i++) {
        const pl_param *p = &t->params[i];
        pl_json_text(j, ",\"");
        pl_json_text(j, prefix);
        pl_json_text(j, p->name); /* ours: letters, digits, '.', '_' */
        pl_json_text(j, "\":{\"dtype\":\"F32\",\"shape\":[");
        if (p->rows > 1) {
            pl_json_int(j, p->rows);
            pl_json_text(j, ",");
        }
        pl_json_int(j, p->cols);
        pl_json_text(j, "],\"data_offsets\":[");
        pl_json_int(j, (int64_t)*at);
        pl_json_text(j, ",");
        *at += param_bytes(p);
        pl_json_int(j, (int64_t)*at);
        pl_json_text(j, "]}");
    }
}

/* Length and header, padded with spaces to 8 bytes.  *n_data: bytes that follow. */
static pl_status make_header(pl_json *j, const pl_param_table *t, size_t *n_data, pl_error *err)
{
    unsigned char length[8];

    *n_data = 0;
    pl_json_text(j, "        {\"__metadata__\":{\"format\":\"pt\"}");
    add_tensors(j, t, "exp_avg.", n_data);
    add_tensors(j, t, "exp_avg_sq.", n_data);
    pl_json_text(j, "}");
    while (j->n % 8 != 0 && !j->failed)
        pl_json_text(j, " ");
    const pl_status st = pl_json_check(j, "optimizer state", err);
    if (st != PL_OK)
        return st;
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)(j->n - 8) >> (8 * i));
    memcpy(j->data, length, 8);
    return PL_OK;
}

static pl_status put_all(pl_writer *w, const pl_trainer *t, const pl_json *header, pl_error *err)
{
    const pl_param_table *p = pl_model_params(t->model);
    const float *const parts[2] = {t->m, t->v};
    pl_status st = pl_writer_put(w, header->data, header->n, err);

    for (int part = 0; part < 2; part++)
        for (int i = 0; i < p->n_params && st == PL_OK; i++)
            st = pl_writer_put(
                w, parts[part] + p->params[i].offset, param_bytes(&p->params[i]), err);
    return st;
}

pl_status moments_save(const pl_trainer *t, const char *path, pl_error *err)
{
    pl_json header = {0};
    pl_writer *w = NULL;
    size_t n_data;

    pl_status st = make_header(&header, pl_model_params(t->model), &n_data, err);
    if (st == PL_OK)
        st = pl_writer_open(&w, path, err);
    if (st == PL_OK) {
        st = put_all(w, t, &header, err);
        if (st == PL_OK)
            st = pl_writer_commit(w, err);
        else
            pl_writer_abort(w);
    }
    pl_json_done(&header);
    return st;
}

static pl_status get_all(pl_trainer *t, const pl_file *f, pl_error *err)
{
    const pl_param_table *p = pl_model_params(t->model);
    float *const parts[2] = {t->m, t->v};
    pl_json header = {0};
    size_t n_data;

    pl_status st = make_header(&header, p, &n_data, err);
    const size_t n_header = header.n;
    if (st == PL_OK &&
        (f->size != n_header + n_data || memcmp(f->data, header.data, n_header) != 0))
        st = pl_fail(err, PL_E_SHAPE,
            "'%s' does not belong to this model: the architecture is another one, or the file was "
            "changed",
            f->path);
    pl_json_done(&header);
    if (st != PL_OK)
        return st;
    const unsigned char *from = f->data + n_header;
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < p->n_params; i++) {
            memcpy(parts[part] + p->params[i].offset, from, param_bytes(&p->params[i]));
            from += param_bytes(&p->params[i]);
        }
    return PL_OK;
}

pl_status moments_load(pl_trainer *t, const char *path, pl_error *err)
{
    pl_file f;
    pl_status st = pl_file_open(&f, path, err);

    if (st != PL_OK)
        return st;
    st = get_all(t, &f, err);
    pl_file_close(&f);
    return st;
}
