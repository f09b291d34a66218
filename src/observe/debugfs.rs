// SPDX-License-Identifier: GPL-2.0

//! The files in the device's folder of debugfs: `mirror` with the counters, and a file for each
//! knob. `docs/internals.md` says what is in them.

use super::{
    Counters,
    Knobs, //
};
use crate::kapi::{
    drm::{
        debugfs::{
            Folder,
            Show, //
        },
        Device,
        Driver, //
    },
    mm::Change, //
};
use kernel::seq_file::{
    seq_print,
    SeqFile, //
};

/// What has counters and knobs.
pub(crate) trait Observed {
    /// Its counters.
    fn counters(&self) -> &Counters;
    /// Its knobs.
    fn knobs(&self) -> &Knobs;
}

/// Adds the files.
pub(crate) fn add<T>(folder: &Folder<'_, T>)
where
    T: Driver,
    T::Data: Observed,
{
    folder.show::<Mirror>(c"mirror");
    folder.number(c"force_retries", |data| &data.knobs().force_retries);
    folder.number(c"exhaust_invalidates", |data| {
        &data.knobs().exhaust_invalidates
    });
    folder.number(c"exhaust_nodes", |data| &data.knobs().exhaust_nodes);
    folder.number(c"delay_map_ms", |data| &data.knobs().delay_map_ms);
    folder.number(c"hold_reset", |data| &data.knobs().hold_reset);
    folder.number(c"exhaust_descriptors", |data| {
        &data.knobs().exhaust_descriptors
    });
}

/// The counters, as `name: value`.
struct Mirror;

impl<T> Show<T> for Mirror
where
    T: Driver,
    T::Data: Observed,
{
    fn show(dev: &Device<T>, out: &SeqFile) {
        let counters = dev.counters();
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
            let_go_pages,
            longest_look,
            spaces,
            ended_spaces,
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
        let (gone, ever) = (let_go_pages.get(), quarantined_pages.get());
        seq_print!(
            out,
            "quarantined_pages_now: {}\n",
            ever.saturating_sub(gone)
        );
        seq_print!(out, "quarantined_pages_ever: {}\n", ever);
        let (gone, ever) = (ended_spaces.get(), spaces.get());
        seq_print!(out, "spaces_now: {}\n", ever.saturating_sub(gone));
    }
}
