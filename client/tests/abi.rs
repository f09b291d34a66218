// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Compares the Rust structures and ioctl numbers with the C headers.

mod c_headers;

use c_headers::{check, compile, Fact};
use virtgpu_client::{drm, ioctl};
use virtgpu_protocol::uapi;

/// Size and every field offset of a structure.
macro_rules! layout {
    ($facts:expr, $c:literal, $rust:ty, [$($c_field:literal = $field:ident),* $(,)?]) => {{
        let facts: &mut Vec<Fact> = $facts;
        facts.push(Fact {
            expression: format!("sizeof({})", $c),
            value: size_of::<$rust>() as u64,
        });
        $(facts.push(Fact {
            expression: format!("offsetof({}, {})", $c, $c_field),
            value: core::mem::offset_of!($rust, $field) as u64,
        });)*
    }};
}

/// Constants.
macro_rules! values {
    ($facts:expr, [$($c:literal = $value:expr),* $(,)?]) => {{
        let facts: &mut Vec<Fact> = $facts;
        $(facts.push(Fact { expression: $c.to_string(), value: $value as u64 });)*
    }};
}

fn standard(facts: &mut Vec<Fact>) {
    use uapi::*;
    layout!(
        facts,
        "struct drm_virtgpu_map",
        Map,
        ["offset" = offset, "handle" = handle, "pad" = pad]
    );
    layout!(
        facts,
        "struct drm_virtgpu_execbuffer_syncobj",
        ExecBufferSyncobj,
        ["handle" = handle, "flags" = flags, "point" = point]
    );
    layout!(
        facts,
        "struct drm_virtgpu_execbuffer",
        ExecBuffer,
        [
            "flags" = flags,
            "size" = size,
            "command" = command,
            "bo_handles" = bo_handles,
            "num_bo_handles" = num_bo_handles,
            "fence_fd" = fence_fd,
            "ring_idx" = ring_idx,
            "syncobj_stride" = syncobj_stride,
            "num_in_syncobjs" = num_in_syncobjs,
            "num_out_syncobjs" = num_out_syncobjs,
            "in_syncobjs" = in_syncobjs,
            "out_syncobjs" = out_syncobjs
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_getparam",
        GetParam,
        ["param" = param, "value" = value]
    );
    layout!(
        facts,
        "struct drm_virtgpu_resource_create",
        ResourceCreate,
        [
            "target" = target,
            "format" = format,
            "bind" = bind,
            "width" = width,
            "height" = height,
            "depth" = depth,
            "array_size" = array_size,
            "last_level" = last_level,
            "nr_samples" = nr_samples,
            "flags" = flags,
            "bo_handle" = bo_handle,
            "res_handle" = res_handle,
            "size" = size,
            "stride" = stride
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_resource_info",
        ResourceInfo,
        [
            "bo_handle" = bo_handle,
            "res_handle" = res_handle,
            "size" = size,
            "blob_mem" = blob_mem
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_3d_box",
        Box3d,
        ["x" = x, "y" = y, "z" = z, "w" = w, "h" = h, "d" = d]
    );
    layout!(
        facts,
        "struct drm_virtgpu_3d_transfer_to_host",
        Transfer,
        [
            "bo_handle" = bo_handle,
            "box" = region,
            "level" = level,
            "offset" = offset,
            "stride" = stride,
            "layer_stride" = layer_stride
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_3d_transfer_from_host",
        Transfer,
        [
            "bo_handle" = bo_handle,
            "box" = region,
            "level" = level,
            "offset" = offset,
            "stride" = stride,
            "layer_stride" = layer_stride
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_3d_wait",
        Wait,
        ["handle" = handle, "flags" = flags]
    );
    layout!(
        facts,
        "struct drm_virtgpu_get_caps",
        GetCaps,
        [
            "cap_set_id" = cap_set_id,
            "cap_set_ver" = cap_set_ver,
            "addr" = addr,
            "size" = size,
            "pad" = pad
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_context_set_param",
        ContextSetParam,
        ["param" = param, "value" = value]
    );
    layout!(
        facts,
        "struct drm_virtgpu_context_init",
        ContextInit,
        [
            "num_params" = num_params,
            "pad" = pad,
            "ctx_set_params" = ctx_set_params
        ]
    );
    values!(
        facts,
        [
            "DRM_COMMAND_BASE" = COMMAND_BASE,
            "DRM_IOCTL_VIRTGPU_MAP" = ioctl::virtgpu(nr::MAP, size_of::<Map>()),
            "DRM_IOCTL_VIRTGPU_EXECBUFFER" =
                ioctl::virtgpu(nr::EXECBUFFER, size_of::<ExecBuffer>()),
            "DRM_IOCTL_VIRTGPU_GETPARAM" = ioctl::virtgpu(nr::GETPARAM, size_of::<GetParam>()),
            "DRM_IOCTL_VIRTGPU_RESOURCE_CREATE" =
                ioctl::virtgpu(nr::RESOURCE_CREATE, size_of::<ResourceCreate>()),
            "DRM_IOCTL_VIRTGPU_RESOURCE_INFO" =
                ioctl::virtgpu(nr::RESOURCE_INFO, size_of::<ResourceInfo>()),
            "DRM_IOCTL_VIRTGPU_TRANSFER_FROM_HOST" =
                ioctl::virtgpu(nr::TRANSFER_FROM_HOST, size_of::<Transfer>()),
            "DRM_IOCTL_VIRTGPU_TRANSFER_TO_HOST" =
                ioctl::virtgpu(nr::TRANSFER_TO_HOST, size_of::<Transfer>()),
            "DRM_IOCTL_VIRTGPU_WAIT" = ioctl::virtgpu(nr::WAIT, size_of::<Wait>()),
            "DRM_IOCTL_VIRTGPU_GET_CAPS" = ioctl::virtgpu(nr::GET_CAPS, size_of::<GetCaps>()),
            "DRM_IOCTL_VIRTGPU_CONTEXT_INIT" =
                ioctl::virtgpu(nr::CONTEXT_INIT, size_of::<ContextInit>()),
            "VIRTGPU_EXECBUF_FENCE_FD_IN" = EXECBUF_FENCE_FD_IN,
            "VIRTGPU_EXECBUF_FENCE_FD_OUT" = EXECBUF_FENCE_FD_OUT,
            "VIRTGPU_EXECBUF_RING_IDX" = EXECBUF_RING_IDX,
            "VIRTGPU_EXECBUF_SYNCOBJ_RESET" = EXECBUF_SYNCOBJ_RESET,
            "VIRTGPU_WAIT_NOWAIT" = WAIT_NOWAIT,
            "VIRTGPU_PARAM_3D_FEATURES" = param::THREE_D_FEATURES,
            "VIRTGPU_PARAM_CAPSET_QUERY_FIX" = param::CAPSET_QUERY_FIX,
            "VIRTGPU_PARAM_RESOURCE_BLOB" = param::RESOURCE_BLOB,
            "VIRTGPU_PARAM_HOST_VISIBLE" = param::HOST_VISIBLE,
            "VIRTGPU_PARAM_CROSS_DEVICE" = param::CROSS_DEVICE,
            "VIRTGPU_PARAM_CONTEXT_INIT" = param::CONTEXT_INIT,
            "VIRTGPU_PARAM_SUPPORTED_CAPSET_IDs" = param::SUPPORTED_CAPSET_IDS,
            "VIRTGPU_CONTEXT_PARAM_CAPSET_ID" = context_param::CAPSET_ID,
            "VIRTGPU_CONTEXT_PARAM_NUM_RINGS" = context_param::NUM_RINGS,
            "VIRTGPU_CONTEXT_PARAM_POLL_RINGS_MASK" = context_param::POLL_RINGS_MASK,
            "VIRTGPU_EVENT_FENCE_SIGNALED" = EVENT_FENCE_SIGNALED,
            "sizeof(struct drm_event)" = size_of::<FenceEvent>(),
            "DRM_IOCTL_VERSION" = drm::VERSION,
            "DRM_IOCTL_GEM_CLOSE" = drm::GEM_CLOSE,
            "DRM_IOCTL_GEM_FLINK" = drm::GEM_FLINK,
            "DRM_IOCTL_GEM_OPEN" = drm::GEM_OPEN,
            "DRM_IOCTL_PRIME_HANDLE_TO_FD" = drm::PRIME_HANDLE_TO_FD,
            "DRM_IOCTL_PRIME_FD_TO_HANDLE" = drm::PRIME_FD_TO_HANDLE,
            "DRM_IOCTL_SYNCOBJ_CREATE" = drm::SYNCOBJ_CREATE,
            "DRM_IOCTL_SYNCOBJ_DESTROY" = drm::SYNCOBJ_DESTROY,
            "DRM_IOCTL_SYNCOBJ_RESET" = drm::SYNCOBJ_RESET,
            "DRM_IOCTL_SYNCOBJ_QUERY" = drm::SYNCOBJ_QUERY,
            "DRM_IOCTL_SYNCOBJ_TIMELINE_SIGNAL" = drm::SYNCOBJ_TIMELINE_SIGNAL,
            "SYNC_IOC_FILE_INFO" = drm::SYNC_FILE_INFO,
        ]
    );
}

/// What came with blob_hints: Linux 7.3. The project's own 72 bytes are compared field by field,
/// the size with the end of the kernel's structure.
fn since_hints(facts: &mut Vec<Fact>) {
    use uapi::ResourceCreateBlob as Blob;
    let mut blob = Vec::new();
    layout!(
        &mut blob,
        "struct drm_virtgpu_resource_create_blob",
        Blob,
        [
            "blob_mem" = blob_mem,
            "blob_flags" = blob_flags,
            "bo_handle" = bo_handle,
            "res_handle" = res_handle,
            "size" = size,
            "pad" = pad,
            "cmd_size" = cmd_size,
            "cmd" = cmd,
            "blob_id" = blob_id,
            "blob_hints" = blob_hints,
            "pad2" = pad2
        ]
    );
    blob[0].value = core::mem::offset_of!(Blob, rocm) as u64;
    facts.append(&mut blob);
    values!(
        facts,
        [
            "DRM_VIRTGPU_BLOB_FLAG_HINT_DEFER_MAPPING" = uapi::BLOB_HINT_DEFER_MAPPING,
            "DRM_IOCTL_VIRTGPU_RESOURCE_CREATE_BLOB" = ioctl::virtgpu(
                uapi::nr::RESOURCE_CREATE_BLOB,
                core::mem::offset_of!(Blob, rocm)
            ),
        ]
    );
}

fn extension(facts: &mut Vec<Fact>) {
    use uapi::*;
    layout!(
        facts,
        "struct drm_virtgpu_userptr_register",
        UserptrRegister,
        [
            "addr" = addr,
            "size" = size,
            "flags" = flags,
            "fd" = fd,
            "fd_offset" = fd_offset,
            "blob_id" = blob_id,
            "blob_mem" = blob_mem,
            "bo_handle" = bo_handle,
            "res_handle" = res_handle,
            "memory_model" = memory_model,
            "cookie" = cookie,
            "pad" = pad
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_userptr_event",
        UserptrEvent,
        [
            "base.type" = kind,
            "base.length" = length,
            "bo_handle" = bo_handle,
            "reason" = reason,
            "addr" = addr,
            "size" = size,
            "cookie" = cookie
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_bo_query",
        BoQuery,
        [
            "bo_handle" = bo_handle,
            "flags" = flags,
            "memory_model" = memory_model,
            "state" = state,
            "addr" = addr,
            "size" = size,
            "resident_bytes" = resident_bytes,
            "mapped_bytes" = mapped_bytes,
            "entries" = entries,
            "maps" = maps,
            "invalidations" = invalidations,
            "retries" = retries,
            "faults" = faults
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_userptr_prefetch",
        UserptrPrefetch,
        [
            "bo_handle" = bo_handle,
            "flags" = flags,
            "offset" = offset,
            "length" = length,
            "done" = done
        ]
    );
    values!(
        facts,
        [
            "DRM_IOCTL_VIRTGPU_USERPTR_REGISTER" =
                ioctl::virtgpu(nr::USERPTR_REGISTER, size_of::<UserptrRegister>()),
            "DRM_IOCTL_VIRTGPU_BO_QUERY" = ioctl::virtgpu(nr::BO_QUERY, size_of::<BoQuery>()),
            "DRM_IOCTL_VIRTGPU_USERPTR_PREFETCH" =
                ioctl::virtgpu(nr::USERPTR_PREFETCH, size_of::<UserptrPrefetch>()),
            "VIRTGPU_PARAM_USERPTR_MODES" = param::USERPTR_MODES,
            "VIRTGPU_PARAM_USERPTR_MEMORY_MODELS" = param::USERPTR_MEMORY_MODELS,
            "VIRTGPU_USERPTR_MODE_PINNED" = USERPTR_MODE_PINNED,
            "VIRTGPU_USERPTR_MODE_MIRRORED" = USERPTR_MODE_MIRRORED,
            "VIRTGPU_USERPTR_MODE_SVM" = USERPTR_MODE_SVM,
            "VIRTGPU_USERPTR_MODE_FD" = USERPTR_MODE_FD,
            "VIRTGPU_USERPTR_PINNED" = USERPTR_PINNED,
            "VIRTGPU_USERPTR_MIRRORED" = USERPTR_MIRRORED,
            "VIRTGPU_USERPTR_RDONLY" = USERPTR_RDONLY,
            "VIRTGPU_USERPTR_FD" = USERPTR_FD,
            "VIRTGPU_USERPTR_PREFAULT" = USERPTR_PREFAULT,
            "VIRTGPU_USERPTR_EVENT" = USERPTR_EVENT,
            "VIRTGPU_USERPTR_SPARSE" = USERPTR_SPARSE,
            "VIRTGPU_MEMORY_MODEL_PERMANENT" = memory_model::PERMANENT,
            "VIRTGPU_MEMORY_MODEL_DYNAMIC" = memory_model::DYNAMIC,
            "VIRTGPU_MEMORY_MODEL_REVOCABLE" = memory_model::REVOCABLE,
            "VIRTGPU_EVENT_USERPTR" = EVENT_USERPTR,
            "VIRTGPU_EVENT_REASON_UNMAP" = event_reason::UNMAP,
            "VIRTGPU_EVENT_REASON_MM_GONE" = event_reason::MM_GONE,
            "VIRTGPU_EVENT_REASON_LOST" = event_reason::LOST,
            "VIRTGPU_BO_STATE_VALID" = bo_state::VALID,
            "VIRTGPU_BO_STATE_REVOKED" = bo_state::REVOKED,
            "VIRTGPU_BO_STATE_LOST" = bo_state::LOST,
        ]
    );
}

fn shared_virtual_memory(facts: &mut Vec<Fact>) {
    use uapi::*;
    layout!(
        facts,
        "struct drm_virtgpu_svm_enable",
        SvmEnable,
        [
            "flags" = flags,
            "workers" = workers,
            "cookie" = cookie,
            "va_end" = va_end,
            "max_faults" = max_faults,
            "pad" = pad
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_svm_prefetch",
        SvmPrefetch,
        [
            "addr" = addr,
            "length" = length,
            "flags" = flags,
            "pad" = pad,
            "done" = done
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_svm_wait",
        SvmWait,
        [
            "addr" = addr,
            "value" = value,
            "mask" = mask,
            "deadline_ns" = deadline_ns,
            "op" = op,
            "ring" = ring,
            "flags" = flags,
            "pad" = pad
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_svm_query",
        SvmQuery,
        [
            "state" = state,
            "reason" = reason,
            "access" = access,
            "ring" = ring,
            "addr" = addr,
            "va_end" = va_end,
            "mapped_bytes" = mapped_bytes,
            "faults" = faults,
            "coalesced" = coalesced,
            "pages" = pages,
            "maps" = maps,
            "entries" = entries,
            "invalidations" = invalidations,
            "retries" = retries,
            "evictions" = evictions,
            "exclusive" = exclusive,
            "bad" = bad
        ]
    );
    layout!(
        facts,
        "struct drm_virtgpu_svm_event",
        SvmEvent,
        [
            "base.type" = kind,
            "base.length" = length,
            "reason" = reason,
            "access" = access,
            "addr" = addr,
            "cookie" = cookie,
            "ring" = ring,
            "pad" = pad
        ]
    );
    values!(
        facts,
        [
            "DRM_IOCTL_VIRTGPU_SVM_ENABLE" = ioctl::virtgpu(nr::SVM_ENABLE, size_of::<SvmEnable>()),
            "DRM_IOCTL_VIRTGPU_SVM_PREFETCH" =
                ioctl::virtgpu(nr::SVM_PREFETCH, size_of::<SvmPrefetch>()),
            "DRM_IOCTL_VIRTGPU_SVM_WAIT" = ioctl::virtgpu(nr::SVM_WAIT, size_of::<SvmWait>()),
            "DRM_IOCTL_VIRTGPU_SVM_QUERY" = ioctl::virtgpu(nr::SVM_QUERY, size_of::<SvmQuery>()),
            "VIRTGPU_SVM_EVENT" = SVM_EVENT,
            "VIRTGPU_SVM_EXACT" = SVM_EXACT,
            "VIRTGPU_SVM_MAX_WORKERS" = SVM_MAX_WORKERS,
            "VIRTGPU_SVM_PREFETCH_WRITE" = SVM_PREFETCH_WRITE,
            "VIRTGPU_SVM_NO_RING" = SVM_NO_RING,
            "VIRTGPU_EVENT_SVM" = EVENT_SVM,
            "VIRTGPU_SVM_WAIT_RING" = svm_wait::RING,
            "VIRTGPU_SVM_WAIT_EQ" = svm_wait::EQ,
            "VIRTGPU_SVM_WAIT_NE" = svm_wait::NE,
            "VIRTGPU_SVM_WAIT_GT" = svm_wait::GT,
            "VIRTGPU_SVM_WAIT_GE" = svm_wait::GE,
            "VIRTGPU_SVM_WAIT_LT" = svm_wait::LT,
            "VIRTGPU_SVM_WAIT_LE" = svm_wait::LE,
            "VIRTGPU_SVM_STATE_ACTIVE" = svm_state::ACTIVE,
            "VIRTGPU_SVM_STATE_LOST" = svm_state::LOST,
            "VIRTGPU_SVM_ACCESS_READ" = svm_access::READ,
            "VIRTGPU_SVM_ACCESS_WRITE" = svm_access::WRITE,
            "VIRTGPU_SVM_ACCESS_ATOMIC" = svm_access::ATOMIC,
            "VIRTGPU_SVM_REASON_BAD_ADDRESS" = svm_reason::BAD_ADDRESS,
            "VIRTGPU_SVM_REASON_BAD_ACCESS" = svm_reason::BAD_ACCESS,
            "VIRTGPU_SVM_REASON_NO_MEMORY" = svm_reason::NO_MEMORY,
            "VIRTGPU_SVM_REASON_NO_ATOMIC" = svm_reason::NO_ATOMIC,
            "VIRTGPU_SVM_REASON_MM_GONE" = svm_reason::MM_GONE,
            "VIRTGPU_SVM_REASON_LOST" = svm_reason::LOST,
        ]
    );
}

#[test]
fn standard_interface() {
    let mut facts = Vec::new();
    standard(&mut facts);
    check(&facts);
}

#[test]
fn blob_hints() {
    let mut facts = Vec::new();
    since_hints(&mut facts);
    check(&facts);
}

#[test]
fn user_memory_extension() {
    let mut facts = Vec::new();
    extension(&mut facts);
    check(&facts);
}

#[test]
fn shared_virtual_memory_extension() {
    let mut facts = Vec::new();
    shared_virtual_memory(&mut facts);
    check(&facts);
}

/// A wrong value must be noticed.
#[test]
fn the_comparison_can_fail() {
    let mut facts = Vec::new();
    extension(&mut facts);
    facts[0].value += 1;
    compile(&facts).expect_err("a wrong size is an error");
}
