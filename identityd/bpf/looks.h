/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What userland has the kernel look at: who holds a socket, what changed about the processes it watches, and whether a
 * file that it opened is the one that was executed.
 */
#pragma once

/*
 * By which cookie a socket is sought: of a unix socket it is the other end's. That end is the daemon's own, and who asks
 * there is meant: it tells its cookie whatever namespace the asker is in.
 */
static __always_inline __u64 sought_by(struct sock *sk)
{
	struct unix_sock *other;
	struct sock *peer;

	if (sk->__sk_common.skc_family != AF_UNIX)
		return sk->__sk_common.skc_cookie.counter;
	other = bpf_skc_to_unix_sock(sk);
	/* It may be going away, so nothing of it is believed to be there. */
	peer = other ? other->peer : NULL;
	return peer ? BPF_CORE_READ(peer, __sk_common.skc_cookie.counter) : 0;
}

/* Every descriptor of the sockets that are sought. */
SEC("iter/task_file")
int holders(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct holder holder = {};
	struct socket *socket;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket || !socket->sk)
		return 0;
	holder.cookie = sought_by(socket->sk);
	if (!holder.cookie || !bpf_map_lookup_elem(&sought, &holder.cookie))
		return 0;
	holder.table = (__u64)BPF_CORE_READ(task, files);
	holder.start_ns = start_of(task);
	holder.image = image_of(task);
	holder.pid = task->tgid;
	holder.fd = ctx->fd;
	holder.references = references(file);
	holder.threads = task->signal->nr_threads;
	holder.uses_io_uring = uses_io_uring(task);
	bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	return 0;
}

static __always_inline void tell(struct watched *was, __u32 pid, enum change change)
{
	struct event *event = begin(CHANGED);

	if (!event)
		return;
	event->change = change;
	event->of.start_ns = was->start_ns;
	event->of.image = was->image;
	event->of.pid = pid;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void compare(struct task_struct *task, struct watched *was, __u32 pid)
{
	struct mm_struct *mm = task->mm;
	struct watched is = {};

	if (start_of(task) != was->start_ns)
		return;
	if (mm) {
		is.code_pages = mm->exec_vm;
		is.file = name_of(mm->exe_file->f_inode);
	}
	/* The set is another one too where the process moves in another hierarchy than cgroup v2's. */
	is.cgroup = task->cgroups->dfl_cgrp->kn->id ^ (__u64)BPF_CORE_READ(task, cgroups);
	is.uid = task->cred->euid.val;
	is.gid = task->cred->egid.val;
	is.traced = task->ptrace != 0;
	if (was->seen) {
		if (is.uid != was->uid || is.gid != was->gid)
			tell(was, pid, OWNER);
		if (is.cgroup != was->cgroup)
			tell(was, pid, CGROUP);
		if (is.traced != was->traced)
			tell(was, pid, TRACER);
		if (is.code_pages != was->code_pages)
			tell(was, pid, CODE);
		if (!same_file(&is.file, &was->file))
			tell(was, pid, EXECUTABLE);
	}
	was->cgroup = is.cgroup;
	was->code_pages = is.code_pages;
	was->file = is.file;
	was->uid = is.uid;
	was->gid = is.gid;
	was->traced = is.traced;
	was->seen = 1;
}

extern struct task_struct *bpf_task_from_pid(__s32 pid) __ksym __weak;
extern void bpf_task_release(struct task_struct *task) __ksym __weak;

/* The processes that are watched, where the kernel finds them by number (Linux 6.2). */
SEC("iter/bpf_map_elem")
int sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	__u32 *pid = ctx->key;
	struct watched *was = ctx->value;
	struct task_struct *task;

	if (!pid || !was)
		return 0;
	task = bpf_task_from_pid(*pid);
	if (!task)
		return 0;
	compare(task, was, *pid);
	bpf_task_release(task);
	return 0;
}

/* The same, of every process there is. */
SEC("iter/task")
int sweep_all(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct watched *was;
	__u32 pid;

	if (!task || task->pid != task->tgid)
		return 0;
	pid = task->tgid;
	was = bpf_map_lookup_elem(&watched, &pid);
	if (was)
		compare(task, was, pid);
	return 0;
}

/* Notes where the daemon is, and begins to number images where no earlier daemon on this boot can have been. */
SEC("syscall")
int settle(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct counters *counters = count();
	__u32 only = 0;
	struct home *here = bpf_map_lookup_elem(&home, &only);

	if (!here || !counters)
		return 1;
	here->netns = task->nsproxy->net_ns->net_cookie;
	here->pid = task->tgid;
	here->enters = 1;
	/* 15 for each microsecond since boot would be too many to be given; one for each 65 are not. */
	counters->next_image = bpf_ktime_get_boot_ns() >> 16;
	return 0;
}

/* Every process that is older than the programs has been entered, or found no room. */
SEC("syscall")
int entered(void *ctx)
{
	__u32 only = 0;
	struct home *here = bpf_map_lookup_elem(&home, &only);

	if (!here)
		return 1;
	here->enters = 0;
	return 0;
}

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} __attribute__((preserve_access_index));

struct files_struct___table {
	struct fdtable *fdt;
} __attribute__((preserve_access_index));

struct question {
	__u64 image;
	__u32 fd;
	/* The working directory is meant, not the file. */
	__u32 directory;
};

/*
 * Whether the caller's descriptor is of the file that was executed, or of the directory where: 0 yes, 1 no, 2 not
 * known. stat(2) cannot tell on file systems whose files have another device than their superblock (btrfs, overlayfs).
 */
SEC("syscall")
int is_file_of(struct question *question)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct files_struct___table *files = (void *)task->files;
	struct fdtable *table = files->fdt;
	__u64 key = question->image;
	struct image *image = bpf_map_lookup_elem(&images, &key);
	struct file_name name;
	struct file *file;

	if (!image || question->fd >= table->max_fds)
		return 2;
	if (bpf_probe_read_kernel(&file, sizeof(file), table->fd + question->fd) || !file)
		return 2;
	name.ino = BPF_CORE_READ(file, f_inode, i_ino);
	name.dev = BPF_CORE_READ(file, f_inode, i_sb, s_dev);
	name.generation = BPF_CORE_READ(file, f_inode, i_generation);
	return !same_file(&name, question->directory ? &image->directory : &image->file);
}
