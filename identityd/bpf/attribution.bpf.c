// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Who is at which socket, as the kernel sees it. Reading order: record.h says what comes of it; processes.h keeps who
 * executed what; sockets.h is the story of one connection; looks.h is what userland asks for.
 *
 * Every program is short, and none refuses anything: they return 1 where a cgroup's program must say yes.
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
#include "maps.h"
#include "events.h"
#include "processes.h"
#include "sockets.h"
#include "looks.h"

/* The kernel lets only programs under the GPL read its structures. */
char LICENSE[] SEC("license") = "GPL";
