/* Options from tables: --name value, --name=value, -q, -v, -h, "--" ends them; the same tables make the help. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/yaml.h"
#include "cli/cli.h"

enum { N_GLOBAL = 5 };

/* The global options write into a cli; their targets depend on it, so the table is made per call. */
static void global_options(agglo_cli *cli, agglo_option options[N_GLOBAL])
{
    const agglo_option table[N_GLOBAL] = {
        {"device", AGGLO_OPTION_STRING, &cli->device, "auto|cpu|cuda[:N]", "where to compute (auto)", 0, 0},
        {"threads", AGGLO_OPTION_INT, &cli->threads, "N", "threads (all cores)", 1, 4096},
        {"json", AGGLO_OPTION_FLAG, &cli->json, NULL, "one JSON object on stdout", 0, 0},
        {"quiet", AGGLO_OPTION_FLAG, &cli->quiet, NULL, "-q: warnings and errors only", 0, 0},
        {"verbose", AGGLO_OPTION_FLAG, &cli->verbose, NULL, "-v: more, with the trail of an error", 0, 0},
    };

    memcpy(options, table, sizeof table);
}

static agglo_status bad_value(const agglo_option *option, const char *text, agglo_err *err, const char *expected)
{
    return agglo_fail(err, AGGLO_E_CONFIG, "--%s takes %s, not '%s'", option->name, expected, text);
}

static agglo_status out_of_range(const agglo_option *option, const char *text, agglo_err *err)
{
    return agglo_fail(err, AGGLO_E_CONFIG, "--%s must lie in %.15g..%.15g, not %s", option->name, option->min,
                      option->max, text);
}

static agglo_status set_size(const agglo_option *option, const char *text, agglo_err *err)
{
    static const char units[] = "KMGT";
    char *end;
    double number = strtod(text, &end);
    const char *unit = *end != '\0' ? strchr(units, *end >= 'a' ? *end - 32 : *end) : NULL;

    if (end == text || !(number >= 0) ||
        (*end != '\0' && (unit == NULL || (end[1] != '\0' && strcmp(end + 1, "B") != 0)))) {
        return bad_value(option, text, err, "a size such as 500M or 2G");
    }
    for (const char *u = units; unit != NULL && u <= unit; u++) {
        number *= 1024;
    }
    if (number >= 0x1p63) {
        return bad_value(option, text, err, "a size below 2^63 bytes");
    }
    *(uint64_t *)option->target = (uint64_t)number;
    return AGGLO_OK;
}

static agglo_status set_choice(const agglo_option *option, const char *text, agglo_err *err)
{
    size_t n = strlen(text);
    int index = 0;

    for (const char *at = option->value; at != NULL; index++) {
        const char *bar = strchr(at, '|');
        size_t length = bar != NULL ? (size_t)(bar - at) : strlen(at);

        if (length == n && memcmp(at, text, n) == 0) {
            *(int *)option->target = index;
            return AGGLO_OK;
        }
        at = bar != NULL ? bar + 1 : NULL;
    }
    return bad_value(option, text, err, option->value);
}

static agglo_status set_value(const agglo_option *option, const char *text, size_t capacity, agglo_err *err)
{
    char *end;

    errno = 0;
    switch (option->kind) {
    case AGGLO_OPTION_FLAG:
        return agglo_fail(err, AGGLO_E_CONFIG, "--%s takes no value", option->name);
    case AGGLO_OPTION_STRING:
        *(const char **)option->target = text;
        return AGGLO_OK;
    case AGGLO_OPTION_INT: {
        long long number = strtoll(text, &end, 10);

        if (end == text || *end != '\0' || errno != 0) {
            return bad_value(option, text, err, "a whole number");
        }
        if ((double)number < option->min || (double)number > option->max) {
            return out_of_range(option, text, err);
        }
        *(int64_t *)option->target = number;
        return AGGLO_OK;
    }
    case AGGLO_OPTION_DOUBLE: {
        double number = strtod(text, &end);

        if (end == text || *end != '\0') {
            return bad_value(option, text, err, "a number");
        }
        if (!(number >= option->min && number <= option->max)) {
            return out_of_range(option, text, err);
        }
        *(double *)option->target = number;
        return AGGLO_OK;
    }
    case AGGLO_OPTION_SIZE:
        return set_size(option, text, err);
    case AGGLO_OPTION_CHOICE:
        return set_choice(option, text, err);
    case AGGLO_OPTION_LIST: {
        agglo_texts *texts = option->target;

        if (texts->items == NULL) {
            texts->items = agglo_alloc(capacity, sizeof *texts->items, err);
            if (texts->items == NULL) {
                return err->status;
            }
        }
        texts->items[texts->n++] = text;
        return AGGLO_OK;
    }
    }
    return AGGLO_OK;
}

static const agglo_option *find(const agglo_option *options, size_t n, const char *name, size_t length)
{
    for (size_t i = 0; i < n; i++) {
        if (strlen(options[i].name) == length && memcmp(options[i].name, name, length) == 0) {
            return &options[i];
        }
    }
    return NULL;
}

static agglo_status unknown_option(const agglo_command *command, const agglo_option *global, const char *name,
                                   agglo_err *err)
{
    const char *names[64];
    size_t n = 0;
    const char *nearest;

    for (size_t i = 0; i < command->n_options && n < AGGLO_COUNT(names); i++) {
        names[n++] = command->options[i].name;
    }
    for (size_t i = 0; i < N_GLOBAL && n < AGGLO_COUNT(names); i++) {
        names[n++] = global[i].name;
    }
    nearest = agglo_nearest(name, names, n);
    return nearest != NULL
               ? agglo_fail(err, AGGLO_E_CONFIG, "unknown option '--%s', did you mean '--%s'?", name, nearest)
               : agglo_fail(err, AGGLO_E_CONFIG, "unknown option '--%s'; see agglo %s --help", name, command->name);
}

/* One long option at argv[*i]; moves *i over its value. */
static agglo_status long_option(const agglo_command *command, const agglo_option *global, int argc, char **argv, int *i,
                                agglo_err *err)
{
    const char *name = argv[*i] + 2, *equals = strchr(name, '='), *value;
    size_t length = equals != NULL ? (size_t)(equals - name) : strlen(name);
    const agglo_option *option = find(command->options, command->n_options, name, length);

    if (option == NULL) {
        option = find(global, N_GLOBAL, name, length);
    }
    if (option == NULL) {
        char text[64];

        snprintf(text, sizeof text, "%.*s", length < 60 ? (int)length : 60, name);
        return unknown_option(command, global, text, err);
    }
    if (option->kind == AGGLO_OPTION_FLAG && equals == NULL) {
        *(bool *)option->target = true;
        return AGGLO_OK;
    }
    value = equals != NULL ? equals + 1 : *i + 1 < argc ? argv[++*i] : NULL;
    if (value == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--%s needs a value: %s", option->name, option->value);
    }
    return set_value(option, value, (size_t)argc, err);
}

agglo_status agglo_args_parse(agglo_cli *cli, const agglo_command *command, int argc, char **argv, bool *help,
                              agglo_err *err)
{
    agglo_option global[N_GLOBAL];
    bool only_args = false;

    *help = false;
    global_options(cli, global);
    cli->args.items = agglo_alloc((size_t)argc + 1, sizeof *cli->args.items, err);
    if (cli->args.items == NULL) {
        return err->status;
    }
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];

        if (only_args || arg[0] != '-' || arg[1] == '\0') {
            cli->args.items[cli->args.n++] = arg;
        } else if (strcmp(arg, "--") == 0) {
            only_args = true;
        } else if (strcmp(arg, "-h") == 0 || strcmp(arg, "--help") == 0) {
            *help = true;
            return AGGLO_OK;
        } else if (strcmp(arg, "-q") == 0) {
            cli->quiet = true;
        } else if (strcmp(arg, "-v") == 0) {
            cli->verbose = true;
        } else if (arg[1] != '-') {
            return agglo_fail(err, AGGLO_E_CONFIG, "unknown option '%s'; see agglo %s --help", arg, command->name);
        } else if (long_option(command, global, argc, argv, &i, err) != AGGLO_OK) {
            return err->status;
        }
    }
    if (cli->args.n < command->min_args || cli->args.n > command->max_args) {
        return agglo_fail(err, AGGLO_E_CONFIG, "%s; usage: agglo %s %s",
                          cli->args.n < command->min_args ? "an argument is missing" : "too many arguments",
                          command->name, command->usage);
    }
    return AGGLO_OK;
}

void agglo_cli_clear(agglo_cli *cli, const agglo_command *command)
{
    for (size_t i = 0; command != NULL && i < command->n_options; i++) {
        if (command->options[i].kind == AGGLO_OPTION_LIST) {
            agglo_free(((agglo_texts *)command->options[i].target)->items);
        }
    }
    agglo_free(cli->args.items);
    memset(cli, 0, sizeof *cli);
}

static void print_options(const agglo_option *options, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char left[96];

        snprintf(left, sizeof left, "--%s%s%s", options[i].name, options[i].value != NULL ? " " : "",
                 options[i].value != NULL ? options[i].value : "");
        if (strlen(left) > 27) {
            printf("  %s\n%31s%s\n", left, "", options[i].help);
        } else {
            printf("  %-28s %s\n", left, options[i].help);
        }
    }
}

void agglo_help_command(const agglo_command *command)
{
    agglo_cli cli = {0};
    agglo_option global[N_GLOBAL];

    global_options(&cli, global);
    printf("usage: agglo %s %s\n\n%s\n", command->name, command->usage, command->summary);
    if (command->details != NULL) {
        printf("\n%s\n", command->details);
    }
    if (command->n_options > 0) {
        printf("\noptions:\n");
        print_options(command->options, command->n_options);
    }
    printf("\nglobal options:\n");
    print_options(global, N_GLOBAL);
    printf("  %-28s %s\n", "--version", "versions of every library, and whether CUDA is there");
    printf("\nexample:\n  %s\n", command->example);
}

void agglo_help_all(const agglo_command *const *commands, size_t n)
{
    printf("usage: agglo COMMAND ...\n\nDistils vision foundation models into one student, running every teacher "
           "once.\n\ncommands:\n");
    for (size_t i = 0; i < n; i++) {
        printf("  %-18s %s\n", commands[i]->name, commands[i]->summary);
    }
    printf("\n'agglo COMMAND --help' tells more, with an example; 'agglo --version' lists the libraries.\n"
           "exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 done but some file could not be read\n");
}
