/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Everything that is kept. What userland need not write is frozen for it after loading (BPF_MAP_FREEZE), so that the
 * daemon itself cannot forge a record; the programs go on writing.
 *
 * There is no per-CPU scratch memory: programs on cgroups may be preempted by themselves, and two connections would
 * write into one record.
 */
#pragma once

#define PROCESSES_MAX (1 << 20)
#define IMAGES_MAX (1 << 18)
/*
 * An entry goes when the connection is established on this host; what leaves the host stays until its place is needed.
 * So there must be places for all that is dialled, wherever to, while one handshake lasts.
 */
#define HANDSHAKES_MAX 65536
/* A power of two, and few: what is read at every connection has to stay in the processor's cache. */
#define RECENT_MAX 64
#define SOUGHT_MAX 16384
#define WATCHED_MAX (1 << 16)
#define RING_BYTES (1 << 20)

/* Thread group -> what it executed last. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PROCESSES_MAX);
	__type(key, __u32);
	__type(value, struct process);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, IMAGES_MAX);
	__type(key, __u64);
	__type(value, struct image);
} images SEC(".maps");

/* Arguments beyond SHORT_ARGUMENTS: few programs have as many. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, IMAGES_MAX);
	__type(key, __u64);
	__type(value, struct arguments);
} long_arguments SEC(".maps");

/* What a new entry of the two above is before it is filled in: both are too large for the stack. */
struct blank {
	struct image image;
	struct arguments arguments;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct blank);
} blanks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct home);
} home SEC(".maps");

/*
 * A segment that begins a connection. Not the four addresses: those are somebody else's as soon as the connection is
 * closed, and DNAT changes the destination on the way. With the sequence number it is this very connection.
 */
struct handshake {
	__u8 source[16];
	__u32 isn;
	__u16 port;
	__u16 padding;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, HANDSHAKES_MAX);
	__type(key, struct handshake);
	__type(value, struct connect_record);
} handshakes SEC(".maps");

/*
 * In front of it, the last ones, each at the place that follows from its number: within one host most are over before
 * another one comes to the same place, and a search for a place takes longer than all else that is done for them.
 */
struct recent {
	/* Whose turn it is: one more with each. Not a lock of the kernel's: a map that has one cannot be frozen. */
	__u64 turn;
	struct connect_record record;
	struct handshake handshake;
};

/* Turns, in this order; the last two bits. Only who began to write or to take goes on from there. */
#define EMPTY 0
#define WRITING 1
#define KEPT 2
#define TAKING 3
#define TURNS 4

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECENT_MAX);
	__type(key, __u32);
	__type(value, struct recent);
} recent SEC(".maps");

/*
 * The one thing that is kept with a socket: each more would be allocated for every connection, at both ends. The enforcer
 * reads it by its own accepted socket.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct origin);
} origins SEC(".maps");

/* Cookies of sockets whose holders a walk seeks. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SOUGHT_MAX);
	__type(key, __u64);
	__type(value, __u8);
} sought SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, WATCHED_MAX);
	__type(key, __u32);
	__type(value, struct watched);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} events SEC(".maps");

static __always_inline struct counters *count(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&counters, &only);
}
