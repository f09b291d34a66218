// SPDX-License-Identifier: GPL-2.0
/*
 * The trace events, and functions for mod.rs that emit them.
 */

#define CREATE_TRACE_POINTS
#include "trace.h"
#include "trace_calls.h"

void virtgpu_trace_command(const char *device, u32 type, u32 context, u64 fence,
			   u32 descriptors)
{
	trace_virtgpu_userptr_command(device, type, context, fence, descriptors);
}

void virtgpu_trace_response(const char *device, u32 type, u32 context, u64 fence,
			    u32 response)
{
	trace_virtgpu_userptr_response(device, type, context, fence, response);
}

void virtgpu_trace_register(const char *device, u32 resource, u64 address,
			    u64 size, u32 flags)
{
	trace_virtgpu_userptr_register(device, resource, address, size, flags);
}

void virtgpu_trace_map(const char *device, u32 space, u64 first, u64 last,
		       u32 entries)
{
	trace_virtgpu_userptr_map(device, space, first, last, entries);
}

void virtgpu_trace_invalidate(const char *device, u32 space, u64 first,
			      u64 last, const char *change)
{
	trace_virtgpu_userptr_invalidate(device, space, first, last, change);
}

void virtgpu_trace_invalidated(const char *device, u32 space, u64 first,
			       u64 last, bool acknowledged)
{
	trace_virtgpu_userptr_invalidated(device, space, first, last,
					  acknowledged);
}
