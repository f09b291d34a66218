// SPDX-License-Identifier: GPL-2.0

//! The files in the device's folder of debugfs that are about mirrored memory and rare code paths:
//! `mirror` with the counters, and a file for each knob. `docs/internals.md` says what is in them.

use crate::{
    drm::{
        Device,
        GpuDriver, //
    },
    gpu::Counters,
    kapi::{
        drm::debugfs::{
            Folder,
            Show, //
        },
        mm::Change, //
    }, //
};
use kernel::seq_file::{
    seq_print,
    SeqFile, //
};

/// Adds the files.
pub(super) fn add(folder: &Folder<'_, GpuDriver>) {
    folder.show::<Mirror>(c"mirror");
    folder.number(c"force_retries", |gpu| gpu.knobs.force_retries.number());
    folder.number(c"exhaust_invalidates", |gpu| {
        gpu.knobs.exhaust_invalidates.number()
    });
    folder.number(c"exhaust_nodes", |gpu| gpu.knobs.exhaust_nodes.number());
    folder.number(c"delay_map_ms", |gpu| gpu.knobs.delay_map_ms.number());
    folder.number(c"hold_reset", |gpu| {
        gpu.transport.knobs().hold_reset.number()
    });
    folder.number(c"exhaust_descriptors", |gpu| {
        gpu.transport.knobs().exhaust_descriptors.number()
    });
}

/// The counters, as `name: value`.
struct Mirror;

impl Show<GpuDriver> for Mirror {
    fn show(gpu: &Device, out: &SeqFile) {
        let counters = &*gpu.counters;
        let Counters {
            maps,
            sent_in_first_pass,
            ended_in_first_pass,
            acknowledgements,
            lookup_retries,
            lost_races,
            dirtied_pages,
            evicted_pages,
            quarantined_pages,
            released_pages,
            longest_look,
            spaces,
            ended_spaces,
            address_spaces,
            gone_address_spaces,
            ..
        } = counters;

        seq_print!(out, "maps: {}\n", maps.get());
        for change in Change::ALL {
            let count = counters.invalidations(change);
            seq_print!(out, "invalidations_{}: {}\n", change.name(), count);
        }
        for (name, counter) in [
            ("sent_in_first_pass", sent_in_first_pass),
            ("ended_in_first_pass", ended_in_first_pass),
            ("acknowledgements", acknowledgements),
            ("lookup_retries", lookup_retries),
            ("lost_races", lost_races),
            ("dirtied_pages", dirtied_pages),
            ("evicted_pages", evicted_pages),
            ("longest_look", longest_look),
        ] {
            seq_print!(out, "{}: {}\n", name, counter.get());
        }
        // What goes is read first, so that no difference is below zero.
        let (gone, ever) = (released_pages.get(), quarantined_pages.get());
        seq_print!(
            out,
            "quarantined_pages_now: {}\n",
            ever.saturating_sub(gone)
        );
        seq_print!(out, "quarantined_pages_ever: {}\n", ever);
        let (gone, ever) = (ended_spaces.get(), spaces.get());
        seq_print!(out, "spaces_now: {}\n", ever.saturating_sub(gone));
        let (gone, ever) = (gone_address_spaces.get(), address_spaces.get());
        seq_print!(out, "address_spaces_now: {}\n", ever.saturating_sub(gone));
    }
}
