/* What connects, for the benchmarks: one small program, so that nothing but connecting is measured.
 *
 *   connector hold IP PORT COUNT      connects, waits for the other end to close, and again
 *   connector refused IP PORT COUNT   connects to a port where nobody listens; prints each connect()'s nanoseconds
 *   connector met IP ANY COUNT        connects to a listener of its own; prints each connect()'s nanoseconds
 *   connector spawn IP PORT FIRST COUNT WHAT A B
 *                                     starts A and B (instant.c) in turns, each with WHAT, the address and the next
 *                                     number, as soon as the one before has ended; prints how many failed, and of each
 *                                     the nanoseconds from before its start, and from when its exec has let this go on,
 *                                     to after its end
 *   connector processes COUNT         starts so many of itself that wait; says "ready", and waits, too
 *   connector sockets IP COUNT        opens so many sockets: one listens, the others are connected to each other;
 *                                     says "ready", and waits
 *
 * Who waits does so until its standard input ends.
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

typedef struct sockaddr_storage address;

static socklen_t parse(address *to, const char *ip, const char *port) {
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

static int ready(void) {
    char byte;
    printf("ready\n");
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {}
    return 0;
}

static int hold(const address *to, socklen_t length, long count) {
    for (long i = 0; i < count; i++) {
        char byte;
        int s = socket(to->ss_family, SOCK_STREAM, 0);
        if (s < 0 || connect(s, (const struct sockaddr *)to, length)) return 1;
        while (read(s, &byte, 1) > 0) {}
        close(s);
    }
    return 0;
}

static int refused(const address *to, socklen_t length, long count) {
    for (long i = 0; i < count; i++) {
        int s = socket(to->ss_family, SOCK_STREAM, 0);
        if (s < 0) return 1;
        uint64_t began = now();
        int no = connect(s, (const struct sockaddr *)to, length);
        uint64_t took = now() - began;
        if (!no) return 1;
        close(s);
        printf("%llu\n", (unsigned long long)took);
    }
    return 0;
}

/* A listener, and where it is. */
static int listening(address *to, socklen_t *length) {
    int s = socket(to->ss_family, SOCK_STREAM, 0);
    if (s < 0 || bind(s, (struct sockaddr *)to, *length) || listen(s, 1024)) return -1;
    return getsockname(s, (struct sockaddr *)to, length) ? -1 : s;
}

/* On loopback the whole handshake is done when connect() returns: what the other end costs is in it. */
static int met(address *to, socklen_t length, long count) {
    struct linger at_once = {1, 0};
    int listener = listening(to, &length);
    if (listener < 0) return 1;
    for (long i = 0; i < count; i++) {
        int s = socket(to->ss_family, SOCK_STREAM, 0);
        if (s < 0 || setsockopt(s, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once)) return 1;
        uint64_t began = now();
        int no = connect(s, (const struct sockaddr *)to, length);
        uint64_t took = now() - began;
        if (no) return 1;
        int other = accept(listener, NULL, NULL);
        if (other < 0) return 1;
        close(s);
        close(other);
        printf("%llu\n", (unsigned long long)took);
    }
    return 0;
}

/* posix_spawn() is vfork(): it goes on when the child has executed its program. */
static int spawn(const address *to, socklen_t length, long first, long count, char *what, char *programs[2]) {
    uint64_t(*lives)[2] = calloc(count, sizeof *lives);
    char hex[2 * sizeof *to + 1];
    long failed = 0;
    if (!lives) return 1;
    for (socklen_t i = 0; i < length; i++) snprintf(hex + 2 * i, 3, "%02x", ((const unsigned char *)to)[i]);
    for (long i = 0; i < count; i++) {
        int status;
        pid_t child;
        char number[24];
        char *arguments[] = {programs[i % 2], what, hex, number, NULL};
        snprintf(number, sizeof number, "%ld", first + i);
        uint64_t began = now();
        if (posix_spawn(&child, programs[i % 2], NULL, NULL, arguments, environ)) return 1;
        uint64_t executed = now();
        if (waitpid(child, &status, 0) != child || status) failed++;
        lives[i][0] = now() - began;
        lives[i][1] = now() - executed;
    }
    printf("%ld\n", failed);
    for (long i = 0; i < count; i++) printf("%llu %llu\n", (unsigned long long)lives[i][0], (unsigned long long)lives[i][1]);
    return 0;
}

/* They have this one's standard input, and so end with it. */
static int processes(long count, char *self) {
    char *arguments[] = {self, "processes", "0", NULL};
    for (long i = 0; i < count; i++) {
        pid_t child;
        int out[2];
        char said[6];
        posix_spawn_file_actions_t actions;
        if (pipe(out) || posix_spawn_file_actions_init(&actions)) return 1;
        posix_spawn_file_actions_adddup2(&actions, out[1], 1);
        posix_spawn_file_actions_addclose(&actions, out[0]);
        posix_spawn_file_actions_addclose(&actions, out[1]);
        if (posix_spawn(&child, self, &actions, NULL, arguments, environ)) return 1;
        posix_spawn_file_actions_destroy(&actions);
        close(out[1]);
        if (read(out[0], said, sizeof said) != sizeof said) return 1;
        close(out[0]);
    }
    ready();
    while (wait(NULL) > 0) {}
    return 0;
}

static int sockets(address *to, socklen_t length, long count) {
    int listener = listening(to, &length);
    if (listener < 0) return 1;
    for (long i = 1; i < count; i += 2) {
        int s = socket(to->ss_family, SOCK_STREAM, 0);
        if (s < 0 || connect(s, (const struct sockaddr *)to, length)) return 1;
        if (accept(listener, NULL, NULL) < 0) return 1;
    }
    return ready();
}

int main(int argc, char **argv) {
    address to;
    if (argc < 2) return 2;
    if (!strcmp(argv[1], "processes") && argc == 3) return processes(atol(argv[2]), argv[0]);
    if (argc < 4) return 2;
    socklen_t length = parse(&to, argv[2], argc == 4 || !strcmp(argv[1], "met") ? "0" : argv[3]);
    if (!strcmp(argv[1], "sockets") && argc == 4) return sockets(&to, length, atol(argv[3]));
    if (argc < 5) return 2;
    if (!strcmp(argv[1], "hold")) return hold(&to, length, atol(argv[4]));
    if (!strcmp(argv[1], "refused")) return refused(&to, length, atol(argv[4]));
    if (!strcmp(argv[1], "met")) return met(&to, length, atol(argv[4]));
    if (!strcmp(argv[1], "spawn") && argc == 9)
        return spawn(&to, length, atol(argv[4]), atol(argv[5]), argv[6], argv + 7);
    return 2;
}
