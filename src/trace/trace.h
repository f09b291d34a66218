/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Trace events: /sys/kernel/tracing/events/virtgpu_userptr.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM virtgpu_userptr

#if !defined(VIRTGPU_USERPTR_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VIRTGPU_USERPTR_TRACE_H

#include <linux/tracepoint.h>

/* A command of the control queue; type and response as in linux/virtio_gpu.h. */
TRACE_EVENT(virtgpu_userptr_command,
	TP_PROTO(const char *device, u32 type, u32 context, u64 fence,
		 u32 descriptors),
	TP_ARGS(device, type, context, fence, descriptors),
	TP_STRUCT__entry(
		__string(device, device)
		__field(u32, type)
		__field(u32, context)
		__field(u64, fence)
		__field(u32, descriptors)
	),
	TP_fast_assign(
		__assign_str(device);
		__entry->type = type;
		__entry->context = context;
		__entry->fence = fence;
		__entry->descriptors = descriptors;
	),
	TP_printk("%s: type=%#x context=%u fence=%llu descriptors=%u",
		  __get_str(device), __entry->type, __entry->context,
		  __entry->fence, __entry->descriptors)
);

TRACE_EVENT(virtgpu_userptr_response,
	TP_PROTO(const char *device, u32 type, u32 context, u64 fence,
		 u32 response),
	TP_ARGS(device, type, context, fence, response),
	TP_STRUCT__entry(
		__string(device, device)
		__field(u32, type)
		__field(u32, context)
		__field(u64, fence)
		__field(u32, response)
	),
	TP_fast_assign(
		__assign_str(device);
		__entry->type = type;
		__entry->context = context;
		__entry->fence = fence;
		__entry->response = response;
	),
	TP_printk("%s: type=%#x context=%u fence=%llu response=%#x",
		  __get_str(device), __entry->type, __entry->context,
		  __entry->fence, __entry->response)
);

/* User memory; flags as in drm/virtgpu_userptr_drm.h. */
TRACE_EVENT(virtgpu_userptr_register,
	TP_PROTO(const char *device, u32 resource, u64 address, u64 size,
		 u32 flags),
	TP_ARGS(device, resource, address, size, flags),
	TP_STRUCT__entry(
		__string(device, device)
		__field(u32, resource)
		__field(u64, address)
		__field(u64, size)
		__field(u32, flags)
	),
	TP_fast_assign(
		__assign_str(device);
		__entry->resource = resource;
		__entry->address = address;
		__entry->size = size;
		__entry->flags = flags;
	),
	TP_printk("%s: resource=%u address=%#llx size=%#llx flags=%#x",
		  __get_str(device), __entry->resource, __entry->address,
		  __entry->size, __entry->flags)
);

/* Pages first to last of a space; the device may reach them from now on. */
TRACE_EVENT(virtgpu_userptr_map,
	TP_PROTO(const char *device, u32 space, u64 first, u64 last,
		 u32 entries),
	TP_ARGS(device, space, first, last, entries),
	TP_STRUCT__entry(
		__string(device, device)
		__field(u32, space)
		__field(u64, first)
		__field(u64, last)
		__field(u32, entries)
	),
	TP_fast_assign(
		__assign_str(device);
		__entry->space = space;
		__entry->first = first;
		__entry->last = last;
		__entry->entries = entries;
	),
	TP_printk("%s: space=%u pages=%llu-%llu entries=%u",
		  __get_str(device), __entry->space, __entry->first,
		  __entry->last, __entry->entries)
);

/* A notifier callback is about to invalidate pages that the device reaches. */
TRACE_EVENT(virtgpu_userptr_invalidate,
	TP_PROTO(const char *device, u32 space, u64 first, u64 last,
		 const char *change),
	TP_ARGS(device, space, first, last, change),
	TP_STRUCT__entry(
		__string(device, device)
		__field(u32, space)
		__field(u64, first)
		__field(u64, last)
		__string(change, change)
	),
	TP_fast_assign(
		__assign_str(device);
		__entry->space = space;
		__entry->first = first;
		__entry->last = last;
		__assign_str(change);
	),
	TP_printk("%s: space=%u pages=%llu-%llu %s",
		  __get_str(device), __entry->space, __entry->first,
		  __entry->last, __get_str(change))
);

/* The device reaches the pages no more, or is lost. */
TRACE_EVENT(virtgpu_userptr_invalidated,
	TP_PROTO(const char *device, u32 space, u64 first, u64 last,
		 bool acknowledged),
	TP_ARGS(device, space, first, last, acknowledged),
	TP_STRUCT__entry(
		__string(device, device)
		__field(u32, space)
		__field(u64, first)
		__field(u64, last)
		__field(bool, acknowledged)
	),
	TP_fast_assign(
		__assign_str(device);
		__entry->space = space;
		__entry->first = first;
		__entry->last = last;
		__entry->acknowledged = acknowledged;
	),
	TP_printk("%s: space=%u pages=%llu-%llu %s",
		  __get_str(device), __entry->space, __entry->first,
		  __entry->last,
		  __entry->acknowledged ? "acknowledged" : "lost")
);

#endif

#undef TRACE_INCLUDE_PATH
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_PATH .
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
