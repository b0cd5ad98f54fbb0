// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Flows that nobody stands in, as the kernel sees them: loaded while somebody wants to know, and gone after that.
 *
 * A connection is told of when it is asked for, established, first used and closed. Datagrams are counted for each
 * pair of a socket and a remote; userland looks at the counts, and ends what was silent for long. Who it was is
 * written down only where the program itself is at work: never in what an interrupt does in somebody's name.
 *
 * Attempts that never become a connection are told of at their destination, too: attempts.h.
 *
 * Nothing here can refuse anything: programs on cgroups say yes.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "kernel.h"
#include "record.h"
#include "flows.h"

#define TALKS_MAX (1 << 16)
#define TALKS_PER_SOCKET (1 << 12)
#define ADDRESSED_MAX (1 << 14)
#define RING_BYTES (1 << 20)

#define TCP 6
#define UDP 17
#define REFUSED_ERROR 111
#define EXISTS_ERROR 17
#define MSG_PEEK 2

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sock_common___placed {
	struct {
		struct net *net;
	} skc_net;
	unsigned long skc_flags;
};

struct sock___told {
	__u16 sk_protocol;
	int sk_err;
};

struct inet_sock {
	__be16 inet_sport;
};

struct tcp_sock___counted {
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u64 bytes_received;
};

#pragma clang attribute pop

enum sock_flags {
	SOCK_DONE = 1,
};

/* include/net/tcp_states.h */
enum {
	STATE_ESTABLISHED = 1,
	STATE_SYN_SENT = 2,
	STATE_SYN_RECV = 3,
	STATE_CLOSE = 7,
	STATE_LISTEN = 10,
};

/* A socket that is known. */
struct known {
	struct execution who;
	__u64 began_ns;
	__u8 source;
	__u8 used;
	__u8 established;
	/* A datagram socket with flows. */
	__u8 talks;
	__u8 padding[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct known);
} flows SEC(".maps");

/* The same maps as in attribution.bpf.c: whose a socket is, and which process executed what. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct origin);
} origins SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, __u32);
	__type(value, struct process);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, TALKS_MAX);
	__type(key, struct talk);
	__type(value, struct tally);
} talks SEC(".maps");

/*
 * How many of them a socket has. More than its share are only counted: anybody can send datagrams in the name of
 * any number of others, and would hide what all other sockets do.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, TALKS_MAX);
	__type(key, __u64);
	__type(value, __u64);
} crowds SEC(".maps");

/* Whom a thread is just sending to or receiving from; the call's end takes it. */
struct addressed {
	__u64 cookie;
	__u8 remote[16];
	__u16 port;
	__u16 padding;
	__u32 scope;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, ADDRESSED_MAX);
	__type(key, __u64);
	__type(value, struct addressed);
} addressed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wanted);
} wanted SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct misses);
} misses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} steps SEC(".maps");

static __always_inline struct wanted *want(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&wanted, &only);
}

static __always_inline void miss(bool event)
{
	__u32 only = 0;
	struct misses *count = bpf_map_lookup_elem(&misses, &only);

	if (count)
		__sync_fetch_and_add(event ? &count->lost : &count->full, 1);
}

static __always_inline void live(__s64 more)
{
	__u32 only = 0;
	struct misses *count = bpf_map_lookup_elem(&misses, &only);

	if (count)
		__sync_fetch_and_add(&count->living, more);
}

static __always_inline bool is_ours(struct sock *sk, __u16 protocol)
{
	struct sock_common___placed *placed = (void *)&sk->__sk_common;
	struct sock___told *told = (void *)sk;
	struct wanted *want_ = want();

	if (!want_ || BPF_CORE_READ(told, sk_protocol) != protocol)
		return false;
	if (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6)
		return false;
	return BPF_CORE_READ(placed, skc_net.net, net_cookie) == want_->netns;
}

/* Mapped into IPv6, as sockets of both families may speak IPv4. */
static __always_inline void map_address(__u8 *to, __be32 address)
{
	*(__u64 *)to = 0;
	*(__u32 *)(to + 8) = bpf_htonl(0xffff);
	*(__u32 *)(to + 12) = address;
}

static __always_inline void ends(struct sock *sk, struct end *local, struct end *remote)
{
	struct inet_sock *inet = (void *)sk;

	if (sk->__sk_common.skc_family == AF_INET) {
		map_address(local->address, sk->__sk_common.skc_rcv_saddr);
		map_address(remote->address, sk->__sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(local->address, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(remote->address, 16, &sk->__sk_common.skc_v6_daddr);
	}
	/* When a connection closes, its port is given back before it is told. */
	local->port = sk->__sk_common.skc_num;
	if (!local->port)
		local->port = bpf_ntohs(BPF_CORE_READ(inet, inet_sport));
	remote->port = bpf_ntohs(sk->__sk_common.skc_dport);
	local->scope = remote->scope = sk->__sk_common.skc_bound_dev_if;
}

/* Of the current process. */
static __always_inline struct execution execution_now(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct execution execution = {
		.start_ns = task->group_leader->start_boottime,
		.pid = task->tgid,
	};
	__u32 tgid = task->tgid;
	struct process *process = bpf_map_lookup_elem(&processes, &tgid);

	if (process && process->start_ns == execution.start_ns)
		execution.image = process->image;
	return execution;
}

static __always_inline struct step_event *begin(enum step step, __u64 cookie, __u8 protocol)
{
	struct step_event *event = bpf_ringbuf_reserve(&steps, sizeof(*event), 0);

	if (!event) {
		miss(true);
		return NULL;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->at_ns = bpf_ktime_get_boot_ns();
	event->step = step;
	event->cookie = cookie;
	event->protocol = protocol;
	return event;
}

static __always_inline void tell(enum step step, struct sock *sk, struct known *known, int state)
{
	struct tcp_sock___counted *counted = (void *)sk;
	struct sock_common___placed *placed = (void *)&sk->__sk_common;
	struct sock___told *told = (void *)sk;
	struct step_event *event = begin(step, bpf_get_socket_cookie(sk), TCP);

	if (!event)
		return;
	ends(sk, &event->local, &event->remote);
	event->who = known->who;
	event->began_ns = known->began_ns;
	event->source = known->source;
	event->established = known->established;
	event->state = state;
	event->error = BPF_CORE_READ(told, sk_err);
	event->sent = BPF_CORE_READ(counted, bytes_sent) - BPF_CORE_READ(counted, bytes_retrans);
	event->received = BPF_CORE_READ(counted, bytes_received);
	/* The other's FIN is counted like a byte. */
	if (event->received && BPF_CORE_READ(placed, skc_flags) >> bpf_core_enum_value(enum sock_flags, SOCK_DONE) & 1)
		event->received--;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline bool wants_connections(void)
{
	struct wanted *want_ = want();

	return want_ && want_->connections;
}

#include "attempts.h"

static __always_inline void asked(struct sock *sk)
{
	struct known *known = bpf_sk_storage_get(&flows, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!known) {
		miss(false);
		return;
	}
	if (!known->began_ns)
		live(1);
	known->who = execution_now();
	known->began_ns = bpf_ktime_get_boot_ns();
	known->source = 1;
	known->used = 1;
	known->established = 0;
	tell(OPENED, sk, known, STATE_CLOSE);
}

static __always_inline void accepted(struct sock *sk, int old)
{
	struct known *known = bpf_sk_storage_get(&flows, sk, NULL, 0);
	struct origin *origin;

	/* It asked itself; both may at once. */
	if (known && known->source) {
		known->established = 1;
		tell(ESTABLISHED, sk, known, old);
		return;
	}
	if (old != STATE_SYN_RECV || !wants_connections())
		return;
	finished(sk);
	known = bpf_sk_storage_get(&flows, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known) {
		miss(false);
		return;
	}
	origin = bpf_sk_storage_get(&origins, sk, NULL, 0);
	if (origin && origin->listens)
		known->who = origin->owner;
	if (!known->began_ns)
		live(1);
	known->began_ns = bpf_ktime_get_boot_ns();
	known->used = 0;
	known->established = 1;
	tell(ESTABLISHED, sk, known, old);
}

static __always_inline void closed(struct sock *sk, int old)
{
	struct known *known = bpf_sk_storage_get(&flows, sk, NULL, 0);

	if (!known)
		return;
	tell(CLOSED, sk, known, old);
	if (!bpf_sk_storage_delete(&flows, sk))
		live(-1);
}

/* Where connections are not wanted any more, what was told of before goes on being told of. */
static __always_inline bool concerns(struct sock *sk, int new)
{
	switch (new) {
	case STATE_SYN_SENT:
		return wants_connections();
	case STATE_ESTABLISHED:
		return wants_connections() || bpf_sk_storage_get(&flows, sk, NULL, 0);
	case STATE_CLOSE:
		return bpf_sk_storage_get(&flows, sk, NULL, 0);
	}
	return false;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(changed, struct sock *sk, int old, int new)
{
	if (!concerns(sk, new) || !is_ours(sk, TCP))
		return 0;
	switch (new) {
	case STATE_SYN_SENT:
		asked(sk);
		break;
	case STATE_ESTABLISHED:
		accepted(sk, old);
		break;
	case STATE_CLOSE:
		closed(sk, old);
		break;
	}
	return 0;
}

static __always_inline void taken(struct sock *sk)
{
	struct known *known = bpf_sk_storage_get(&flows, sk, NULL, 0);

	if (!known || known->used || !is_ours(sk, TCP))
		return;
	known->used = 1;
	known->who = execution_now();
	tell(TAKEN, sk, known, STATE_ESTABLISHED);
}

/* Whom a call was about: it was said, or the socket is connected. */
static __always_inline bool partner(struct sock *sk, struct talk *talk, struct end *local)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct addressed *said = bpf_map_lookup_elem(&addressed, &thread);
	struct end remote = {};

	talk->cookie = bpf_get_socket_cookie(sk);
	ends(sk, local, &remote);
	if (said && said->cookie == talk->cookie) {
		__builtin_memcpy(talk->remote, said->remote, 16);
		talk->port = said->port;
		talk->scope = said->scope;
		bpf_map_delete_elem(&addressed, &thread);
		return true;
	}
	__builtin_memcpy(talk->remote, remote.address, 16);
	talk->port = remote.port;
	talk->scope = remote.scope;
	return talk->port;
}

static __always_inline void tell_of_talk(enum step step, struct talk *talk, struct tally *tally)
{
	struct step_event *event = begin(step, talk->cookie, UDP);

	if (!event)
		return;
	event->who = tally->who;
	event->began_ns = tally->began_ns;
	event->local = tally->local;
	__builtin_memcpy(event->remote.address, talk->remote, 16);
	event->remote.port = talk->port;
	event->remote.scope = talk->scope;
	event->source = tally->source;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline __u64 *crowd_of(__u64 cookie)
{
	__u64 *crowd = bpf_map_lookup_elem(&crowds, &cookie);
	__u64 nobody = 0;

	if (crowd)
		return crowd;
	bpf_map_update_elem(&crowds, &cookie, &nobody, BPF_NOEXIST);
	return bpf_map_lookup_elem(&crowds, &cookie);
}

static __always_inline struct tally *first_word(struct sock *sk, struct talk *talk, struct end *local, bool source)
{
	struct tally first = { .began_ns = bpf_ktime_get_boot_ns(), .source = source };
	__u64 *crowd = crowd_of(talk->cookie);
	struct known *known;
	long failed;

	if (!crowd || *crowd >= TALKS_PER_SOCKET) {
		miss(false);
		return NULL;
	}
	first.who = execution_now();
	first.local = *local;
	failed = bpf_map_update_elem(&talks, talk, &first, BPF_NOEXIST);
	/* Another thread was faster. */
	if (failed == -EXISTS_ERROR)
		return bpf_map_lookup_elem(&talks, talk);
	if (failed) {
		miss(false);
		return NULL;
	}
	__sync_fetch_and_add(crowd, 1);
	known = bpf_sk_storage_get(&flows, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (known)
		known->talks = 1;
	tell_of_talk(OPENED, talk, &first);
	return bpf_map_lookup_elem(&talks, talk);
}

static __always_inline void spoke(struct sock *sk, int length, bool source)
{
	struct talk talk = {};
	struct end local = {};
	struct tally *tally;

	/* Whom it received from, a program need not have asked; then it is nobody, port 0. */
	if (!partner(sk, &talk, &local) && (source || length < 0))
		return;
	tally = bpf_map_lookup_elem(&talks, &talk);
	if (length < 0) {
		if (length == -REFUSED_ERROR && tally && !tally->refused) {
			tally->refused = 1;
			tell_of_talk(REFUSED, &talk, tally);
		}
		return;
	}
	if (!tally)
		tally = first_word(sk, &talk, &local, source);
	if (!tally)
		return;
	tally->last_ns = bpf_ktime_get_boot_ns();
	__sync_fetch_and_add(source ? &tally->sent : &tally->received, length);
}

/* Run by the daemon: what was counted, for the last time. The next datagram begins a new flow. */
SEC("syscall")
int last_word(struct ending *ending)
{
	struct talk talk = ending->talk;
	struct tally *tally = bpf_map_lookup_elem(&talks, &talk);
	__u64 *crowd;

	if (!tally)
		return 1;
	ending->tally = *tally;
	if (bpf_map_delete_elem(&talks, &talk))
		return 1;
	crowd = bpf_map_lookup_elem(&crowds, &talk.cookie);
	if (crowd && *crowd)
		__sync_fetch_and_add(crowd, -1);
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sent, struct sock *sk, int length, int flags)
{
	if (!sk)
		return 0;
	if (!is_ours(sk, UDP))
		taken(sk);
	else
		spoke(sk, length, true);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(received, struct sock *sk, int length, int flags)
{
	if (!sk)
		return 0;
	if (!is_ours(sk, UDP))
		taken(sk);
	else if (!(flags & MSG_PEEK))
		spoke(sk, length, false);
	return 0;
}

#define HERE(ctx)                                                                                                      \
	({                                                                                                             \
		struct wanted *want_ = want();                                                                         \
		want_ && bpf_get_netns_cookie(ctx) == want_->netns;                                                    \
	})

static __always_inline int addressing(struct bpf_sock_addr *ctx, bool v6)
{
	struct addressed said = {};
	__u64 thread = bpf_get_current_pid_tgid();
	__u32 *to = (__u32 *)said.remote;

	if (!HERE(ctx))
		return 1;
	said.cookie = bpf_get_socket_cookie(ctx);
	said.port = bpf_ntohs(ctx->user_port);
	if (v6) {
		to[0] = ctx->user_ip6[0];
		to[1] = ctx->user_ip6[1];
		to[2] = ctx->user_ip6[2];
		to[3] = ctx->user_ip6[3];
	} else {
		map_address(said.remote, ctx->user_ip4);
	}
	bpf_map_update_elem(&addressed, &thread, &said, BPF_ANY);
	return 1;
}

SEC("cgroup/sendmsg4")
int sends4(struct bpf_sock_addr *ctx)
{
	return addressing(ctx, false);
}

SEC("cgroup/sendmsg6")
int sends6(struct bpf_sock_addr *ctx)
{
	return addressing(ctx, true);
}

SEC("cgroup/recvmsg4")
int receives4(struct bpf_sock_addr *ctx)
{
	return addressing(ctx, false);
}

SEC("cgroup/recvmsg6")
int receives6(struct bpf_sock_addr *ctx)
{
	return addressing(ctx, true);
}

SEC("cgroup/sock_release")
int released(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct step_event *event;
	struct known *known;

	if (ctx->protocol != UDP || !HERE(ctx))
		return 1;
	known = bpf_sk_storage_get(&flows, ctx, NULL, 0);
	if (!known || !known->talks)
		return 1;
	bpf_map_delete_elem(&crowds, &cookie);
	event = begin(RELEASED, cookie, UDP);
	if (event)
		bpf_ringbuf_submit(event, 0);
	return 1;
}

/* The kernel lets only programs under the GPL read its structures. */
char LICENSE[] SEC("license") = "GPL";
