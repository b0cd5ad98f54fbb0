/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What userland reads: every structure has a twin in Rust, in the order and of the size it has here.
 */
#pragma once

/* Who connected a socket. Twin: ConnectRecord in proto/src/kernel.rs, which says what each field means. */
struct connect_record {
	__u64 at_ns;
	__u64 cookie;
	__u64 start_ns;
	__u64 image;
	__u64 cgroup;
	__u64 netns;
	__u32 pid;
	__u32 tid;
	__u32 uid;
	__u32 gid;
	__u32 references;
	__u32 isn;
	__u32 doubts;
	__u32 padding;
};
_Static_assert(sizeof(struct connect_record) == 80, "the enforcer reads 80 bytes");

/* Twin: Doubts in proto/src/kernel.rs. */
#define CREATOR_DIFFERS (1 << 0)
#define ASKER_DIFFERS (1 << 1)
#define SHARED_FILE (1 << 2)
#define SHARED_TABLE (1 << 3)
#define KERNEL_TASK (1 << 4)
#define UNWITNESSED (1 << 5)
#define EXE_REPLACED (1 << 6)
#define NO_FILE (1 << 7)

/* A file as the kernel names it. `dev` is the kernel's own dev_t: major << 20 | minor. */
struct file_name {
	__u64 ino;
	__u32 dev;
	__u32 generation;
};

/* What a process executed last, and what every connection asks about that. */
struct process {
	__u64 start_ns;
	__u64 image;
	struct file_name file;
	__u32 witnessed;
	__u32 padding;
};
_Static_assert(sizeof(struct process) == 40, "the daemon reads the first 16 bytes");

#define SHORT_ARGUMENTS 352
/* A power of two less what the kernel needs to keep it. */
#define LONG_ARGUMENTS 1984

/* An execution, as long as some process runs it. */
struct image {
	struct file_name file;
	struct file_name directory;
	__s64 size;
	__s64 modified_sec;
	/* Nanoseconds since boot; 0 if nobody saw it. */
	__u64 executed_ns;
	/* How often the process executed something (self_exec_id). */
	__u64 execs;
	__u32 modified_nsec;
	__u32 users;
	__u8 witnessed;
	__u8 arguments_whole;
	/* Beyond SHORT_ARGUMENTS they are in `long_arguments`. */
	__u16 arguments_length;
	/* What its environment had the dynamic loader load: PRELOADED, AUDITED. */
	__u8 loaded;
	__u8 padding[3];
	__u8 arguments[SHORT_ARGUMENTS];
};
_Static_assert(sizeof(struct image) == 432, "the daemon reads 432 bytes");

/* ld.so(8). An environment that could not be searched counts as one that has it. */
#define PRELOADED (1 << 0)
#define AUDITED (1 << 1)

struct arguments {
	__u8 bytes[LONG_ARGUMENTS];
};

/* Numbers given, and what went wrong. */
struct counters {
	__u64 next_image;
	/* Events that found no room. */
	__u64 lost;
	/* Processes, images and records that found no room. */
	__u64 full;
};

/* Where the daemon is. */
struct home {
	__u64 netns;
	__u32 pid;
	/* Processes that are older than the programs are being entered. */
	__u32 enters;
};

/* One process that has a socket open. */
struct holder {
	__u64 cookie;
	/* Only to tell tables of open files apart. */
	__u64 table;
	__u64 start_ns;
	__u64 image;
	__u32 pid;
	__u32 fd;
	/* To the open file, the walk's own among them. */
	__u32 references;
	__u32 threads;
	__u32 uses_io_uring;
	__u32 padding;
};
_Static_assert(sizeof(struct holder) == 56, "the daemon reads 56 bytes");

/* How a process that is watched was last seen. */
struct watched {
	__u64 start_ns;
	__u64 image;
	__u64 cgroup;
	__u64 code_pages;
	struct file_name file;
	__u32 uid;
	__u32 gid;
	__u32 traced;
	/* 0: not seen yet. */
	__u32 seen;
};
_Static_assert(sizeof(struct watched) == 64, "the daemon writes 64 bytes");

enum kind {
	EXECUTED = 1,
	ENDED = 2,
	CHANGED = 3,
	USED = 4,
	/* By another process that runs the same image. */
	USED_BY_KIN = 5,
};

enum change {
	OWNER = 1,
	CGROUP = 2,
	TRACER = 3,
	CODE = 4,
	EXECUTABLE = 5,
};

struct execution {
	__u64 start_ns;
	__u64 image;
	__u32 pid;
	__u32 padding;
};

/* A power of two. */
#define KIN_KEPT 4

/* Whose a socket is. A connection that is accepted begins with what its listener had. */
struct origin {
	/*
	 * Who connected the other end of one that was accepted; of all others at_ns is 0. It is written while the socket
	 * can be accepted already, at_ns last: whoever read that reads again, and has the whole.
	 */
	struct connect_record record;
	/* Who made it. */
	struct execution creator;
	/* How often its process had executed something by then. */
	__u64 creator_execs;
	/* Who asked for the connection. */
	__u64 asker;
	/* Who connected it, or listens; pid 0: nobody yet. */
	struct execution owner;
	/* Who used it last. */
	__u64 user;
	__u32 owner_uid;
	__u32 user_uid;
	/* How often strangers took turns, and when one was told of. */
	__u32 strangers;
	__u32 listens;
	__u64 told_ns;
	/* Processes of the same image that were told of last, how many were, and when. */
	__u64 kin[KIN_KEPT];
	__u64 kin_told_ns;
	__u64 kins;
};
_Static_assert(sizeof(struct origin) == 224, "the enforcer reads 224 bytes");

/* An address and a port; IPv4 is mapped into IPv6. */
struct end {
	__u8 address[16];
	__u16 port;
	__u16 padding;
	__u32 scope;
};

struct event {
	/* Nanoseconds since boot. */
	__u64 at_ns;
	__u32 kind;
	__u32 change;
	/* The image that a process executes now. */
	__u64 now;
	struct execution of;
	struct execution by;
	__u32 parent;
	__u32 padding;
	struct end local;
	struct end remote;
};
_Static_assert(sizeof(struct event) == 128, "the daemon reads 128 bytes");
