// Holds one connection, idle, and says "reset" once it is.
//
// idle connect HOST PORT HOW WORD, idle serve HOST PORT HOW WORD: waits for a line on standard input, has its connection
// ("open"), and at the next line makes the change it was told to.
// idle heir: has the connection as descriptor 9. idle trace PID: traces that process until its input ends.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTION 9

static void said(const char *what)
{
	puts(what);
	fflush(stdout);
}

static int fail(const char *what)
{
	fprintf(stderr, "idle: %s: %s\n", what, strerror(errno));
	return 1;
}

static int line(void)
{
	char byte;

	while (read(0, &byte, 1) == 1)
		if (byte == '\n')
			return 1;
	return 0;
}

static int until_reset(void)
{
	char byte;
	ssize_t got = read(CONNECTION, &byte, 1);

	if (got < 0 && errno == ECONNRESET) {
		said("reset");
		return 0;
	}
	return fail(got < 0 ? "read" : "the connection ended otherwise");
}

static int resolved(const char *host, const char *port, int passive)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM }, *to;
	int fd, off = 0, on = 1;

	if (getaddrinfo(host, port, &hints, &to))
		return -1;
	fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (!passive)
		return connect(fd, to->ai_addr, to->ai_addrlen) ? -1 : fd;
	setsockopt(fd, IPPROTO_IPV6, 26 /* IPV6_V6ONLY */, &off, sizeof(off));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	return bind(fd, to->ai_addr, to->ai_addrlen) || listen(fd, 1) ? -1 : fd;
}

static int opened(int serves, const char *host, const char *port)
{
	int fd = resolved(host, port, serves);
	char byte = '.';

	if (fd < 0)
		return -1;
	if (serves) {
		int listener = fd;

		said("listening");
		// It stays open: who listens is looked at until the connection is let through.
		fd = accept(listener, NULL, NULL);
		if (fd < 0 || read(fd, &byte, 1) != 1 || write(fd, &byte, 1) != 1)
			return -1;
	} else if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1) {
		return -1;
	}
	dup2(fd, CONNECTION);
	close(fd);
	said("open");
	return 0;
}

static int changed(const char *how, const char *word)
{
	if (!strcmp(how, "exec"))
		return execl(word, word, "heir", (char *)NULL);
	if (!strcmp(how, "map"))
		return dlopen(word, RTLD_NOW) ? 0 : -1;
	if (!strcmp(how, "user"))
		return setuid(atoi(word));
	return 0;
}

static int trace(pid_t pid)
{
	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL))
		return fail("ptrace");
	line();
	return 0;
}

int main(int argc, char **argv)
{
	int serves = argc > 1 && !strcmp(argv[1], "serve");
	struct pollfd each[2] = { { .fd = 0, .events = POLLIN }, { .fd = CONNECTION, .events = POLLIN } };

	if (argc == 2)
		return until_reset();
	if (argc == 3)
		return trace(atoi(argv[2]));
	if (argc != 6 || !line())
		return fail("usage");
	if (opened(serves, argv[2], argv[3]))
		return fail("no connection");
	while (poll(each, 2, -1) > 0 && !each[1].revents)
		if (line() ? changed(argv[4], argv[5]) : (each[0].fd = -1, 0))
			return fail(argv[4]);
	return until_reset();
}
