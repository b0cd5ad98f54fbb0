/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What happens, told once and in order. What finds no room is counted, so no loss goes unnoticed: a number in each
 * event would say the same, but two processors may take their numbers in one order and their places in another.
 */
#pragma once

/* An event to be filled in and submitted, all zero but its kind. NULL: it is lost, and that is counted. */
static __always_inline struct event *begin(enum kind kind)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	struct counters *counters;

	if (!event) {
		counters = count();
		if (counters)
			__sync_fetch_and_add(&counters->lost, 1);
		return NULL;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->at_ns = bpf_ktime_get_boot_ns();
	event->kind = kind;
	return event;
}
