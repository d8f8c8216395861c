/* The command line: one table of commands, each with a table of options; parsing, help and printing are made from them.
 *
 * A command fills its own static options, does its work and returns a status; main prints the one error line and chooses the exit status
 * (0 done, 1 failed, 2 wrong usage or configuration, 3 done but some shard or file could not be read).
 */
#ifndef AGGLO_CLI_CLI_H
#define AGGLO_CLI_CLI_H

#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_option_kind {
    AGGLO_OPTION_FLAG,   /* bool: present or not */
    AGGLO_OPTION_STRING, /* const char * */
    AGGLO_OPTION_INT,    /* int64_t in [min, max] */
    AGGLO_OPTION_DOUBLE, /* double in [min, max] */
    AGGLO_OPTION_SIZE,   /* uint64_t: bytes, with K, M, G or T (powers of 1024) */
    AGGLO_OPTION_CHOICE, /* int: index into choices, a text "full|header" */
    AGGLO_OPTION_LIST,   /* agglo_texts: may be given several times */
} agglo_option_kind;

typedef struct agglo_texts {
    const char **items; /* borrowed from argv; the array is the parser's */
    size_t n;
} agglo_texts;

typedef struct agglo_option {
    const char *name; /* without the dashes */
    agglo_option_kind kind;
    void *target;
    const char *value; /* how help names the value, "DATASET"; for a choice, "full|header" */
    const char *help;  /* with its default */
    double min, max;
} agglo_option;

/* What every command gets. */
typedef struct agglo_cli {
    const char *device; /* "auto" */
    int64_t threads;    /* 0: all cores */
    bool json, quiet, verbose;
    agglo_texts args; /* what is not an option */
    bool incomplete;  /* set by a command: done, but some shard or file could not be read (exit status 3) */
} agglo_cli;

typedef struct agglo_command {
    const char *name;    /* "ingest", "eval knn" */
    const char *usage;   /* "SRC... --out DATASET" */
    const char *summary; /* one line */
    const char *details; /* more lines, may be NULL */
    const char *example; /* one or more command lines */
    const agglo_option *options;
    size_t n_options;
    size_t min_args, max_args;
    agglo_status (*run)(agglo_cli *cli, agglo_err *err);
} agglo_command;

extern const agglo_command agglo_cmd_bench_decode, agglo_cmd_bench_ops, agglo_cmd_bench_teacher, agglo_cmd_embed,
    agglo_cmd_ingest, agglo_cmd_teach, agglo_cmd_train, agglo_cmd_eval_knn, agglo_cmd_eval_zeroshot,
    agglo_cmd_eval_distill, agglo_cmd_inspect_dataset, agglo_cmd_inspect_cache, agglo_cmd_inspect_weights,
    agglo_cmd_weights_init;

/* ---- args.c ---- */

/* Parse argv[0..argc) (behind the command's name) into the command's options and the global ones. `help` is set by -h and --help.
 * AGGLO_E_CONFIG names the option. cli->args.items is allocated: agglo_cli_clear. */
agglo_status agglo_args_parse(agglo_cli *cli, const agglo_command *command, int argc, char **argv, bool *help,
                              agglo_err *err);
void agglo_cli_clear(agglo_cli *cli, const agglo_command *command);

/* Help to stdout. */
void agglo_help_command(const agglo_command *command);
void agglo_help_all(const agglo_command *const *commands, size_t n);

/* ---- print.c ---- */

/* `value` as indented JSON on stdout. */
void agglo_print_json(const json_t *value);

/* What depends on the clock, in JSON: one decimal. */
json_t *agglo_json_clock(double value);

/* "12.3 MB" (powers of 1000), "1.2 M"; into a static ring of 16 buffers. */
const char *agglo_show_bytes(double n);
const char *agglo_show_count(double n);

/* Integers with separators: "1,234,567"; same buffers. */
const char *agglo_show_int(int64_t n);

/* "agglo 0.1.0" and the versions of every linked library. */
json_t *agglo_version_json(void);
void agglo_print_version(bool json);

/* ---- median.c ---- */

#define AGGLO_MEDIAN_MOST 1000

/* The median of 1 to AGGLO_MEDIAN_MOST values, and half the distance between their quartiles in percent of it. */
double agglo_median(const double *values, int n, double *spread);

#ifdef __cplusplus
}
#endif
#endif
