/* Pictures one after another, out of whatever a person names: picture files, folders of pictures, webdataset tars (plain, gzip, zstd, from a
 * file or from standard input), ingested datasets. Nothing is decoded here.
 *
 * Keys are those that ingest gives: of a tar the webdataset key; of a file in a folder its path below the folder without the extension, dots
 * of the name as '_' (agglo_name_join_stem; masks, x.seg.png, are passed over); of a file that is named by itself its name, treated so; of a dataset the sample's key. Order: as named; folders by the
 * bytes of their names, tars and datasets as they stand. Only one source is open at a time, but for those whose pictures are still in use;
 * memory is bounded by the names in one source.
 *
 * What cannot be read costs itself: it is logged with its reason and counted.
 */
#ifndef AGGLO_INGEST_PICTURES_H
#define AGGLO_INGEST_PICTURES_H

#include "base/json.h"
#include "ingest/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_pictures agglo_pictures;

typedef struct agglo_picture {
    char *key;          /* its own */
    const char *source; /* path of the source; borrowed from the list */
    uint64_t number;    /* in the list, from 1 */
    int64_t label;      /* of a dataset's sample; -1: none */
    bool has_decode;    /* the dataset says how it is decoded */
    agglo_decode_options decode;
    /* where the bytes are; see agglo_picture_read */
    struct agglo_pictures_source *from;
    agglo_bytes mapped;
    uint64_t offset, n_bytes;
    size_t key_room;
} agglo_picture;

typedef struct agglo_pictures_report {
    uint64_t
        n_rejected; /* samples without a picture, cut off, too large, of a shard that is lost; files and members that are called
                              pictures and are links to nothing, pipes, doubles, without a key */
    uint64_t n_unlabelled; /* passed over */
    uint64_t n_lost;       /* sources, shards of a dataset, or folders below one, that could not be read whole */
    json_t *lost;          /* array of {source, reason}; borrowed from the list */
} agglo_pictures_report;

/* From the arguments of a command, expanded as agglo_ingest_expand does. Standard input and what is compressed is spooled to an unlinked file
 * in spool_dir. AGGLO_E_CONFIG when a pattern matches nothing. */
agglo_status agglo_pictures_new(agglo_pictures **out, const char *const *args, size_t n_args, const char *spool_dir,
                                agglo_err *err);
/* Of one open dataset, borrowed; labelled: pictures without a label are passed over. */
agglo_status agglo_pictures_of_dataset(agglo_pictures **out, const agglo_dataset *dataset, const char *name,
                                       bool labelled, agglo_err *err);
void agglo_pictures_free(agglo_pictures *pictures); /* NULL is fine; its pictures were released before */

/* How many there are, given ones among them, but for those that turn out to be none; 0: not known before the last source is open (the last that
 * is no picture by itself). */
uint64_t agglo_pictures_expected(const agglo_pictures *pictures);

/* The next picture into `out`, which is zeroed or was released; *more false at the end. AGGLO_E_MEMORY, AGGLO_E_STOPPED. One thread. */
agglo_status agglo_pictures_next(agglo_pictures *pictures, agglo_picture *out, bool *more, agglo_err *err);

/* The picture is not needed any more; its memory is kept for the next one. The thread that calls agglo_pictures_next. Harmless twice, and on
 * a zeroed one. */
void agglo_picture_release(agglo_picture *picture);
void agglo_picture_clear(agglo_picture *picture); /* releases, and frees its memory */

/* Its encoded bytes: in a dataset's mapping, or read into *buffer (agglo_alloc, *room bytes, grown as needed). Any thread, before the
 * release. AGGLO_E_IO, AGGLO_E_NOT_FOUND, AGGLO_E_MEMORY. */
agglo_status agglo_picture_read(const agglo_picture *picture, uint8_t **buffer, size_t *room, agglo_bytes *out,
                                agglo_err *err);

/* Log that this picture is left out, and why, and count it. The thread that calls agglo_pictures_next. */
void agglo_pictures_reject(agglo_pictures *pictures, const char *source, const char *key, const agglo_err *reason);

agglo_pictures_report agglo_pictures_report_of(const agglo_pictures *pictures);

#ifdef __cplusplus
}
#endif
#endif
