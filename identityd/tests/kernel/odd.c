/*
 * Programs that do odd things with system calls, then connect to ADDRESS:PORT, say "connected" and wait.
 *
 *   odd forge FILE ADDRESS:PORT   in a user namespace of its own it has /proc/PID/exe name FILE (PR_SET_MM_MAP)
 *   odd share FILE                the same, done by a child that shares its memory; it is in no such namespace itself.
 *                                 It says "forged", reads ADDRESS:PORT, and connects
 *   odd later FILE                the same, but it says "begun", and reads a line before it does so
 *   odd ring ADDRESS:PORT         its socket is a direct descriptor of io_uring, in no table of open files
 *   odd number PID ADDRESS:PORT   its process has this number, which must be free
 *
 *   odd use WAY UNIX              receives a connection over that unix socket, reads or writes it, and says "used"
 *   odd end COUNT                 so many children of it end
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(call)                                                                                                     \
	({                                                                                                             \
		long done_ = (long)(call);                                                                             \
		if (done_ == -1) {                                                                                     \
			perror(#call);                                                                                 \
			exit(1);                                                                                       \
		}                                                                                                      \
		done_;                                                                                                 \
	})

/* Of either family. */
union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static union address address(const char *text)
{
	union address address = { 0 };
	const char *colon = strrchr(text, ':');
	int bracket = *text == '[';
	char host[64];

	snprintf(host, sizeof(host), "%.*s", (int)(colon - text) - 2 * bracket, text + bracket);
	address.any.sa_family = bracket ? AF_INET6 : AF_INET;
	if (inet_pton(address.any.sa_family, host, bracket ? (void *)&address.v6.sin6_addr : &address.v4.sin_addr) != 1)
		exit(2);
	address.v4.sin_port = htons(atoi(colon + 1));
	return address;
}

static void connected(void)
{
	puts("connected");
	fflush(stdout);
	sleep(1000);
}

static void dial(const char *text)
{
	union address to = address(text);
	int s = MUST(socket(to.any.sa_family, SOCK_STREAM, 0));

	MUST(connect(s, &to.any, sizeof(to)));
	connected();
}

/* Nothing of the old executable may be mapped (replace_mm_exe_file, kernel/sys.c): copies take its place. */
static void replace_mappings(const char *exe)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	struct {
		unsigned long start, end;
		int prot;
	} found[64];
	int count = 0;
	char line[4096];

	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end;
		char prot[8];

		if (!strstr(line, exe) || sscanf(line, "%lx-%lx %7s", &start, &end, prot) != 3)
			continue;
		found[count].start = start;
		found[count].end = end;
		found[count++].prot = (prot[0] == 'r' ? PROT_READ : 0) | (prot[1] == 'w' ? PROT_WRITE : 0) |
				      (prot[2] == 'x' ? PROT_EXEC : 0);
	}
	fclose(maps);
	for (int i = 0; i < count; i++) {
		size_t length = found[i].end - found[i].start;
		void *copy = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memcpy(copy, (void *)found[i].start, length);
		MUST(mprotect(copy, length, found[i].prot));
		MUST(mremap(copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)found[i].start));
	}
}

/* Needs CAP_CHECKPOINT_RESTORE in whatever user namespace this is. */
static void rename_exe(const char *file)
{
	struct prctl_mm_map map = { 0 };
	unsigned long long field[53] = { 0 };
	char exe[4096] = { 0 }, stat[8192] = { 0 }, *at;
	int fd;

	MUST(readlink("/proc/self/exe", exe, sizeof(exe) - 1));
	fd = MUST(open("/proc/self/stat", O_RDONLY));
	MUST(read(fd, stat, sizeof(stat) - 1));
	close(fd);
	at = strrchr(stat, ')') + 2;
	for (int i = 3; i <= 52; i++, at++)
		field[i] = i == 3 ? (at++, 0) : strtoull(at, &at, 10);
	map.start_code = field[26];
	map.end_code = field[27];
	map.start_stack = field[28];
	map.start_data = field[45];
	map.end_data = field[46];
	map.start_brk = field[47];
	map.brk = (unsigned long)sbrk(0);
	map.arg_start = field[48];
	map.arg_end = field[49];
	map.env_start = field[50];
	map.env_end = field[51];
	map.exe_fd = MUST(open(file, O_RDONLY));
	replace_mappings(exe);
	MUST(prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0));
}

static void forge(const char *file, const char *to)
{
	MUST(unshare(CLONE_NEWUSER));
	rename_exe(file);
	dial(to);
}

static int rename_ours(void *file)
{
	rename_exe(file);
	return 0;
}

static void share(char *file)
{
	static char stack[1 << 18] __attribute__((aligned(16)));
	char to[64] = { 0 };
	int status;
	pid_t child = MUST(clone(rename_ours, stack + sizeof(stack), CLONE_VM | CLONE_NEWUSER | SIGCHLD, file));

	MUST(waitpid(child, &status, 0));
	if (status)
		exit(1);
	puts("forged");
	fflush(stdout);
	if (!fgets(to, sizeof(to), stdin))
		exit(1);
	dial(to);
}

static void later(char *file)
{
	char line[8];

	puts("begun");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(1);
	share(file);
}

static void submit(int ring, struct io_uring_params *params, char *queue, struct io_uring_sqe *slots,
		   struct io_uring_sqe *what)
{
	uint32_t *tail = (uint32_t *)(queue + params->sq_off.tail);
	uint32_t *head = (uint32_t *)(queue + params->cq_off.head);
	uint32_t mask = *(uint32_t *)(queue + params->sq_off.ring_mask);
	struct io_uring_cqe *done;

	slots[*tail & mask] = *what;
	((uint32_t *)(queue + params->sq_off.array))[*tail & mask] = *tail & mask;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	MUST(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
	done = (struct io_uring_cqe *)(queue + params->cq_off.cqes);
	done += *head & *(uint32_t *)(queue + params->cq_off.ring_mask);
	if (done->res < 0) {
		fprintf(stderr, "opcode %d: %s\n", what->opcode, strerror(-done->res));
		exit(1);
	}
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
}

static void ring(const char *text)
{
	struct io_uring_params params = { 0 };
	union address to = address(text);
	int nothing = -1, ring = MUST(syscall(SYS_io_uring_setup, 4, &params));
	size_t length = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	char *queue = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *slots = mmap(NULL, params.sq_entries * sizeof(*slots), PROT_READ | PROT_WRITE, MAP_SHARED,
					  ring, IORING_OFF_SQES);
	struct io_uring_sqe make = { .opcode = 45 /* IORING_OP_SOCKET */, .fd = to.any.sa_family,
				     .off = SOCK_STREAM };
	struct io_uring_sqe dial = { .opcode = IORING_OP_CONNECT, .flags = IOSQE_FIXED_FILE, .fd = 0 };

	make.splice_fd_in = 1; /* file_index: slot 0 */
	dial.addr = (uintptr_t)&to;
	dial.off = sizeof(to);
	MUST(syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &nothing, 1));
	submit(ring, &params, queue, slots, &make);
	submit(ring, &params, queue, slots, &dial);
	connected();
}

static void numbered(pid_t number, const char *to)
{
	struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&number, .set_tid_size = 1 };
	pid_t child = MUST(syscall(SYS_clone3, &args, sizeof(args)));

	if (child == 0) {
		MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
		dial(to);
	}
	waitpid(child, NULL, 0);
}

static int received(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr header;
	} with;
	char byte;
	struct iovec into = { &byte, 1 };
	struct msghdr message = { .msg_iov = &into, .msg_iovlen = 1, .msg_control = &with,
				  .msg_controllen = sizeof(with) };
	int s, from = MUST(socket(AF_UNIX, SOCK_STREAM, 0));

	snprintf(to.sun_path, sizeof(to.sun_path), "%s", path);
	MUST(connect(from, (struct sockaddr *)&to, sizeof(to)));
	MUST(recvmsg(from, &message, 0));
	memcpy(&s, CMSG_DATA(&with.header), sizeof(s));
	return s;
}

static void use(const char *way, int s)
{
	struct pollfd readable = { .fd = s, .events = POLLIN };
	char bytes[4096] = "x";
	struct tcp_zerocopy_receive zero = { .copybuf_address = (uintptr_t)bytes, .copybuf_len = sizeof(bytes) };
	socklen_t length = sizeof(zero);
	int ends[2];
	long moved = 0;

	MUST(pipe(ends));
	MUST(poll(&readable, 1, -1));
	if (!strcmp(way, "recv")) {
		moved = MUST(recv(s, bytes, sizeof(bytes), 0));
	} else if (!strcmp(way, "peek")) {
		moved = MUST(recv(s, bytes, sizeof(bytes), MSG_PEEK));
	} else if (!strcmp(way, "splice-from")) {
		moved = MUST(splice(s, NULL, ends[1], NULL, sizeof(bytes), 0));
	} else if (!strcmp(way, "zerocopy")) {
		MUST(getsockopt(s, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &zero, &length));
		moved = zero.copybuf_len;
	} else if (!strcmp(way, "splice-into")) {
		MUST(write(ends[1], bytes, 1));
		moved = MUST(splice(ends[0], NULL, s, NULL, 1, 0));
	} else if (!strcmp(way, "sendfile")) {
		moved = MUST(sendfile(s, MUST(open("/proc/self/exe", O_RDONLY)), NULL, 1));
	}
	if (moved < 1)
		exit(3);
	puts("used");
	fflush(stdout);
	sleep(1000);
}

static void end(int count)
{
	while (count--) {
		pid_t child = MUST(fork());

		if (child == 0)
			_exit(0);
		MUST(waitpid(child, NULL, 0));
	}
	exit(0);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "forge"))
		forge(argv[2], argv[3]);
	else if (argc == 3 && !strcmp(argv[1], "share"))
		share(argv[2]);
	else if (argc == 3 && !strcmp(argv[1], "later"))
		later(argv[2]);
	else if (argc == 3 && !strcmp(argv[1], "ring"))
		ring(argv[2]);
	else if (argc == 4 && !strcmp(argv[1], "number"))
		numbered(atoi(argv[2]), argv[3]);
	else if (argc == 4 && !strcmp(argv[1], "use"))
		use(argv[2], received(argv[3]));
	else if (argc == 3 && !strcmp(argv[1], "end"))
		end(atoi(argv[2]));
	return 2;
}
