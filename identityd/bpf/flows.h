/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What userland reads of flows that nobody stands in: twins are in src/observe/layout.rs.
 */
#pragma once

enum step {
	/* A connection was asked for, or a first datagram went by: here is who did it. */
	OPENED = 1,
	/* The handshake is done. */
	ESTABLISHED = 2,
	/* An accepted connection was used for the first time: here is who did it. */
	TAKEN = 3,
	/* It is over. */
	CLOSED = 4,
	/* All flows of this socket are over. */
	RELEASED = 5,
	/* The other end has nobody who listens. */
	REFUSED = 6,
	/* Somebody asked for a connection to a port where nobody listens. */
	KNOCKED = 7,
	/* Somebody asked for a connection, and does not answer the answer; `struct half` says how it goes on. */
	UNFINISHED = 8,
};

struct step_event {
	/* Nanoseconds since boot: now, and when it began. */
	__u64 at_ns;
	__u64 began_ns;
	__u64 cookie;
	/* Payload bytes. */
	__u64 sent;
	__u64 received;
	struct execution who;
	struct end local;
	struct end remote;
	__u32 step;
	/* As errno(3) has it, positive; 0: none. */
	__u32 error;
	__u8 protocol;
	/* The program here asked for the connection, or sent first. */
	__u8 source;
	/* The state of TCP before. */
	__u8 state;
	/* Its handshake was done. */
	__u8 established;
	__u8 padding[4];
};
_Static_assert(sizeof(struct step_event) == 128, "the daemon reads 128 bytes");

/* One remote that a datagram socket speaks with. */
struct talk {
	__u64 cookie;
	__u8 remote[16];
	__u16 port;
	__u16 padding;
	__u32 scope;
};
_Static_assert(sizeof(struct talk) == 32, "the daemon reads 32 bytes");

struct tally {
	__u64 began_ns;
	__u64 last_ns;
	__u64 sent;
	__u64 received;
	struct execution who;
	struct end local;
	__u32 source;
	__u32 refused;
};
_Static_assert(sizeof(struct tally) == 88, "the daemon reads 88 bytes");

/* What the daemon says and hears when it ends one. */
struct ending {
	struct talk talk;
	struct tally tally;
};

/* What the daemon wants to know of. */
struct wanted {
	__u64 netns;
	/* Connections that begin from now on; those that are known are told of to their end. */
	__u32 connections;
	__u32 padding;
};

struct misses {
	/* Events that found no room. */
	__u64 lost;
	/* Flows that found no room. */
	__u64 full;
	/* No miss: connections that are known, and will be told of to their end. */
	__u64 living;
	/* Attempts that came to nothing, beyond what is told of. */
	__u64 attempts;
	/* No miss: how many of `struct half` there are. */
	__u64 halves;
};

/* Both ends of an attempt. */
struct ends {
	struct end local;
	struct end remote;
};
_Static_assert(sizeof(struct ends) == 48, "the daemon reads 48 bytes");

/* An attempt whose handshake is not done. */
struct half {
	__u64 began_ns;
	/* When it was answered last. */
	__u64 last_ns;
	/* If it is not answered again until then, it is over. */
	__u64 until_ns;
	/* In place of a cookie, as it has no socket. */
	__u64 cookie;
	/* Who listens. */
	struct execution who;
};
_Static_assert(sizeof(struct half) == 56, "the daemon reads 56 bytes");

/* What the daemon says and hears when it ends one. */
struct half_ending {
	struct ends ends;
	struct half half;
};
