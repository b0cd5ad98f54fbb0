/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Which process executed what. An image is one execve(2): it has a number that is never given again, children have
 * their parent's, and it is kept as long as a process runs it.
 *
 * Only what is recorded here, at exec, says which file a process runs: anybody can have /proc/PID/exe name another one
 * (PR_SET_MM_MAP in a user namespace of one's own).
 */
#pragma once

/* Of an image's number; the rest tells executions of one process apart when the daemon starts anew. */
#define EXECS_BITS 24

/* i_mtime became two fields in Linux 6.11. */
static __always_inline void modified(struct inode *inode, struct image *image)
{
	if (bpf_core_field_exists(inode->i_mtime_sec)) {
		image->modified_sec = inode->i_mtime_sec;
		image->modified_nsec = inode->i_mtime_nsec;
	} else if (bpf_core_field_exists(struct inode___hidden_times, __i_mtime)) {
		struct inode___hidden_times *old = (void *)inode;
		image->modified_sec = BPF_CORE_READ(old, __i_mtime.tv_sec);
		image->modified_nsec = BPF_CORE_READ(old, __i_mtime.tv_nsec);
	} else {
		struct inode___plain_times *old = (void *)inode;
		image->modified_sec = BPF_CORE_READ(old, i_mtime.tv_sec);
		image->modified_nsec = BPF_CORE_READ(old, i_mtime.tv_nsec);
	}
}

static __always_inline struct file_name name_of(struct inode *inode)
{
	struct file_name name = {
		.ino = inode->i_ino,
		.dev = inode->i_sb->s_dev,
		.generation = inode->i_generation,
	};
	return name;
}

static __always_inline bool same_file(const struct file_name *a, const struct file_name *b)
{
	return a->ino == b->ino && a->dev == b->dev && a->generation == b->generation;
}

static __always_inline __u64 number(struct task_struct *task)
{
	struct counters *counters = count();

	if (!counters)
		return 0;
	return __sync_fetch_and_add(&counters->next_image, 1) << EXECS_BITS |
	       (task->self_exec_id & ((1 << EXECS_BITS) - 1));
}

static __always_inline void full(void)
{
	struct counters *counters = count();

	if (counters)
		__sync_fetch_and_add(&counters->full, 1);
}

/* The command line as it is now, which is as it was at exec if nothing ran since. Only of the current process. */
static __always_inline void arguments(struct mm_struct *mm, __u64 key, struct image *image, struct blank *blank)
{
	unsigned long start = mm->arg_start, length = mm->arg_end - start;
	struct arguments *longer;

	image->arguments_whole = length <= LONG_ARGUMENTS;
	if (length > LONG_ARGUMENTS)
		length = LONG_ARGUMENTS;
	if (length <= SHORT_ARGUMENTS) {
		if (bpf_probe_read_user(image->arguments, length, (void *)start))
			goto unread;
		image->arguments_length = length;
		return;
	}
	if (bpf_map_update_elem(&long_arguments, &key, &blank->arguments, BPF_NOEXIST))
		goto unread;
	longer = bpf_map_lookup_elem(&long_arguments, &key);
	if (!longer || bpf_probe_read_user(longer->bytes, length, (void *)start))
		goto unread;
	image->arguments_length = length;
	return;
unread:
	image->arguments_whole = 0;
}

/* Searched at once; a longer variable takes several turns. */
#define VARIABLE_BYTES 128
/* Turns. Nobody has as many variables. */
#define VARIABLES_MAX 32768

struct environment {
	unsigned long at;
	unsigned long end;
	/* Of a variable whose name was seen already. */
	__u32 middle;
	__u32 loaded;
};

/* Whether this is that variable, and not empty. */
static __always_inline bool gives(const char *text, const char *name)
{
	bool same = true;
	int i;

#pragma unroll
	for (i = 0; i < 11 && name[i]; i++)
		same &= text[i] == name[i];
	return same && text[i];
}

static long variable(__u32 turn, struct environment *searched)
{
	char text[VARIABLE_BYTES] __attribute__((aligned(8)));
	long length;

	if (searched->at >= searched->end)
		return 1;
	length = bpf_probe_read_user_str(text, sizeof(text), (void *)searched->at);
	if (length <= 0)
		return 1;
	if (!searched->middle) {
		if (gives(text, "LD_PRELOAD="))
			searched->loaded |= PRELOADED;
		if (gives(text, "LD_AUDIT="))
			searched->loaded |= AUDITED;
	}
	searched->middle = length == sizeof(text);
	/* Where the text was cut, its last byte is not one of the variable's. */
	searched->at += searched->middle ? length - 1 : length;
	return 0;
}

/*
 * What the environment has the dynamic loader load, before the first instruction of what is loaded can hide it. Only of
 * the current process, at exec.
 */
static __always_inline __u8 loaded(struct mm_struct *mm)
{
	struct environment searched = { .at = mm->env_start, .end = mm->env_end };

	bpf_loop(VARIABLES_MAX, variable, &searched, 0);
	return searched.at < searched.end ? PRELOADED | AUDITED : searched.loaded;
}

/* A new image of what this process runs, with one user; where there is no room, the process has none. */
static __always_inline void describe(struct task_struct *task, bool witnessed, struct process *process)
{
	__u32 only = 0;
	struct blank *blank = bpf_map_lookup_elem(&blanks, &only);
	struct mm_struct *mm = task->mm;
	struct inode *inode = mm->exe_file->f_inode;
	__u64 key = number(task);
	struct image *image;

	if (!blank || bpf_map_update_elem(&images, &key, &blank->image, BPF_NOEXIST))
		goto none;
	image = bpf_map_lookup_elem(&images, &key);
	if (!image)
		goto none;
	image->users = 1;
	image->witnessed = witnessed;
	image->execs = task->self_exec_id;
	image->file = name_of(inode);
	image->size = inode->i_size;
	modified(inode, image);
	image->directory = name_of(task->fs->pwd.dentry->d_inode);
	if (witnessed) {
		image->executed_ns = bpf_ktime_get_boot_ns();
		arguments(mm, key, image, blank);
		image->loaded = loaded(mm);
	}
	process->image = key;
	process->file = image->file;
	process->witnessed = witnessed;
	return;
none:
	full();
}

static __always_inline void adopt(__u64 key)
{
	struct image *image = bpf_map_lookup_elem(&images, &key);

	if (image)
		__sync_fetch_and_add(&image->users, 1);
}

static __always_inline void release(__u64 key)
{
	struct image *image = bpf_map_lookup_elem(&images, &key);

	if (!image || __sync_fetch_and_sub(&image->users, 1) != 1)
		return;
	if (image->arguments_length > SHORT_ARGUMENTS)
		bpf_map_delete_elem(&long_arguments, &key);
	bpf_map_delete_elem(&images, &key);
}

static __always_inline __u64 start_of(struct task_struct *task)
{
	return task->group_leader->start_boottime;
}

static __always_inline bool ends(struct task_struct *task)
{
	return task->signal->live.counter == 0;
}

/* What a process runs that executed it before anybody watched. */
static __always_inline struct process baseline(struct task_struct *task)
{
	__u32 tgid = task->tgid;
	struct process process = { .start_ns = start_of(task) };

	if (!task->mm || task->flags & PF_KTHREAD)
		return process;
	describe(task, false, &process);
	if (!process.image)
		return process;
	if (bpf_map_update_elem(&processes, &tgid, &process, BPF_NOEXIST)) {
		/* Somebody was faster, or there is no room. */
		release(process.image);
		process.image = 0;
	} else if (ends(task) && !bpf_map_delete_elem(&processes, &tgid)) {
		/* Its end was told before it was entered. */
		release(process.image);
		process.image = 0;
	}
	return process;
}

/*
 * Whether who has no image may just not have been come to. Later it found no room, and what it runs when it forks, or
 * anybody looks, need not be what it executed: it stays without.
 */
static __always_inline bool enters(void)
{
	__u32 only = 0;
	struct home *here = bpf_map_lookup_elem(&home, &only);

	return here && here->enters;
}

/* NULL: nothing is known of it. */
static __always_inline struct process *process_of(struct task_struct *task)
{
	__u32 tgid = task->tgid;
	struct process *process = bpf_map_lookup_elem(&processes, &tgid);

	return process && process->start_ns == start_of(task) ? process : NULL;
}

/* 0: nothing is known of it. */
static __always_inline __u64 image_of(struct task_struct *task)
{
	struct process *process = process_of(task);

	return process ? process->image : 0;
}

static __always_inline struct execution execution_of(struct task_struct *task)
{
	struct execution execution = {
		.start_ns = start_of(task),
		.image = image_of(task),
		.pid = task->tgid,
	};
	return execution;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(executed, struct task_struct *task)
{
	__u32 tgid = task->tgid;
	struct execution before = execution_of(task);
	struct process now = { .start_ns = before.start_ns };
	struct event *event;

	describe(task, true, &now);
	/* Whatever fails, what it executed before is no longer what it runs. */
	if (!now.image || bpf_map_update_elem(&processes, &tgid, &now, BPF_ANY)) {
		bpf_map_delete_elem(&processes, &tgid);
		full();
	}
	bpf_map_delete_elem(&watched, &tgid);
	event = begin(EXECUTED);
	if (event) {
		event->of = before;
		event->now = now.image;
		event->parent = task->real_parent->tgid;
		bpf_ringbuf_submit(event, 0);
	}
	if (before.image)
		release(before.image);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(forked, struct task_struct *parent, struct task_struct *child)
{
	__u32 tgid = child->tgid;
	struct process process, *same;

	if (child->pid != child->tgid || child->flags & PF_KTHREAD || !child->mm)
		return 0;
	same = process_of(parent);
	if (!same && enters()) {
		baseline(parent);
		same = process_of(parent);
	}
	if (!same || !same->image)
		return 0;
	process = *same;
	process.start_ns = child->start_boottime;
	adopt(process.image);
	if (bpf_map_update_elem(&processes, &tgid, &process, BPF_ANY)) {
		release(process.image);
		full();
	}
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(exited, struct task_struct *task)
{
	__u32 tgid = task->tgid;
	struct execution execution;
	struct event *event;

	if (!ends(task))
		return 0;
	execution = execution_of(task);
	bpf_map_delete_elem(&watched, &tgid);
	/* Two threads that end at once both find themselves the last. */
	if (!execution.image || bpf_map_delete_elem(&processes, &tgid))
		return 0;
	release(execution.image);
	event = begin(ENDED);
	if (event) {
		event->of = execution;
		bpf_ringbuf_submit(event, 0);
	}
	return 0;
}

/* Every process that is older than the programs. */
SEC("iter/task")
int older(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (task && !image_of(task))
		baseline(task);
	return 0;
}
