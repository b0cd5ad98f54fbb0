/*
 * Programs that do odd things with system calls, then connect to ADDRESS:PORT, say "connected" and wait.
 *
 *   odd forge FILE ADDRESS:PORT   in a user namespace of its own it has /proc/PID/exe name FILE (PR_SET_MM_MAP)
 *   odd ring ADDRESS:PORT         its socket is a direct descriptor of io_uring, in no table of open files
 *   odd number PID ADDRESS:PORT   its process has this number, which must be free
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
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

static struct sockaddr_in address(const char *text)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	char host[64];
	const char *colon = strrchr(text, ':');

	snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		exit(2);
	address.sin_port = htons(atoi(colon + 1));
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
	struct sockaddr_in to = address(text);
	int s = MUST(socket(AF_INET, SOCK_STREAM, 0));

	MUST(connect(s, (struct sockaddr *)&to, sizeof(to)));
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

static void forge(const char *file, const char *to)
{
	struct prctl_mm_map map = { 0 };
	unsigned long long field[53] = { 0 };
	char exe[4096] = { 0 }, stat[8192] = { 0 }, *at;
	int fd;

	MUST(readlink("/proc/self/exe", exe, sizeof(exe) - 1));
	MUST(unshare(CLONE_NEWUSER));
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
	dial(to);
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
	struct sockaddr_in to = address(text);
	int nothing = -1, ring = MUST(syscall(SYS_io_uring_setup, 4, &params));
	size_t length = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	char *queue = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *slots = mmap(NULL, params.sq_entries * sizeof(*slots), PROT_READ | PROT_WRITE, MAP_SHARED,
					  ring, IORING_OFF_SQES);
	struct io_uring_sqe make = { .opcode = 45 /* IORING_OP_SOCKET */, .fd = AF_INET, .off = SOCK_STREAM };
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

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "forge"))
		forge(argv[2], argv[3]);
	else if (argc == 3 && !strcmp(argv[1], "ring"))
		ring(argv[2]);
	else if (argc == 4 && !strcmp(argv[1], "number"))
		numbered(atoi(argv[2]), argv[3]);
	return 2;
}
