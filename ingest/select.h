/* The list of uids that `agglo ingest --select FILE` keeps. */
#ifndef AGGLO_INGEST_SELECT_H
#define AGGLO_INGEST_SELECT_H

#include "ingest/uid_set.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Read a list of uids into a new set, which the caller frees. Told apart by their first bytes:
 *   - text: a uid of 32 hex digits (either case) on each line, ended by LF or CRLF; blank lines and lines that start with # are passed over;
 *   - .npy of DataComp: [n] of two u64 fields, or [n, 2] of u64: upper half of the uid first, each little-endian.
 * A uid that stands there twice is there once; a list may be empty. The file is read in blocks of 64 KiB: memory stays below twice the
 * file's size and 256 KiB (for what is no regular file, four times what it brings).
 * AGGLO_E_CONFIG: there is no such file, or it is no such list (the line of a text is named); AGGLO_E_IO, AGGLO_E_MEMORY;
 * AGGLO_E_STOPPED when a signal came. *out is NULL then. */
agglo_status agglo_select_open(agglo_uid_set **out, const char *path, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
