/* What connects, for the benchmarks: one small program, so that nothing but connecting is measured.
 *
 *   connector hold  IP PORT COUNT   connects, waits for the other end to close, and again
 *   connector cost  IP PORT COUNT   connects to a port where nobody listens; prints each connect()'s nanoseconds
 *   connector once  IP PORT TAG     connects, sends one byte, and ends
 *   connector spawn IP PORT COUNT A B   starts A and B in turns, each with `once` and its tag, as fast as they end
 *   connector sockets COUNT         opens so many sockets, says "ready", and waits for its standard input to end
 */
#include <arpa/inet.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static socklen_t address(struct sockaddr_storage *to, const char *ip, const char *port) {
    struct sockaddr_in *v4 = (struct sockaddr_in *)to;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;
    memset(to, 0, sizeof *to);
    if (inet_pton(AF_INET, ip, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(atoi(port));
        return sizeof *v4;
    }
    if (inet_pton(AF_INET6, ip, &v6->sin6_addr) != 1) exit(2);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(atoi(port));
    return sizeof *v6;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int hold(const struct sockaddr_storage *to, socklen_t length, long count) {
    for (long i = 0; i < count; i++) {
        char byte;
        int s = socket(to->ss_family, SOCK_STREAM, 0);
        if (s < 0 || connect(s, (const struct sockaddr *)to, length)) return 1;
        while (read(s, &byte, 1) > 0) {}
        close(s);
    }
    return 0;
}

static int cost(const struct sockaddr_storage *to, socklen_t length, long count) {
    for (long i = 0; i < count; i++) {
        int s = socket(to->ss_family, SOCK_STREAM, 0);
        if (s < 0) return 1;
        uint64_t began = now();
        int refused = connect(s, (const struct sockaddr *)to, length);
        uint64_t took = now() - began;
        if (!refused) return 1;
        close(s);
        printf("%llu\n", (unsigned long long)took);
    }
    return 0;
}

static int once(const struct sockaddr_storage *to, socklen_t length, const char *tag) {
    int s = socket(to->ss_family, SOCK_STREAM, 0);
    if (s < 0 || connect(s, (const struct sockaddr *)to, length)) return 1;
    return write(s, tag, 1) == 1 ? 0 : 1;
}

static int spawn(char *ip, char *port, long count, char *programs[2]) {
    static char *tags[2] = {"A", "B"};
    long failed = 0;
    for (long i = 0; i < count; i++) {
        int status;
        pid_t child;
        char *arguments[] = {programs[i % 2], "once", ip, port, tags[i % 2], NULL};
        if (posix_spawn(&child, programs[i % 2], NULL, NULL, arguments, environ)) return 1;
        if (waitpid(child, &status, 0) != child || status) failed++;
    }
    printf("%ld\n", failed);
    return 0;
}

static int sockets(long count) {
    char byte;
    for (long i = 0; i < count; i++)
        if (socket(AF_INET, SOCK_STREAM, 0) < 0) return 1;
    printf("ready\n");
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {}
    return 0;
}

int main(int argc, char **argv) {
    struct sockaddr_storage to;
    if (argc == 3 && !strcmp(argv[1], "sockets")) return sockets(atol(argv[2]));
    if (argc < 5) return 2;
    socklen_t length = address(&to, argv[2], argv[3]);
    if (!strcmp(argv[1], "hold")) return hold(&to, length, atol(argv[4]));
    if (!strcmp(argv[1], "cost")) return cost(&to, length, atol(argv[4]));
    if (!strcmp(argv[1], "once")) return once(&to, length, argv[4]);
    if (!strcmp(argv[1], "spawn") && argc == 7) return spawn(argv[2], argv[3], atol(argv[4]), argv + 5);
    return 2;
}
