/* Stands in for libFuzzer's main: feeds the regular files given, and those of the directories given, to the fuzz target once each,
 * so that a corpus replays as an ordinary test under any compiler. Fails when there are no files: an empty corpus tests nothing.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Returns the number of inputs replayed, -1 when the file cannot be read. */
static long replay_file(const char *path, size_t n_bytes)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data =
        malloc(n_bytes > 0 ? n_bytes : 1); /* exactly as large as the file, so that ASan sees a read behind it */
    long n = -1;

    if (file == NULL || data == NULL || fread(data, 1, n_bytes, file) != n_bytes) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
    } else {
        printf("%s\n", path);
        fflush(stdout); /* names the input when the target crashes */
        LLVMFuzzerTestOneInput(data, n_bytes);
        n = 1;
    }
    free(data);
    if (file != NULL) {
        fclose(file);
    }
    return n;
}

static long replay(const char *path)
{
    struct stat info;
    struct dirent **names;
    long total = 0;
    int n_names;

    if (stat(path, &info) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return -1;
    }
    if (S_ISREG(info.st_mode)) {
        return replay_file(path, (size_t)info.st_size);
    }
    if (!S_ISDIR(info.st_mode)) {
        return 0;
    }
    n_names = scandir(path, &names, NULL, alphasort);
    if (n_names < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return -1;
    }
    for (int i = 0; i < n_names; i++) {
        if (strcmp(names[i]->d_name, ".") != 0 && strcmp(names[i]->d_name, "..") != 0 && total >= 0) {
            char inner[4096];
            long n = -1;

            if (snprintf(inner, sizeof inner, "%s/%s", path, names[i]->d_name) < (int)sizeof inner) {
                n = replay(inner);
            } else {
                fprintf(stderr, "%s: the path is too long\n", path);
            }
            total = n < 0 ? -1 : total + n;
        }
        free(names[i]);
    }
    free(names);
    return total;
}

int main(int argc, char **argv)
{
    long total = 0;

    for (int i = 1; i < argc; i++) {
        long n = replay(argv[i]);

        if (n < 0) {
            return 1;
        }
        total += n;
    }
    if (total == 0) {
        fprintf(stderr, "no inputs: the corpus is missing or empty\n");
        return 1;
    }
    printf("%ld inputs\n", total);
    return 0;
}
