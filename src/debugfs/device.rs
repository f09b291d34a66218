// SPDX-License-Identifier: GPL-2.0

//! The files in the device's folder of debugfs that are about the device and who uses it: those of
//! Linux's C driver, under the same names and in the same form, and `userptr`.

use super::fdinfo::Region;
use crate::{
    drm::{
        Device,
        GpuDriver, //
    },
    kapi::drm::{
        client::TableEntry,
        debugfs::{
            Folder,
            Show, //
        },
    },
    protocol::uapi,
    resource::Resource, //
};
use kernel::seq_file::{
    seq_print,
    SeqFile, //
};

/// Adds the files.
pub(super) fn add(folder: &Folder<'_, GpuDriver>) {
    folder.show::<Features>(c"virtio-gpu-features");
    folder.show::<Fences>(c"virtio-gpu-irq-fence");
    folder.show::<Window>(c"virtio-gpu-host-visible-mm");
    folder.show::<UserMemory>(c"userptr");
}

/// What was negotiated.
struct Features;

impl Show<GpuDriver> for Features {
    fn show(gpu: &Device, out: &SeqFile) {
        let features = &gpu.features;
        for (name, value) in [
            ("virgl", features.virgl),
            // No screens are driven.
            ("edid", false),
            ("indirect", features.indirect),
            ("resource uuid", features.uuid),
            ("blob resources", features.blob),
            ("context init", features.context_init),
            ("mirror", features.mirror.is_some()),
            ("access platform", features.dma),
            ("bounce buffers", gpu.bounces()),
        ] {
            let value = if value { "yes" } else { "no" };
            seq_print!(out, "{:<16} : {}\n", name, value);
        }
        let sets = gpu.capsets.mask().count_ones();
        seq_print!(out, "{:<16} : {}\n", "cap sets", sets);
        seq_print!(out, "{:<16} : {}\n", "scanouts", 0);
        if let Some(alignment) = features.blob_alignment {
            seq_print!(out, "{:<16} : {}\n", "blob alignment", alignment);
        }
        if let Some(window) = &gpu.host_visible {
            let (base, size) = (window.base, window.ranges.size());
            seq_print!(
                out,
                "{:<16} : {:#x} +{:#x}\n",
                "host visible region",
                base,
                size
            );
        }
    }
}

/// The newest fence that the device has responded to, and the newest that it was sent.
struct Fences;

impl Show<GpuDriver> for Fences {
    fn show(gpu: &Device, out: &SeqFile) {
        let (responded, sent) = gpu.control.fences();
        seq_print!(out, "fence {} {}\n", responded, sent);
    }
}

/// What is free in the window for host memory.
struct Window;

impl Show<GpuDriver> for Window {
    fn show(gpu: &Device, out: &SeqFile) {
        match &gpu.host_visible {
            Some(window) => window.ranges.show(out),
            None => seq_print!(out, "Host allocations not visible to guest\n"),
        }
    }
}

/// A registration in the table of a file.
#[derive(Clone, Copy)]
struct Registration {
    handle: u32,
    flags: u32,
    addr: u64,
    size: u64,
    region: Region,
    resident: u64,
}

impl Registration {
    /// The registration, if `object` is one.
    fn look(object: &TableEntry<'_, Resource>) -> Option<Self> {
        let userptr = object.userptr()?;
        let size = object.usage().size;
        let (region, resident) = Region::of(object, size);
        Some(Self {
            handle: object.handle(),
            flags: userptr.flags,
            addr: userptr.addr,
            size,
            region,
            resident,
        })
    }
}

/// Every registration: whose it is, and what it keeps from moving.
struct UserMemory;

impl Show<GpuDriver> for UserMemory {
    fn show(dev: &Device, out: &SeqFile) {
        seq_print!(
            out,
            "{:>8} {:<16} {:>6} {:<8} {:<6} {:>18} {:>14} {:>14} {:>14}\n",
            "pid",
            "command",
            "handle",
            "mode",
            "access",
            "address",
            "size",
            "resident",
            "pinned"
        );
        dev.for_each_file(|file| {
            let owner = file.owner();
            for found in file.look_at_objects(Registration::look).flatten() {
                let (mode, pinned) = match found.region {
                    Region::UserptrPinned => ("pinned", found.resident),
                    _ => ("mirrored", 0),
                };
                let writes = found.flags & uapi::USERPTR_RDONLY == 0;
                seq_print!(
                    out,
                    "{:>8} {:<16} {:>6} {:<8} {:<6} {:#18x} {:>14} {:>14} {:>14}\n",
                    owner.pid,
                    owner.name(),
                    found.handle,
                    mode,
                    if writes { "rw" } else { "r" },
                    found.addr,
                    found.size,
                    found.resident,
                    pinned
                );
            }
        });
    }
}
