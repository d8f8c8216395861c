/* maxrss FILE COMMAND [ARG...]: runs a command and writes its peak resident memory in KiB to FILE; exits as the command did. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct rusage usage;
    int status;
    FILE *out;
    pid_t pid;

    if (argc < 3) {
        fprintf(stderr, "usage: maxrss FILE COMMAND [ARG...]\n");
        return 2;
    }
    pid = fork();
    if (pid == 0) {
        execvp(argv[2], argv + 2);
        _exit(127);
    }
    if (pid < 0 || wait4(pid, &status, 0, &usage) != pid || (out = fopen(argv[1], "w")) == NULL) {
        perror("maxrss");
        return 1;
    }
    fprintf(out, "%ld\n", usage.ru_maxrss);
    fclose(out);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
