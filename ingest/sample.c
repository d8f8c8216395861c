/* Grouping by key: an open hash table over groups; members of a group are a list. All texts live in one arena per source shard. */
#include "ingest/sample.h"

#include <jansson.h>

#include "base/hash.h"

enum {
    MAX_MEMBERS = 64,
    N_KNOWN = 64 /* extensions that are kept once: nearly all members share a few */
};

struct agglo_grouping {
    agglo_arena *arena;
    agglo_group *groups;
    agglo_member *members;
    uint32_t *slots; /* group number + 1, 0: free; a power of two */
    size_t n_groups, groups_room, n_members, members_room, n_slots;
    const char *known[N_KNOWN];
    size_t n_known;
    size_t last_group; /* that of the member before, to tell a run; SIZE_MAX: none */
};

bool agglo_is_image_ext(const char *ext)
{
    static const char *const names[] = {"jpg", "jpeg", "png",  "webp", "gif", "bmp",  "tif",  "tiff", "ppm", "pgm",
                                        "pbm", "pnm",  "jfif", "jpe",  "jxl", "avif", "heic", "heif", "img", "image"};

    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        if (strcasecmp(ext, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

agglo_name_kind agglo_name_split(const char *name, size_t *n_key)
{
    const char *slash = strrchr(name, '/'), *dot, *base = slash == NULL ? name : slash + 1;
    size_t n = strlen(name);

    /* a name without slashes that begins and ends with "__"; or "__", anything but slashes, "__" and a slash */
    if (strncmp(name, "__", 2) == 0) {
        size_t n_first = strcspn(name, "/");

        if (memcmp(name + n_first - 2, "__", 2) == 0 && (n_first >= 4 || name[n_first] == 0)) {
            return AGGLO_NAME_META;
        }
    }
    *n_key = n;
    dot = strchr(base, '.');
    /* the directory counts as stem ("dir/.foo" has the key "dir/"), as in webdataset's pattern */
    if (dot == NULL || dot == name || (dot == base && memchr(name, '.', (size_t)(base - name)) != NULL)) {
        return AGGLO_NAME_NO_KEY;
    }
    *n_key = (size_t)(dot - name);
    return AGGLO_NAME_MEMBER;
}

void agglo_name_join_stem(char *path)
{
    char *slash = strrchr(path, '/'), *base = slash == NULL ? path : slash + 1, *end = strrchr(base, '.');

    if (end != NULL && end - base > 4 && strcmp(end, ".png") == 0 && strncmp(end - 4, ".seg", 4) == 0) {
        end -= 4;
    }
    for (char *c = base; end != NULL && c < end; c++) {
        *c = (char)(*c == '.' ? '_' : *c);
    }
}

agglo_status agglo_grouping_new(agglo_grouping **out, agglo_err *err)
{
    agglo_grouping *g = agglo_alloc(1, sizeof *g, err);

    *out = NULL;
    if (g == NULL || agglo_arena_new(&g->arena, 0, err) != AGGLO_OK) {
        agglo_free(g);
        return err->status;
    }
    g->last_group = SIZE_MAX;
    *out = g;
    return AGGLO_OK;
}

void agglo_grouping_free(agglo_grouping *g)
{
    if (g != NULL) {
        agglo_arena_free(g->arena);
        agglo_free(g->groups);
        agglo_free(g->members);
        agglo_free(g->slots);
        agglo_free(g);
    }
}

void agglo_grouping_reset(agglo_grouping *g)
{
    agglo_arena_reset(g->arena);
    if (g->slots != NULL) {
        memset(g->slots, 0, g->n_slots * sizeof *g->slots);
    }
    g->n_groups = 0;
    g->n_members = 0;
    g->n_known = 0;
    g->last_group = SIZE_MAX;
}

/* The extension in lower case, in the arena. */
static const char *keep_ext(agglo_grouping *g, const char *ext, agglo_err *err)
{
    char lower[32];
    size_t n = strlen(ext);
    char *kept;

    if (n < sizeof lower) {
        for (size_t i = 0; i <= n; i++) {
            lower[i] = (char)(ext[i] >= 'A' && ext[i] <= 'Z' ? ext[i] - 'A' + 'a' : ext[i]);
        }
        for (size_t i = 0; i < g->n_known; i++) {
            if (strcmp(g->known[i], lower) == 0) {
                return g->known[i];
            }
        }
    }
    kept = agglo_arena_text(g->arena, ext, n, err);
    for (char *c = kept; c != NULL && *c != 0; c++) {
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
    }
    if (kept != NULL && n < sizeof lower && g->n_known < N_KNOWN) {
        g->known[g->n_known++] = kept;
    }
    return kept;
}

static agglo_status make_room(agglo_grouping *g, agglo_err *err)
{
    if (g->n_members == g->members_room) {
        size_t room = g->members_room * 2 + 256;
        agglo_member *members =
            agglo_realloc(g->members, g->members_room * sizeof *members, room * sizeof *members, err);

        if (members == NULL) {
            return err->status;
        }
        g->members = members;
        g->members_room = room;
    }
    if (g->n_groups == g->groups_room) {
        size_t room = g->groups_room * 2 + 128;
        agglo_group *groups = agglo_realloc(g->groups, g->groups_room * sizeof *groups, room * sizeof *groups, err);

        if (groups == NULL) {
            return err->status;
        }
        g->groups = groups;
        g->groups_room = room;
    }
    if ((g->n_groups + 1) * 2 > g->n_slots) {
        size_t n_slots = g->n_slots == 0 ? 256 : g->n_slots * 2;
        uint32_t *slots = agglo_alloc(n_slots, sizeof *slots, err);

        if (slots == NULL) {
            return err->status;
        }
        for (size_t i = 0; i < g->n_groups; i++) {
            size_t at = (size_t)agglo_xxh3_64(g->groups[i].key, strlen(g->groups[i].key)) & (n_slots - 1);

            while (slots[at] != 0) {
                at = (at + 1) & (n_slots - 1);
            }
            slots[at] = (uint32_t)i + 1;
        }
        agglo_free(g->slots);
        g->slots = slots;
        g->n_slots = n_slots;
    }
    return AGGLO_OK;
}

/* The group of a key, made when it is new. */
static agglo_status find_group(agglo_grouping *g, const char *name, size_t n_key, size_t *out, agglo_err *err)
{
    size_t at = (size_t)agglo_xxh3_64(name, n_key) & (g->n_slots - 1);
    agglo_group *group;

    for (; g->slots[at] != 0; at = (at + 1) & (g->n_slots - 1)) {
        const char *key = g->groups[g->slots[at] - 1].key;

        if (strncmp(key, name, n_key) == 0 && key[n_key] == 0) {
            *out = g->slots[at] - 1;
            return AGGLO_OK;
        }
    }
    group = &g->groups[g->n_groups];
    *group = (agglo_group){.key = agglo_arena_text(g->arena, name, n_key, err)};
    if (group->key == NULL) {
        return err->status;
    }
    g->slots[at] = (uint32_t)g->n_groups + 1;
    *out = g->n_groups++;
    return AGGLO_OK;
}

agglo_status agglo_grouping_add(agglo_grouping *g, const char *name, uint64_t offset, uint64_t n_bytes, bool cut,
                                const char **reason, agglo_err *err)
{
    agglo_name_kind kind;
    agglo_group *group;
    agglo_member *member;
    size_t n_key, at = 0;
    bool same_run, image;
    const char *ext;

    *reason = NULL;
    kind = agglo_name_split(name, &n_key);
    if (kind != AGGLO_NAME_MEMBER) {
        *reason = kind == AGGLO_NAME_NO_KEY ? "unsupported_member" : NULL;
        return AGGLO_OK;
    }
    if (g->n_members >= UINT32_MAX - 1) {
        return agglo_fail(err, AGGLO_E_MEMORY, "more than %u members in one tar", UINT32_MAX - 1);
    }
    if (make_room(g, err) != AGGLO_OK || find_group(g, name, n_key, &at, err) != AGGLO_OK) {
        return err->status;
    }
    ext = keep_ext(g, name + n_key + 1, err);
    if (ext == NULL) {
        return err->status;
    }
    group = &g->groups[at];
    if (group->n_members == MAX_MEMBERS) { /* also keeps the walk below short */
        *reason = "unsupported_member";
        return AGGLO_OK;
    }
    same_run = at == g->last_group;
    g->last_group = at;
    image = agglo_is_image_ext(ext);
    for (uint32_t m = group->first; m != 0; m = g->members[m - 1].next) {
        if (strcmp(g->members[m - 1].ext, ext) == 0 && (same_run || !image)) {
            *reason = "duplicate_member";
            return AGGLO_OK;
        }
    }
    if (image && group->image != 0) {
        *reason = "duplicate_key";
        return AGGLO_OK;
    }
    member = &g->members[g->n_members++];
    *member = (agglo_member){.ext = ext, .offset = offset, .n_bytes = n_bytes};
    if (group->last != 0) {
        g->members[group->last - 1].next = (uint32_t)g->n_members;
    } else {
        group->first = (uint32_t)g->n_members;
    }
    group->last = (uint32_t)g->n_members;
    group->image = image ? (uint32_t)g->n_members : group->image;
    group->n_members++;
    group->incomplete = group->incomplete || cut;
    return AGGLO_OK;
}

size_t agglo_grouping_count(const agglo_grouping *grouping)
{
    return grouping->n_groups;
}

const agglo_group *agglo_grouping_at(const agglo_grouping *grouping, size_t i)
{
    return &grouping->groups[i];
}

const agglo_member *agglo_grouping_member(const agglo_grouping *grouping, uint32_t number)
{
    return &grouping->members[number - 1];
}

/* Copy a string from its quote on, up to and with the quote that ends it; jansson refuses what Python's json takes and web data hold: lone
 * surrogates and NULs as escapes, which become '?', and raw control characters, which become blanks. Returns how many bytes it took. */
static size_t forgive_string(const uint8_t *in, size_t n, char *out)
{
    size_t i = 1;

    out[0] = '"';
    while (i < n && in[i] != '"') {
        out[i] = (char)(in[i] < 0x20 ? ' ' : in[i]);
        if (in[i] != '\\' || i + 1 >= n) {
            i++;
            continue;
        }
        out[i + 1] = (char)in[i + 1];
        if (in[i + 1] == 'u' && n - i >= 6) {
            bool pair = n - i >= 12 && (in[i + 2] | 0x20) == 'd' && strchr("89abAB", in[i + 3]) != NULL &&
                        in[i + 6] == '\\' && in[i + 7] == 'u' && (in[i + 8] | 0x20) == 'd' &&
                        strchr("cdefCDEF", in[i + 9]) != NULL;
            size_t n_escape = pair ? 12 : 6;

            memcpy(out + i, in + i, n_escape);
            if (!pair && (((in[i + 2] | 0x20) == 'd' && in[i + 3] >= '8') || memcmp(in + i + 2, "0000", 4) == 0)) {
                memcpy(out + i, "\\u003f", 6);
            }
            i += n_escape;
        } else {
            i += 2;
        }
    }
    if (i < n) {
        out[i++] = '"';
    }
    return i;
}

/* The same text, with what jansson does not take made harmless: in strings as above; outside, NaN, Infinity and numbers that do not fit 64
 * bits become 0. NULL on lack of memory. */
static char *forgive(agglo_bytes json)
{
    static const char number[] = "+-.0123456789eE", word[] = "NaInfity-";
    agglo_err ignored = {0};
    char *text = agglo_alloc(json.size + 1, 1, &ignored);

    for (size_t i = 0; text != NULL && i < json.size;) {
        const uint8_t *p = json.data + i;
        size_t n = 0, most = json.size - i;

        if (*p == '"') {
            i += forgive_string(p, most, text + i);
            continue;
        }
        if (*p == 'N' || *p == 'I' || (*p == '-' && most > 1 && p[1] == 'I')) {
            while (n < most && p[n] != 0 && strchr(word, p[n]) != NULL) {
                n++;
            }
        } else if (*p == '-' || (*p >= '0' && *p <= '9')) {
            while (n < most && p[n] != 0 && strchr(number, p[n]) != NULL) {
                n++;
            }
            if (n < 19 && memchr(p, 'e', n) == NULL && memchr(p, 'E', n) == NULL) {
                memcpy(text + i, p, n);
                i += n;
                continue;
            }
        }
        if (n > 0) {
            memset(text + i, ' ', n);
            text[i] = '0';
        } else {
            text[i] = (char)*p;
            n = 1;
        }
        i += n;
    }
    return text;
}

void agglo_sidecar_read(agglo_bytes json, agglo_sidecar *out)
{
    json_t *root;
    const char *text;
    char *plain;

    *out = (agglo_sidecar){0};
    if (json.size > AGGLO_SIDECAR_JSON_MAX) {
        return;
    }
    if (json.size >= 3 && memcmp(json.data, "\xef\xbb\xbf", 3) == 0) {
        json = (agglo_bytes){json.data + 3, json.size - 3};
    }
    root = json_loadb((const char *)json.data, json.size, JSON_ALLOW_NUL, NULL);
    if (root == NULL && (plain = forgive(json)) != NULL) {
        root = json_loadb(plain, json.size, JSON_ALLOW_NUL, NULL);
        agglo_free(plain);
    }
    out->understood = json_is_object(root);
    text = json_string_value(json_object_get(root, "uid"));
    out->has_uid = text != NULL && strlen(text) == 32 && agglo_unhex(text, out->uid, 16);
    text = json_string_value(json_object_get(root, "sha256"));
    out->has_sha256 = text != NULL && strlen(text) == 64 && agglo_unhex(text, out->sha256, 32);
    json_decref(root);
}

int64_t agglo_sidecar_label(agglo_bytes cls)
{
    int64_t label = 0;
    size_t i = 0, n = cls.size;

    while (n > 0 && strchr(" \t\r\n", cls.data[n - 1]) != NULL && cls.data[n - 1] != 0) {
        n--;
    }
    if (n == 0 || n > 18) { /* 18 digits always fit */
        return -1;
    }
    for (; i < n; i++) {
        if (cls.data[i] < '0' || cls.data[i] > '9') {
            return -1;
        }
        label = label * 10 + (cls.data[i] - '0');
    }
    return label;
}
