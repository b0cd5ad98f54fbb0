/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Whose socket is it? Written down when a connection is made, before its first segment leaves, and joined to the socket
 * that accepts it when the handshake is done. Whoever accepts it reads it by that socket alone.
 *
 * Only sockets of the daemon's own network namespace: others have daemons of their own.
 */
#pragma once

/* How often one socket's strangers take turns and each is told of; from then on that it may be anybody's. */
#define STRANGERS_MAX 32
/* How many processes of the owner's image are each told of at once; from then on one of them every AGAIN_NS. */
#define KIN_MAX 64
/* How soon a stranger that goes on is told of again. What is accepted often goes to another program, and rightly. */
#define AGAIN_NS (32 * 1000 * 1000ULL)
#define AGAIN_SERVED_NS (1000 * 1000 * 1000ULL)

#define HERE(ctx)                                                                                                      \
	({                                                                                                             \
		__u32 only_ = 0;                                                                                       \
		struct home *home_ = bpf_map_lookup_elem(&home, &only_);                                               \
		home_ && bpf_get_netns_cookie(ctx) == home_->netns;                                                    \
	})

/* Mapped into IPv6, as sockets of both families may speak IPv4. */
static __always_inline void map_address(__u8 *to, __be32 address)
{
	*(__u64 *)to = 0;
	*(__u32 *)(to + 8) = bpf_htonl(0xffff);
	*(__u32 *)(to + 12) = address;
}

static __always_inline void copy_address(__u8 *to, struct in6_addr *address)
{
	__builtin_memcpy(to, address->in6_u.u6_addr8, 16);
}

static __always_inline void local_address(__u8 *to, struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET)
		map_address(to, sk->__sk_common.skc_rcv_saddr);
	else
		bpf_probe_read_kernel(to, 16, &sk->__sk_common.skc_v6_rcv_saddr);
}

static __always_inline void remote_address(__u8 *to, struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET)
		map_address(to, sk->__sk_common.skc_daddr);
	else
		bpf_probe_read_kernel(to, 16, &sk->__sk_common.skc_v6_daddr);
}

static __always_inline __u32 references(struct file *file)
{
	struct file___counted *older = (void *)file;

	/* Kept as one less. */
	if (bpf_core_field_exists(file->f_ref))
		return file->f_ref.refcnt.counter + 1;
	return BPF_CORE_READ(older, f_count.counter);
}

static __always_inline bool uses_io_uring(struct task_struct *task)
{
	return task->flags & PF_IO_WORKER || (bpf_core_field_exists(task->io_uring) && task->io_uring);
}

SEC("cgroup/sock_create")
int made(struct bpf_sock *sk)
{
	struct task_struct *task;
	struct origin *origin;

	if (sk->type != SOCK_STREAM || (sk->family != AF_INET && sk->family != AF_INET6) || !HERE(sk))
		return 1;
	origin = bpf_sk_storage_get(&origins, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (origin) {
		task = bpf_get_current_task_btf();
		origin->creator = execution_of(task);
		origin->creator_execs = task->self_exec_id;
	}
	return 1;
}

/* As a process's image, but found without a search by whoever made the socket. */
static __always_inline __u64 image_beside(struct origin *origin, struct task_struct *task)
{
	if (origin->creator.image && origin->creator.pid == task->tgid && origin->creator_execs == task->self_exec_id &&
	    origin->creator.start_ns == start_of(task))
		return origin->creator.image;
	return image_of(task);
}

static __always_inline int asked(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct origin *origin;

	if (ctx->type != SOCK_STREAM || !sk || !HERE(ctx))
		return 1;
	origin = bpf_sk_storage_get(&origins, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (origin)
		origin->asker = image_beside(origin, bpf_get_current_task_btf());
	return 1;
}

SEC("cgroup/connect4")
int asked4(struct bpf_sock_addr *ctx)
{
	return asked(ctx);
}

SEC("cgroup/connect6")
int asked6(struct bpf_sock_addr *ctx)
{
	return asked(ctx);
}

/* What speaks against the connecting process as the only one to use the socket. */
static __always_inline __u32 doubts(struct task_struct *task, struct process *process, struct origin *origin,
				    struct connect_record *record, struct file *file)
{
	__u32 doubts = 0, sharers = task->files->count.counter;
	struct file_name now;

	if (!process || !process->witnessed)
		doubts |= UNWITNESSED;
	if (process) {
		now = name_of(task->mm->exe_file->f_inode);
		if (!same_file(&now, &process->file))
			doubts |= EXE_REPLACED;
	}
	/* One image is one program: a child that does not execute anything is its parent. */
	if (!record->image || origin->creator.image != record->image)
		doubts |= CREATOR_DIFFERS;
	if (!record->image || origin->asker != record->image)
		doubts |= ASKER_DIFFERS;
	/* A direct descriptor of io_uring is in no table of open files, which cannot be told from here. */
	if (!file || uses_io_uring(task))
		doubts |= NO_FILE;
	/* The call holds a reference of its own if threads share the table of open files (fdget, fs/file.c). */
	if (record->references > (sharers > 1 ? 2 : 1))
		doubts |= SHARED_FILE;
	if (sharers > task->signal->nr_threads)
		doubts |= SHARED_TABLE;
	return doubts;
}

static __always_inline void forget_kin(struct origin *origin)
{
	__builtin_memset(origin->kin, 0, sizeof(origin->kin));
	origin->kins = 0;
}

static __always_inline bool same_handshake(const struct handshake *a, const struct handshake *b)
{
	const __u64 *here = (const __u64 *)a->source, *there = (const __u64 *)b->source;

	return a->isn == b->isn && a->port == b->port && here[0] == there[0] && here[1] == there[1];
}

static __always_inline struct recent *place_of(const struct handshake *handshake)
{
	__u32 place = (handshake->isn ^ handshake->isn >> 16 ^ handshake->port) % RECENT_MAX;

	return bpf_map_lookup_elem(&recent, &place);
}

/* With all that was written before, and before all that is read next. */
static __always_inline __u64 turn_of(struct recent *place)
{
	return __sync_fetch_and_add(&place->turn, 0);
}

static __always_inline bool begins(struct recent *place, __u64 turn, __u64 next)
{
	return __sync_val_compare_and_swap(&place->turn, turn, next) == turn;
}

static __always_inline void write_down(struct recent *place, __u64 turn, const struct handshake *handshake,
				       const struct connect_record *record)
{
	place->handshake = *handshake;
	place->record = *record;
	__sync_lock_test_and_set(&place->turn, turn + 1);
}

/* A place that somebody has: he is put into the other map first, and so is always in one of them. */
static __always_inline bool displace(struct recent *place, __u64 turn)
{
	struct handshake handshake = place->handshake;
	struct connect_record record = place->record;

	/* Half of it might be another's. */
	if (turn_of(place) != turn)
		return false;
	if (bpf_map_update_elem(&handshakes, &handshake, &record, BPF_ANY))
		return false;
	/* If he is gone meanwhile, what he leaves there is like the record of what was connected elsewhere. */
	return begins(place, turn, turn + WRITING - KEPT + TURNS);
}

/* Keeps a record until its handshake is done. */
static __always_inline void remember(const struct handshake *handshake, const struct connect_record *record)
{
	struct recent *place = place_of(handshake);
	__u64 turn;

	if (!place)
		return;
	turn = turn_of(place);
	if (turn % TURNS == EMPTY && begins(place, turn, turn + 1))
		write_down(place, turn + 1, handshake, record);
	else if (turn % TURNS == KEPT && displace(place, turn))
		write_down(place, turn + WRITING - KEPT + TURNS, handshake, record);
	else if (bpf_map_update_elem(&handshakes, handshake, record, BPF_ANY))
		full();
}

/* The record of a handshake that is done, which nobody gets a second time. */
static __always_inline bool recall(const struct handshake *handshake, struct connect_record *record)
{
	struct recent *place = place_of(handshake);
	struct connect_record *found;
	__u64 turn;

	if (!place)
		return false;
	turn = turn_of(place);
	if (turn % TURNS == KEPT && same_handshake(&place->handshake, handshake) && begins(place, turn, turn + 1)) {
		*record = place->record;
		__sync_lock_test_and_set(&place->turn, turn + 2);
		return true;
	}
	found = bpf_map_lookup_elem(&handshakes, handshake);
	if (!found)
		return false;
	*record = *found;
	/* If it is not there any more, its place may have been taken while it was copied. */
	return !bpf_map_delete_elem(&handshakes, handshake);
}

static __always_inline void connecting(struct bpf_sock_ops *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct handshake handshake = {};
	struct connect_record record = {};
	struct bpf_sock *socket = ctx->sk;
	struct process *process;
	struct origin *origin;
	struct tcp_sock *tcp;
	struct sock *sk;
	struct file *file;

	if (!socket)
		return;
	tcp = bpf_skc_to_tcp_sock(socket);
	if (!tcp)
		return;
	sk = (struct sock *)tcp;
	origin = bpf_sk_storage_get(&origins, socket, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!origin) {
		full();
		return;
	}
	file = sk->sk_socket->file;
	record.at_ns = bpf_ktime_get_boot_ns();
	record.cookie = bpf_get_socket_cookie(ctx);
	record.start_ns = start_of(task);
	process = process_of(task);
	record.image = process ? process->image : 0;
	record.cgroup = task->cgroups->dfl_cgrp->kn->id;
	record.netns = bpf_get_netns_cookie(ctx);
	record.pid = task->tgid;
	record.tid = task->pid;
	record.uid = task->cred->euid.val;
	record.gid = task->cred->egid.val;
	record.isn = tcp->write_seq;
	if (file)
		record.references = references(file);
	if (task->flags & PF_KTHREAD || !task->mm)
		record.doubts = KERNEL_TASK;
	else
		record.doubts = doubts(task, process, origin, &record, file);

	origin->owner.start_ns = record.start_ns;
	origin->owner.image = record.image;
	origin->owner.pid = record.pid;
	origin->owner_uid = record.uid;
	origin->user = record.image;
	origin->user_uid = record.uid;
	origin->strangers = 0;
	origin->listens = 0;
	forget_kin(origin);

	local_address(handshake.source, sk);
	handshake.isn = record.isn;
	handshake.port = sk->__sk_common.skc_num;
	remember(&handshake, &record);
}

static __always_inline void established(struct bpf_sock_ops *ctx)
{
	struct handshake handshake = {};
	struct bpf_sock *socket = ctx->sk;
	struct connect_record record;
	struct origin *origin;
	struct tcp_sock *tcp;
	struct sock *sk;

	if (!socket)
		return;
	tcp = bpf_skc_to_tcp_sock(socket);
	if (!tcp)
		return;
	sk = (struct sock *)tcp;
	remote_address(handshake.source, sk);
	handshake.isn = tcp->copied_seq - 1;
	handshake.port = bpf_ntohs(sk->__sk_common.skc_dport);
	origin = bpf_sk_storage_get(&origins, socket, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!origin) {
		full();
		return;
	}
	/* Both also keep the order for whoever reads on another processor. Nothing stays of an earlier life of the socket. */
	__sync_lock_test_and_set(&origin->record.at_ns, 0);
	if (!recall(&handshake, &record))
		return;
	__builtin_memcpy(&origin->record.cookie, &record.cookie, sizeof(record) - offsetof(struct connect_record, cookie));
	__sync_lock_test_and_set(&origin->record.at_ns, record.at_ns);
}

static __always_inline void listening(struct bpf_sock_ops *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct bpf_sock *socket = ctx->sk;
	struct origin *origin;

	if (!socket)
		return;
	origin = bpf_sk_storage_get(&origins, socket, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!origin)
		return;
	/* Of an earlier life of the socket. Whoever is accepted here has one of his own, or none. */
	__builtin_memset(&origin->record, 0, sizeof(origin->record));
	origin->owner = execution_of(task);
	origin->owner_uid = task->cred->euid.val;
	origin->user = origin->owner.image;
	origin->user_uid = origin->owner_uid;
	origin->strangers = 0;
	origin->listens = 1;
	forget_kin(origin);
}

SEC("sockops")
int connections(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (HERE(ctx))
			connecting(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (HERE(ctx))
			established(ctx);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		if (HERE(ctx))
			listening(ctx);
		break;
	}
	return 1;
}

static __always_inline void name_ends(struct event *event, struct sock *sk)
{
	local_address(event->local.address, sk);
	remote_address(event->remote.address, sk);
	event->local.port = sk->__sk_common.skc_num;
	event->remote.port = bpf_ntohs(sk->__sk_common.skc_dport);
	event->local.scope = event->remote.scope = sk->__sk_common.skc_bound_dev_if;
}

/*
 * A child that executed nothing is its parent's program, but may be traced, or another user, or load more code, alone.
 * Each is told of once for each socket, so that it is watched, too.
 */
static __always_inline void used_by_kin(struct sock *sk, struct origin *origin, struct task_struct *task)
{
	__u64 start = start_of(task), process = start ^ (__u64)task->tgid << 40;
	struct event *event;
	int i;

	if (task->tgid == origin->owner.pid && start == origin->owner.start_ns)
		return;
#pragma unroll
	for (i = 0; i < KIN_KEPT; i++)
		if (origin->kin[i] == process)
			return;
	if (origin->kins >= KIN_MAX && bpf_ktime_get_boot_ns() - origin->kin_told_ns < AGAIN_NS)
		return;
	event = begin(USED_BY_KIN);
	if (!event)
		return;
	origin->kin[origin->kins & (KIN_KEPT - 1)] = process;
	origin->kins++;
	origin->kin_told_ns = event->at_ns;
	event->of = origin->owner;
	event->by = execution_of(task);
	name_ends(event, sk);
	bpf_ringbuf_submit(event, 0);
}

/*
 * Whoever sends or receives is told of where it is not whoever connected or listens. Of a connection also where it is
 * the same program under another user; servers change theirs all the time.
 *
 * And told of again as long as it goes on: what was told may have found no room, or nobody yet who relies on it.
 */
static __always_inline void used(struct sock *sk)
{
	struct task_struct *task;
	struct origin *origin;
	struct event *event;
	__u64 image;
	bool another;
	__u32 uid;

	if (!sk || (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6))
		return;
	origin = bpf_sk_storage_get(&origins, sk, NULL, 0);
	if (!origin || !origin->owner.pid)
		return;
	task = bpf_get_current_task_btf();
	if (task->flags & PF_KTHREAD)
		return;
	image = image_of(task);
	uid = task->cred->euid.val;
	another = !image || image != origin->user || uid != origin->user_uid;
	origin->user = image;
	origin->user_uid = uid;
	if (image && image == origin->owner.image && (origin->listens || uid == origin->owner_uid)) {
		used_by_kin(sk, origin, task);
		return;
	}
	if (another && origin->strangers <= STRANGERS_MAX)
		origin->strangers++;
	else if (bpf_ktime_get_boot_ns() - origin->told_ns < (origin->listens ? AGAIN_SERVED_NS : AGAIN_NS))
		return;
	event = begin(USED);
	if (!event)
		return;
	origin->told_ns = event->at_ns;
	event->of = origin->owner;
	if (origin->strangers <= STRANGERS_MAX)
		event->by = execution_of(task);
	name_ends(event, sk);
	bpf_ringbuf_submit(event, 0);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sent, struct sock *sk, int length)
{
	if (length >= 0)
		used(sk);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(received, struct sock *sk, int length)
{
	if (length >= 0)
		used(sk);
	return 0;
}

/*
 * What was received goes elsewhere than through recvmsg(2): splice(2), sendfile(2), TCP_ZEROCOPY_RECEIVE. The kernel
 * itself may read on arrival, when the current process is anybody; only who has the socket locked reads for itself.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(taken, struct sock *sk)
{
	if (sk->sk_lock.owned)
		used(sk);
	return 0;
}
