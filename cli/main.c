/* The program: finds the command, runs it, prints the one error line, chooses the exit status. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/stop.h"
#include "base/yaml.h"
#include "cli/cli.h"

static const agglo_command *const commands[] = {
    &agglo_cmd_bench_decode,    &agglo_cmd_bench_ops,    &agglo_cmd_bench_teacher,   &agglo_cmd_ingest,
    &agglo_cmd_teach,           &agglo_cmd_train,        &agglo_cmd_embed,           &agglo_cmd_eval_knn,
    &agglo_cmd_eval_zeroshot,   &agglo_cmd_eval_distill, &agglo_cmd_inspect_dataset, &agglo_cmd_inspect_cache,
    &agglo_cmd_inspect_weights, &agglo_cmd_weights_init,
};

/* Where the first word behind global options stands; argc or more: nowhere. */
static int first_word(int argc, char **argv)
{
    static const char *const with_value[] = {"--device", "--threads"};
    int at = 0;

    while (at < argc && argv[at][0] == '-') {
        bool takes_value = false;

        for (size_t i = 0; i < AGGLO_COUNT(with_value); i++) {
            takes_value |= strcmp(argv[at], with_value[i]) == 0;
        }
        at += takes_value ? 2 : 1;
    }
    return at;
}

/* A command of one or two words at the front of argv, after global options; the words are cut out. NULL: none. */
static const agglo_command *find_command(int *argc, char **argv)
{
    int at = first_word(*argc, argv);

    for (size_t i = 0; i < AGGLO_COUNT(commands) && at < *argc; i++) {
        const char *space = strchr(commands[i]->name, ' ');
        size_t first = space != NULL ? (size_t)(space - commands[i]->name) : strlen(commands[i]->name);
        int words = space != NULL ? 2 : 1;

        if (strlen(argv[at]) != first || memcmp(argv[at], commands[i]->name, first) != 0 ||
            (space != NULL && (at + 1 >= *argc || strcmp(argv[at + 1], space + 1) != 0))) {
            continue;
        }
        memmove(argv + at, argv + at + words, (size_t)(*argc - at - words) * sizeof *argv);
        *argc -= words;
        return commands[i];
    }
    return NULL;
}

static agglo_status unknown_command(int argc, char **argv, agglo_err *err)
{
    const char *names[AGGLO_COUNT(commands)];
    const char *nearest;
    char text[64];

    for (size_t i = 0; i < AGGLO_COUNT(commands); i++) {
        names[i] = commands[i]->name;
    }
    for (size_t i = 0; i < AGGLO_COUNT(commands); i++) { /* "inspect" alone: say what may follow */
        size_t n = strlen(argv[0]);

        if (strncmp(names[i], argv[0], n) == 0 && names[i][n] == ' ') {
            char what[160] = "";

            for (size_t k = i; k < AGGLO_COUNT(commands) && strncmp(names[k], names[i], n + 1) == 0; k++) {
                size_t used = strlen(what);

                snprintf(what + used, sizeof what - used, "%s%s", used > 0 ? ", " : "", names[k] + n + 1);
            }
            return argc > 1 ? agglo_fail(err, AGGLO_E_CONFIG, "'agglo %s' takes one of: %s; not '%s'", argv[0], what,
                                         argv[1])
                            : agglo_fail(err, AGGLO_E_CONFIG, "'agglo %s' takes one of: %s", argv[0], what);
        }
    }
    snprintf(text, sizeof text, "%s", argv[0]);
    nearest = agglo_nearest(text, names, AGGLO_COUNT(names));
    return nearest != NULL ? agglo_fail(err, AGGLO_E_CONFIG, "unknown command '%s', did you mean '%s'?", text, nearest)
                           : agglo_fail(err, AGGLO_E_CONFIG, "unknown command '%s'; see agglo --help", text);
}

/* Help of the first word of commands of two, "inspect"; false when there is none. */
static bool help_group(const char *word)
{
    const agglo_command *group[AGGLO_COUNT(commands)];
    size_t n = 0, n_word = strlen(word);

    for (size_t i = 0; i < AGGLO_COUNT(commands); i++) {
        if (strncmp(commands[i]->name, word, n_word) == 0 && commands[i]->name[n_word] == ' ') {
            group[n++] = commands[i];
        }
    }
    if (n > 0) {
        agglo_help_all(group, n);
    }
    return n > 0;
}

static int exit_status(agglo_status status, bool incomplete)
{
    return status == AGGLO_OK ? (incomplete ? 3 : 0) : status == AGGLO_E_CONFIG ? 2 : 1;
}

static bool asked(int argc, char **argv, const char *word)
{
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], word) == 0) {
            return true;
        }
    }
    return false;
}

/* The exit status; results that did not reach standard output are a failure. */
static int flush_output(int status)
{
    bool failed = fflush(stdout) != 0 || ferror(stdout) != 0;

    if (failed && status != 1 && status != 2) {
        fprintf(stderr, "agglo: cannot print: not all could be written (standard output)\n");
        status = 1;
    }
    return status;
}

int main(int argc, char **argv)
{
    agglo_cli cli = {.device = "auto"};
    const agglo_command *command;
    agglo_err err = {0};
    bool help = false, verbose;
    int status;

    /* no setlocale: numbers are read and printed in the C locale */
    argc--;
    argv++;
    command = find_command(&argc, argv);
    if (command == NULL || asked(argc, argv, "--version")) {
        int at = command == NULL ? first_word(argc, argv) : argc;

        bool alone =
            at + 1 >= argc || argv[at + 1][0] == '-'; /* "inspect", with no word behind it that is no command */

        if (at < argc && alone && (asked(argc, argv, "--help") || asked(argc, argv, "-h")) && help_group(argv[at])) {
            return flush_output(0);
        } else if (at < argc) {
            unknown_command(argc - at, argv + at, &err);
        } else if (asked(argc, argv, "--version")) {
            agglo_print_version(asked(argc, argv, "--json"));
            return flush_output(0);
        } else if (argc == 0 || asked(argc, argv, "--help") || asked(argc, argv, "-h")) {
            agglo_help_all(commands, AGGLO_COUNT(commands));
            return flush_output(argc == 0 ? 2 : 0);
        } else {
            agglo_fail(&err, AGGLO_E_CONFIG, "a command is missing; see agglo --help");
        }
    } else {
        agglo_args_parse(&cli, command, argc, argv, &help, &err);
    }
    if (err.status == AGGLO_OK && help) {
        agglo_help_command(command);
    } else if (err.status == AGGLO_OK) {
        agglo_log_set_level(cli.quiet ? AGGLO_LOG_WARN : cli.verbose ? AGGLO_LOG_DEBUG : AGGLO_LOG_INFO);
        agglo_stop_install();
        command->run(&cli, &err);
    }
    status = exit_status(err.status, cli.incomplete);
    verbose = cli.verbose;
    agglo_cli_clear(&cli, command);
    if (err.status != AGGLO_OK) {
        char line[1024];

        fprintf(stderr, "agglo: %s\n", agglo_err_line(&err, line, sizeof line));
        if (verbose && err.trail[0] != '\0') {
            fprintf(stderr, "agglo: while: %s\n", err.trail);
        }
    }
    return flush_output(status);
}
