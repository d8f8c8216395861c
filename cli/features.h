/* A teacher or a student from one weights file, and its summaries over a whole labelled dataset: what evaluations share. */
#ifndef AGGLO_CLI_FEATURES_H
#define AGGLO_CLI_FEATURES_H

#include "cli/cli.h"
#include "ingest/dataset.h"
#include "teachers/teacher.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_encoder_options {
    agglo_teacher_options
        model;        /* of a student, what is a teacher's alone stays at its default: AGGLO_E_CONFIG otherwise */
    const char *head; /* a student's head by name, NULL for its backbone (AGGLO_E_CONFIG with a teacher) */
} agglo_encoder_options;

/* What the options that most commands with a model share say; zeroed: nothing. */
typedef struct agglo_model_args {
    const char *weights, *head, *act;
    int64_t size;
} agglo_model_args;

/* Their lines in a command's table. args: a static agglo_model_args; file: what --weights may be. */
#define AGGLO_MODEL_OPTIONS(args, file)                                                                                \
    {"weights", AGGLO_OPTION_STRING, &(args).weights, "FILE", file, 0, 0},                                             \
        {"head", AGGLO_OPTION_STRING, &(args).head, "NAME", "a student's head for this teacher (its backbone)", 0, 0}, \
        {"size", AGGLO_OPTION_INT, &(args).size, "N", "side of the input, pixels (the model's own)", 1, 8192},         \
    {                                                                                                                  \
        "act", AGGLO_OPTION_STRING, &(args).act, "gelu|quick_gelu", "a teacher's activation (as its files state)", 0,  \
            0                                                                                                          \
    }

agglo_encoder_options agglo_model_args_options(const agglo_model_args *args);

/* The model's own size, F32, everything as the file states it. */
agglo_encoder_options agglo_encoder_options_default(const char *weights);

/* Open whatever the file is: a student (told by its metadata) or a teacher. */
agglo_status agglo_encoder_open(agglo_encoder *out, agglo_backend *backend, const agglo_encoder_options *options,
                                agglo_err *err);

/* Summaries of all labelled samples of a dataset, in order, each whole picture prepared as the model expects. */
typedef struct agglo_features {
    float *summary;  /* [n, dim] */
    int64_t *labels; /* [n] */
    int64_t n;
    int dim;
    int64_t n_unlabelled; /* left out */
    int64_t n_bad;        /* left out: picture or shard could not be read */
    uint32_t n_lost_shards;
} agglo_features;

/* n_workers threads decode and render. `name` is the dataset's, for messages. AGGLO_E_STOPPED on a signal. */
agglo_status agglo_features_of(agglo_features *out, const agglo_encoder *encoder, const agglo_dataset *dataset,
                               const char *name, int n_workers, agglo_err *err);
void agglo_features_clear(agglo_features *features); /* safe on a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
