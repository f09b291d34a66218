/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Functions that emit the events of trace.h. mod.rs declares them, too.
 */
#ifndef VIRTGPU_USERPTR_TRACE_CALLS_H
#define VIRTGPU_USERPTR_TRACE_CALLS_H

#include <linux/types.h>

void virtgpu_trace_command(const char *device, u32 type, u32 context, u64 fence,
			   u32 descriptors);
void virtgpu_trace_response(const char *device, u32 type, u32 context, u64 fence,
			    u32 response);
void virtgpu_trace_register(const char *device, u32 resource, u64 address,
			    u64 size, u32 flags);
void virtgpu_trace_map(const char *device, u32 space, u64 first, u64 last,
		       u32 entries);
void virtgpu_trace_invalidate(const char *device, u32 space, u64 first,
			      u64 last, const char *change);
void virtgpu_trace_invalidated(const char *device, u32 space, u64 first,
			       u64 last, bool acknowledged);

#endif
