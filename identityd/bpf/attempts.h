/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What comes to this host and never becomes a connection: a first segment for a port where nobody listens, and one whose
 * handshake is not done when the answer to it is sent again. Neither is part of a handshake that goes well, so no
 * connection pays for it.
 *
 * Anybody can send such segments, and in any number of names. One source, and all of them together, have so many
 * attempts told in a second; the rest is counted.
 */
#pragma once

#define HALVES_MAX (1 << 12)
#define KNOCKERS_MAX (1 << 12)
#define PER_SOURCE 16
#define OF_ALL 64
/* A second, nearly: a shift is cheaper than a division. */
#define SECOND_SHIFT 30
#define SECOND_NS (1000 * 1000 * 1000ULL)

#define FLAG_SYN 0x02
#define FLAG_ACK 0x10

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net_device {
	int ifindex;
	struct {
		struct net *net;
	} nd_net;
};

struct sk_buff {
	struct net_device *dev;
	__u16 transport_header;
	__u16 network_header;
	unsigned char *head;
};

struct request_sock {
	__u8 num_retrans;
};

struct tcp_request_sock {
	__u64 snt_synack;
	__u32 rcv_isn;
	__u32 snt_isn;
};

#pragma clang attribute pop

/* So many in this second. */
struct knocks {
	__u64 second;
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, KNOCKERS_MAX);
	__type(key, __u8[16]);
	__type(value, struct knocks);
} knockers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct knocks);
} all_knocks SEC(".maps");

/* Handshakes that wait for their last segment. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, HALVES_MAX);
	__type(key, struct ends);
	__type(value, struct half);
} halves SEC(".maps");

static __always_inline bool spend(struct knocks *knocks, __u64 second, __u64 most)
{
	if (knocks->second != second) {
		knocks->second = second;
		knocks->count = 0;
	}
	return __sync_fetch_and_add(&knocks->count, 1) < most;
}

/* Whether one more attempt of this source is told of. */
static __always_inline bool may_tell(const __u8 *source)
{
	struct knocks first = { .second = bpf_ktime_get_boot_ns() >> SECOND_SHIFT };
	struct knocks *knocks = bpf_map_lookup_elem(&knockers, source);
	__u32 only = 0;

	if (!knocks) {
		bpf_map_update_elem(&knockers, source, &first, BPF_NOEXIST);
		knocks = bpf_map_lookup_elem(&knockers, source);
	}
	if (!knocks || !spend(knocks, first.second, PER_SOURCE))
		return false;
	knocks = bpf_map_lookup_elem(&all_knocks, &only);
	return knocks && spend(knocks, first.second, OF_ALL);
}

static __always_inline void not_told(void)
{
	__u32 only = 0;
	struct misses *count = bpf_map_lookup_elem(&misses, &only);

	if (count)
		__sync_fetch_and_add(&count->attempts, 1);
}

static __always_inline void tell_of_attempt(enum step step, struct ends *ends, struct half *half)
{
	struct step_event *event = begin(step, half->cookie, TCP);

	if (!event)
		return;
	event->began_ns = half->began_ns;
	event->local = ends->local;
	event->remote = ends->remote;
	event->who = half->who;
	bpf_ringbuf_submit(event, 0);
}

/* Addresses of a packet that was received, as it has them. */
static __always_inline bool addresses_of(void *packet, struct ends *ends)
{
	__u8 version = 0;
	__be32 pair[2];

	bpf_probe_read_kernel(&version, 1, packet);
	switch (version >> 4) {
	case 4:
		bpf_probe_read_kernel(pair, sizeof(pair), packet + 12);
		map_address(ends->remote.address, pair[0]);
		map_address(ends->local.address, pair[1]);
		return true;
	case 6:
		bpf_probe_read_kernel(ends->remote.address, 16, packet + 8);
		bpf_probe_read_kernel(ends->local.address, 16, packet + 24);
		return true;
	}
	return false;
}

static __always_inline void knock(struct sk_buff *skb)
{
	struct wanted *want_ = want();
	unsigned char *head = BPF_CORE_READ(skb, head);
	struct half half = { .began_ns = bpf_ktime_get_boot_ns() };
	struct ends ends = {};
	/* The first 14 bytes of TCP's header. */
	struct {
		__be16 source;
		__be16 destination;
		__be32 sequence;
		__be32 acknowledged;
		__u8 length;
		__u8 flags;
	} segment = {};

	if (!want_ || BPF_CORE_READ(skb, dev, nd_net.net, net_cookie) != want_->netns)
		return;
	bpf_probe_read_kernel(&segment, 14, head + BPF_CORE_READ(skb, transport_header));
	/* All else is of connections that were. */
	if ((segment.flags & (FLAG_SYN | FLAG_ACK)) != FLAG_SYN)
		return;
	if (!addresses_of(head + BPF_CORE_READ(skb, network_header), &ends))
		return;
	if (!may_tell(ends.remote.address)) {
		not_told();
		return;
	}
	ends.remote.port = bpf_ntohs(segment.source);
	ends.local.port = bpf_ntohs(segment.destination);
	ends.local.scope = ends.remote.scope = BPF_CORE_READ(skb, dev, ifindex);
	/* There is no socket to have one. */
	half.cookie = (__u64)segment.sequence << 32 | (__u32)segment.source << 16 | segment.destination;
	tell_of_attempt(KNOCKED, &ends, &half);
}

/*
 * Both arguments may be NULL, which not every kernel's verifier knows: it would leave the question out. As numbers, they
 * are asked.
 */
SEC("tp_btf/tcp_send_reset")
int knocked(void *ctx)
{
	struct {
		struct sock *sk;
		struct sk_buff *skb;
	} of = {};

	if (!wants_connections() || bpf_probe_read_kernel(&of, sizeof(of), ctx))
		return 0;
	if (!of.sk && of.skb)
		knock(of.skb);
	return 0;
}

static __always_inline void half_live(__s64 more)
{
	__u32 only = 0;
	struct misses *count = bpf_map_lookup_elem(&misses, &only);

	if (count)
		__sync_fetch_and_add(&count->halves, more);
}

/* Each answer waits twice as long as the one before, so the next one comes, or none, within this time. */
static __always_inline void goes_on(struct half *half)
{
	half->last_ns = bpf_ktime_get_boot_ns();
	half->until_ns = half->last_ns + 2 * (half->last_ns - half->began_ns) + SECOND_NS;
}

static __always_inline void begin_half(struct sock *sk, struct tcp_request_sock *request, struct ends *ends)
{
	struct origin *origin = bpf_sk_storage_get(&origins, sk, NULL, 0);
	__u64 sent_ns = BPF_CORE_READ(request, snt_synack) * 1000, now = bpf_ktime_get_ns();
	struct half half = { .began_ns = bpf_ktime_get_boot_ns() };

	if (sent_ns && sent_ns < now)
		half.began_ns -= now - sent_ns;
	half.cookie = (__u64)BPF_CORE_READ(request, snt_isn) << 32 | BPF_CORE_READ(request, rcv_isn);
	if (origin && origin->listens)
		half.who = origin->owner;
	goes_on(&half);
	if (!may_tell(ends->remote.address) || bpf_map_update_elem(&halves, ends, &half, BPF_NOEXIST)) {
		not_told();
		return;
	}
	half_live(1);
	tell_of_attempt(UNFINISHED, ends, &half);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(unfinished, struct sock *sk, struct request_sock *request)
{
	struct ends both = {};
	struct half *half;

	if (!wants_connections() || !is_ours(sk, TCP))
		return 0;
	/* Both begin with what they have in common. */
	ends((struct sock *)request, &both.local, &both.remote);
	half = bpf_map_lookup_elem(&halves, &both);
	if (half)
		goes_on(half);
	else if (!BPF_CORE_READ(request, num_retrans))
		begin_half(sk, (void *)request, &both);
	return 0;
}

/* The handshake is done after all. */
static __always_inline void finished(struct sock *sk)
{
	__u32 only = 0;
	struct misses *count = bpf_map_lookup_elem(&misses, &only);
	struct ends both = {};

	if (!count || !count->halves)
		return;
	ends(sk, &both.local, &both.remote);
	if (!bpf_map_delete_elem(&halves, &both))
		half_live(-1);
}

/* Run by the daemon: this one is told of, and comes to nothing. */
SEC("syscall")
int last_wait(struct half_ending *ending)
{
	struct ends both = ending->ends;
	struct half *half = bpf_map_lookup_elem(&halves, &both);

	if (!half)
		return 1;
	ending->half = *half;
	if (bpf_map_delete_elem(&halves, &both))
		return 1;
	half_live(-1);
	return 0;
}
